"""The API on its listeners: below its path on that of the console, and alone on its own.

Of the latter, a Unix socket tells who is on the other end: root, and the user who runs the service,
are its administrators, and need not log in.
"""

from __future__ import annotations

import os
from typing import cast

from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import Request

from mailsvc.api.call import ROOT
from mailsvc.api.exchange import Exchange, Held
from mailsvc.connections import Connections, peer_uid
from mailsvc.console.call import Backend
from mailsvc.console.channel import Channel, WebFactory


class Api:
    """The API over *backend*."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._held = Held()

    def below_its_path(self, request: Request) -> Exchange | None:
        """Who answers a request to the console; None when it is for a page."""
        channel = cast(Channel, request.channel)
        path = channel.path.partition(b"?")[0]
        if not (path + b"/").startswith(ROOT.encode() + b"/"):
            return None
        return Exchange(request, self._backend, self._held, local=False)

    def factory(self, connections: Connections) -> WebFactory:
        """What serves it alone."""
        return _Factory(self, connections)

    def exchange(self, request: Request) -> Exchange:
        """Who answers a request to it alone."""
        uid = peer_uid(cast(Channel, request.channel).transport)
        return Exchange(request, self._backend, self._held, local=uid in (0, os.geteuid()))


class _Factory(WebFactory):
    def __init__(self, api: Api, connections: Connections) -> None:
        super().__init__(_Request, connections, api._backend.reactor)
        self.api = api


class _Request(Request):
    """Everything of it is the exchange's."""

    _exchange: Exchange

    def gotLength(self, length: int | None) -> None:
        super().gotLength(0)
        self._exchange = cast(_Factory, self.channel.factory).api.exchange(self)
        self._exchange.begin(length)

    def handleContentChunk(self, data: bytes) -> None:
        self._exchange.feed(data)

    def process(self) -> None:
        self._exchange.end()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._exchange.lost()
        super().connectionLost(reason)
