"""Mail exchangers on loopback addresses that behave as badly as a test wants."""

from __future__ import annotations

import contextlib
import socketserver
import ssl
import threading
from pathlib import Path
from typing import Any

from tests.loopback import Served


class Exchanger(Served):
    """An SMTP server at *address*; use as a context manager.

    :param behaviour: what each connection in turn meets, the last for ever; words with spaces
        between, or none for a server that takes everything:

        * ``greet=TEXT``, ``ehlo=``, ``starttls=``, ``mail=``, ``rcpt=``, ``data=``, ``end=`` with
          a reply, "_" for a space; the reply stands in the place of the good one;
        * ``hang=STAGE``, ``drop=STAGE``, ``slow=STAGE``: no answer, the connection closed, or an
          answer after half a second, at that stage; ``content`` is amid the message, ``end``
          behind it; ``lose=end``: the message is taken, and then the connection closed;
        * ``garbage=STAGE``, ``endless=STAGE``, ``trickle=STAGE``: octets that are no reply, a reply
          of ever more lines, an octet of one now and then;
        * ``lax``: what refuses MAIL takes the rest of the transaction all the same;
        * ``starttls``: offered, with *certificate*; ``badtls``: offered, and then it is no TLS;
        * ``ascii``: SMTPUTF8 is not offered; ``7bit``: nor is 8BITMIME;
        * ``dsn``: offered; ``offer=KEYWORD``, "_" for a space, likewise; ``requiretls``: inside
          TLS.

    :ivar messages: what was accepted with 250: reverse-path line, recipient lines, text, whether
        it came over TLS.
    :ivar read: the numbers of those after whose 250 the client said something that it cannot have
        sent ahead.
    :ivar connections: how many there were.
    """

    def __init__(self, address: str, port: int, *behaviour: str,
                 certificate: Path | None = None) -> None:
        self.address = address
        self.behaviour = behaviour or ("",)
        self.certificate = certificate
        self.messages: list[tuple[str, list[str], bytes, bool]] = []
        self.read: set[int] = set()
        self.lines: list[str] = []
        self.lock = threading.Lock()
        self.connections = 0
        exchanger = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError, _Gone):
                    _Conversation(exchanger, self.request).run()

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True
            request_queue_size = 200

        super().__init__(Server((address, port), Handler))


