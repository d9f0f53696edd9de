"""An HTTPS server on loopback that answers what a test wants."""

from __future__ import annotations

import http.server
import ssl
from pathlib import Path

from tests.loopback import Served


class PolicyHost(Served):
    """Answers by the host that is asked for; use as a context manager.

    :param address: where it listens, at *port*; 0 for any.
    :param certificate: a PEM file with chain and key.
    :ivar answers: host -> status, media type and content; others get 404.  The status 0 is for the
        octets to say in the place of an answer, over and over until the end.
    :ivar asked: the hosts and paths that were asked for.
    :ivar posted: host -> what was posted there: path, media type, content.
    """

    def __init__(self, certificate: Path, address: str = "127.0.0.1", port: int = 0) -> None:
        self.answers: dict[str, tuple[int, str, bytes]] = {}
        self.asked: list[tuple[str, str]] = []
        self.posted: list[tuple[str, str, str, bytes]] = []
        host = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.headers["Host"].partition(":")[0]
                host.asked.append((name, self.path))
                status, kind, content = host.answers.get(name, (404, "text/plain", b"no"))
                while status == 0 and not host.over.wait(0 if content else 0.1):
                    self.wfile.write(content)
                self.send_response(status)
                if status == 301:
                    self.send_header("Location", content.decode())
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                name = self.headers["Host"].partition(":")[0]
                host.posted.append((name, self.path, self.headers["Content-Type"], content))
                self.send_response(host.answers.get(name, (204, "", b""))[0])
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                """Clients leave, or do not like the certificate."""

        super().__init__(Server((address, port), Handler))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False)
