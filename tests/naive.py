"""Servers with every hole that ``mailsvc doctor --deep`` looks for, on loopback."""

from __future__ import annotations

import re
import socket
import socketserver
import ssl
from pathlib import Path
from typing import Any

from mailsvc.doctor.probes import ENDS
from tests.loopback import Served


class _Session(socketserver.BaseRequestHandler):
    """One connection: lines end at LF, and what has arrived stays in the buffer over TLS."""

    request: Any
    buffer: bytes

    def handle(self) -> None:
        server: Any = self.server
        self.buffer = b""
        try:
            if server.implicit:
                self.request = server.context.wrap_socket(self.request, server_side=True)
            self.request.settimeout(30)
            self.serve()
        except OSError:
            pass  # they leave

    def serve(self) -> None:
        raise NotImplementedError

    def say(self, text: str) -> None:
        self.request.sendall(text.encode() + b"\r\n")

    def more(self) -> None:
        data = self.request.recv(65_536)
        if not data:
            raise OSError("gone")
        self.buffer += data

    def line(self) -> str:
        while b"\n" not in self.buffer:
            self.more()
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line.replace(b"\0", b"").strip(b"\r").decode("latin-1")

    def secure(self) -> None:
        server: Any = self.server
        self.request = server.context.wrap_socket(self.request, server_side=True)


class _SMTP(_Session):
    def serve(self) -> None:
        self.say("220 naive")
        while True:
            line = self.line()
            verb = line.upper().partition(" ")[0]
            match verb:
                case "EHLO":
                    self.say("250-naive\r\n250-CHUNKING\r\n250-SIZE\r\n250-AUTH PLAIN\r\n"
                             "250 STARTTLS")
                case "DATA":
                    self.say("354 go on")
                    self.data()
                    self.say("250 taken")
                case "STARTTLS":
                    self.say("220 go on")
                    self.secure()
                case "BDAT":
                    self.say("503 what for")  # and its octets are commands
                case "QUIT":
                    self.say("221 bye")
                    return
                case "MAIL" | "RCPT" | "NOOP":
                    self.say("250 ok")
                case _:
                    self.say("500 what")

    def data(self) -> None:
        ends = re.compile(b"|".join(map(re.escape, [*ENDS.values(), b"\r\n.\r\n"])))
        while (end := ends.search(self.buffer)) is None:
            self.more()
        self.buffer = self.buffer[end.end():]


class _POP3(_Session):
    def serve(self) -> None:
        self.say("+OK naive")
        while True:
            match self.line().upper().partition(" ")[0]:
                case "CAPA":
                    self.say("+OK\r\nUSER\r\nSTLS\r\n.")
                case "STLS":
                    self.say("+OK go on")
                    self.secure()
                case "QUIT":
                    self.say("+OK bye")
                    return
                case _:
                    self.say("+OK whatever")


class NaiveServer(Served):
    """A server of *kind*, as in ``[listeners]``; use as a context manager.

    :param certificate: a PEM file with chain and key.
    """

    def __init__(self, kind: str, certificate: Path) -> None:
        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True
            address_family = socket.AF_INET
            implicit = kind in ("submissions", "pop3s")
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

        Server.context.load_cert_chain(certificate)
        super().__init__(Server(("127.0.0.1", 0), _POP3 if kind.startswith("pop3") else _SMTP))
