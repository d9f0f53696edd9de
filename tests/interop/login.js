// Submits one message, on standard input, with nodemailer over TLS, the certificate verified:
//
//     node login.js HOST PORT SECURE CA-FILE USER PASSWORD TO
"use strict";

const { readFileSync } = require("node:fs");
const nodemailer = require("nodemailer");

const [host, port, secure, ca, user, pass, to] = process.argv.slice(2);
const transport = nodemailer.createTransport({
    host, port: Number(port), secure: secure === "true", requireTLS: true, auth: { user, pass },
    tls: { ca: readFileSync(ca) },
});

transport.sendMail({ envelope: { from: user, to }, raw: readFileSync(0) }).then(
    () => transport.close(),
    (error) => { console.error(error.message); process.exitCode = 1; transport.close(); },
);
