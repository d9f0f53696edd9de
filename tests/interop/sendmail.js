// Sends mail with nodemailer:
//
//     node sendmail.js raw HOST PORT FROM TO,...        the message on standard input, as it is
//     node sendmail.js compose HOST PORT FROM TO,...    a message that nodemailer composes
"use strict";

const { readFileSync } = require("node:fs");
const nodemailer = require("nodemailer");

const [mode, host, port, from, to] = process.argv.slice(2);
const recipients = to.split(",");
const transport = nodemailer.createTransport({ host, port: Number(port), ignoreTLS: true });
const mail = mode === "raw"
    ? { envelope: { from, to: recipients }, raw: readFileSync(0) }
    : {
        from, to: recipients, subject: "Grüße aus Node",
        text: ".\n..\nŁukasz\n", html: "<p>Łukasz</p>",
        attachments: [{ filename: "octets.bin", content: Buffer.from([...Array(256).keys()]) }],
    };

transport.sendMail(mail).then(
    () => transport.close(),
    (error) => { console.error(error.message); process.exitCode = 1; transport.close(); },
);
