"""What servers of tests have in common that run in threads of their own."""

from __future__ import annotations

import socketserver
import threading
from types import TracebackType
from typing import Self


class Served:
    """Something that answers as long as it is used as a context manager.

    :param server: what answers; it listens already.
    :ivar port: where; *over*: set when it is at an end.
    """

    def __init__(self, server: socketserver.TCPServer) -> None:
        self._server = server
        self.port: int = server.server_address[1]
        self.over = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
