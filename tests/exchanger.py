"""Mail exchangers on loopback addresses that behave as badly as a test wants."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import ssl
import threading
from pathlib import Path
from types import TracebackType
from typing import Any


class Exchanger:
    """An SMTP server at *address*; use as a context manager.

    :param behaviour: what each connection in turn meets, the last for ever; words with spaces
        between, or none for a server that takes everything:

        * ``greet=TEXT``, ``ehlo=``, ``mail=``, ``rcpt=``, ``data=``, ``end=`` with a reply, "_" for
          a space; the reply stands in the place of the good one;
        * ``hang=STAGE`` and ``drop=STAGE``: no answer, or the connection closed, at that stage;
          ``content`` is amid the message, ``end`` behind it;
        * ``starttls``: offered, with *certificate*; ``badtls``: offered, and then it is no TLS;
        * ``dsn``: offered.

    :ivar messages: what was accepted with 250: reverse-path line, recipient lines, text, whether
        it came over TLS.
    :ivar connections: how many there were.
    """

    def __init__(self, address: str, port: int, *behaviour: str,
                 certificate: Path | None = None) -> None:
        self.address = address
        self.behaviour = behaviour or ("",)
        self.certificate = certificate
        self.messages: list[tuple[str, list[str], bytes, bool]] = []
        self.lines: list[str] = []
        self.connections = 0
        self._over = threading.Event()
        exchanger = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError, _Gone):
                    exchanger._talk(self.request)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True
            request_queue_size = 200

        self._server = Server((address, port), Handler)
        self.port = self._server.server_address[1]

    def __enter__(self) -> Exchanger:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    def _talk(self, sock: Any) -> None:
        words = self.behaviour[min(self.connections, len(self.behaviour) - 1)].split()
        self.connections += 1
        replies = dict(word.split("=", 1) for word in words if "=" in word)
        stops = {word.split("=")[1]: word.split("=")[0] for word in words
                 if word.startswith(("hang=", "drop="))}
        file = sock.makefile("rb")
        tls = False

        def stop(stage: str) -> None:
            if stops.get(stage) == "hang":
                self._over.wait(120)
            if stage in stops:
                raise _Gone

        def say(stage: str, text: str) -> str:
            stop(stage)
            text = replies.get(stage, text).replace("_", " ")
            sock.sendall(text.encode() + b"\r\n")
            return text

        try:
            if not say("greet", "220 mx.test ESMTP").startswith("220"):
                return
            sender, recipients = "", []
            while line := file.readline():
                text = line.decode("utf-8", "replace").rstrip("\r\n")
                self.lines.append(text)
                verb = text.upper().split(" ")[0].split(":")[0]
                if verb == "EHLO":
                    offers = ["PIPELINING", "8BITMIME", "SMTPUTF8",
                              *(["STARTTLS"] if not tls and {"starttls", "badtls"} & set(words)
                                else []), *(["DSN"] if "dsn" in words else [])]
                    say("ehlo", "250-mx.test\r\n" + "\r\n".join(
                        "250-" + offer for offer in offers) + "\r\n250 ENHANCEDSTATUSCODES")
                elif verb == "STARTTLS":
                    sock.sendall(b"220 go\r\n")
                    if "badtls" in words:
                        sock.sendall(b"this is no TLS at all\r\n")
                        return
                    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                    context.load_cert_chain(self.certificate or "")
                    file.close()
                    sock = context.wrap_socket(sock, server_side=True)
                    file = sock.makefile("rb")
                    tls = True
                elif verb == "MAIL":
                    if say("mail", "250 2.1.0 ok").startswith("2"):
                        sender, recipients = text, []
                elif verb == "RCPT" and not sender:
                    sock.sendall(b"503 5.5.1 MAIL first\r\n")
                elif verb == "RCPT":
                    if say("rcpt", "250 2.1.5 ok").startswith("2"):
                        recipients.append(text)
                elif verb == "DATA":
                    if not recipients:
                        sock.sendall(b"554 5.5.1 none\r\n")
                        continue
                    if not say("data", "354 go").startswith("354"):
                        continue
                    message = b""
                    while (line := file.readline()) not in (b".\r\n", b""):
                        message += line.removeprefix(b".")
                        stop("content")
                    if not line:
                        return
                    if say("end", "250 2.0.0 taken").startswith("2"):
                        self.messages.append((sender, recipients, message, tls))
                elif verb == "QUIT":
                    sock.sendall(b"221 2.0.0 bye\r\n")
                    return
                else:
                    sock.sendall(b"250 2.0.0 ok\r\n")
        finally:
            with contextlib.suppress(OSError):
                sock.close()


class _Gone(Exception):
    """The connection is to be closed now."""