class _Conversation:
    """One connection."""

    def __init__(self, exchanger: Exchanger, sock: Any) -> None:
        self.exchanger = exchanger
        self.words = exchanger.behaviour[
            min(exchanger.connections, len(exchanger.behaviour) - 1)].split()
        exchanger.connections += 1
        self.replies = dict(word.split("=", 1) for word in self.words if "=" in word)
        self.stops = {word.split("=")[1]: word.split("=")[0] for word in self.words
                      if word.split("=")[0] in _STOPS}
        self.sock = sock
        self.file = sock.makefile("rb")
        self.tls = False
        self.sender = ""
        self.recipients: list[str] = []
        #: The number of the last message, until it is known that the client has read its reply.
        self.last: int | None = None

    def stop(self, stage: str) -> None:
        """Do what is to be done at *stage* in the place of an answer, or before it."""
        what = self.stops.get(stage)
        if what is not None:
            _STOPS[what](self)

    def hang(self) -> None:
        self.exchanger.over.wait(120)
        raise _Gone

    def drop(self) -> None:
        raise _Gone

    def slow(self) -> None:
        self.exchanger.over.wait(0.5)

    def garbage(self) -> None:
        self.sock.sendall(b"\x16\x03\x01\x00\xff no reply\r\n" * 3)
        self.hang()

    def endless(self) -> None:
        while not self.exchanger.over.is_set():
            self.sock.sendall(b"220-and more\r\n" * 100)

    def trickle(self) -> None:
        while not self.exchanger.over.wait(0.2):
            self.sock.sendall(b"2")

    def say(self, stage: str, text: str) -> str:
        """Answer with *text*, or what is to stand in its place."""
        self.stop(stage)
        text = self.replies.get(stage, text).replace("_", " ")
        self.sock.sendall(text.encode() + b"\r\n")
        return text

    def run(self) -> None:
        """Answer commands until the end."""
        try:
            if not self.say("greet", "220 mx.test ESMTP").startswith("220"):
                return
            while line := self.file.readline():
                text = line.decode("utf-8", "replace").rstrip("\r\n")
                self.exchanger.lines.append(text)
                verb = text.upper().split(" ")[0]
                if verb not in ("MAIL", "RCPT", "DATA"):  # RFC 2920 §3.1
                    self.heard()
                self.command(verb, text)
        finally:
            with contextlib.suppress(OSError):
                self.sock.close()

    def heard(self) -> None:
        """What comes now the client has said after it read the last reply."""
        if self.last is not None:
            self.exchanger.read.add(self.last)
            self.last = None

    def command(self, verb: str, text: str) -> None:
        """Answer one command."""
        if verb == "EHLO":
            offers = ["PIPELINING", *([] if "7bit" in self.words else ["8BITMIME"]),
                      *([] if "ascii" in self.words else ["SMTPUTF8"])]
            if not self.tls and {"starttls", "badtls"} & set(self.words):
                offers.append("STARTTLS")
            if "dsn" in self.words:
                offers.append("DSN")
            if self.tls and "requiretls" in self.words:
                offers.append("REQUIRETLS")
            offers += [word[6:].replace("_", " ") for word in self.words
                       if word.startswith("offer=")]
            self.say("ehlo", "250-mx.test\r\n" + "".join(
                f"250-{offer}\r\n" for offer in offers) + "250 ENHANCEDSTATUSCODES")
        elif verb == "STARTTLS":
            self.start_tls()
        elif verb == "MAIL":
            if self.say("mail", "250 2.1.0 ok").startswith("2"):
                self.sender, self.recipients = text, []
        elif verb in ("RCPT", "DATA") and not self.sender and "lax" not in self.words:
            self.sock.sendall(b"503 5.5.1 MAIL first\r\n")
        elif verb == "RCPT":
            if self.say("rcpt", "250 2.1.5 ok").startswith("2"):
                self.recipients.append(text)
        elif verb == "DATA":
            self.data()
        elif verb == "QUIT":
            self.sock.sendall(b"221 2.0.0 bye\r\n")
            raise _Gone
        else:
            self.sock.sendall(b"250 2.0.0 ok\r\n")

    def start_tls(self) -> None:
        """Go on in TLS, or do as if."""
        if not self.say("starttls", "220 go").startswith("220"):
            return
        if "badtls" in self.words:
            self.sock.sendall(b"this is no TLS at all\r\n")
            raise _Gone
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.exchanger.certificate or "")
        self.file.close()
        self.sock = context.wrap_socket(self.sock, server_side=True)
        self.file = self.sock.makefile("rb")
        self.tls = True

    def data(self) -> None:
        """Take a message."""
        if not self.recipients:
            self.sock.sendall(b"554 5.5.1 none\r\n")
            return
        if not self.say("data", "354 go").startswith("354"):
            return
        message = b""
        while (line := self.file.readline()) not in (b".\r\n", b""):
            self.heard()
            message += line.removeprefix(b".")
            self.stop("content")
        if not line:
            raise _Gone
        self.stop("end")
        text = self.replies.get("end", "250 2.0.0 taken").replace("_", " ")
        if text.startswith("2"):
            with self.exchanger.lock:
                self.last = len(self.exchanger.messages)
                self.exchanger.messages.append((self.sender, self.recipients, message, self.tls))
        self.sender = ""
        if "lose=end" in self.words:
            raise _Gone
        self.sock.sendall(text.encode() + b"\r\n")


_STOPS = {word: getattr(_Conversation, word)
          for word in ("hang", "drop", "slow", "garbage", "endless", "trickle")}


class _Gone(Exception):
    """The connection is to be closed now."""
