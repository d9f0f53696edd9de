"""An HTTP server on loopback that receives webhooks, as badly as a test wants."""

from __future__ import annotations

import http.server
import json
import ssl
import threading
from pathlib import Path
from typing import Any, NamedTuple

from standardwebhooks.webhooks import Webhook

from tests.loopback import Served


class Received(NamedTuple):
    """One request.

    :ivar path: of the URL.
    :ivar headers: by names in lower case.
    :ivar answer: what it was answered.
    """

    path: str
    headers: dict[str, str]
    body: bytes
    answer: int

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def event(self) -> dict[str, Any]:
        return dict(json.loads(self.body))


class Receiver(Served):
    """Receives; use as a context manager.

    :param certificate: a PEM file with chain and key, for https.
    :ivar answer: the status that requests get from now on; 0 for none at all, -1 for a connection
        that is closed; 3xx leads to the path /elsewhere.
    :ivar requests: those that came, with whatever they were answered.
    """

    def __init__(self, port: int = 0, certificate: Path | None = None) -> None:
        self.answer = 204
        self.requests: list[Received] = []
        self._lock = threading.Lock()
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                answer = receiver.answer
                with receiver._lock:
                    receiver.requests.append(Received(self.path, {
                        name.lower(): value for name, value in self.headers.items()}, body, answer))
                if answer <= 0:
                    self.close_connection = True
                    if answer == 0:
                        receiver.over.wait()
                    return
                text = b"" if answer == 204 else f"this is {answer}".encode()
                self.send_response(answer)
                if answer // 100 == 3:
                    self.send_header("Location", "/elsewhere")
                if answer != 204:
                    self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 200

            def handle_error(self, request: object, client_address: object) -> None:
                """Clients leave, or do not like the certificate."""

        super().__init__(Server(("127.0.0.1", port), Handler))
        self._scheme = "http"
        if certificate is not None:
            self._scheme = "https"
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False)

    def url(self, path: str = "/hook?token=abc", host: str = "127.0.0.1") -> str:
        return f"{self._scheme}://{host}:{self.port}{path}"

    def taken(self, secret: str, *kinds: str) -> list[dict[str, Any]]:
        """The events of these kinds, or all, that were taken, their signatures verified by a
        library of others."""
        found = []
        for each in self.requests:
            if 200 <= each.answer < 300:
                Webhook(secret).verify(each.body, each.headers)
                if not kinds or each.event["type"] in kinds:
                    found.append(each.event)
        return found
