"""HTTP for programs: small pages that anybody may ask for, and no more than that.

Nothing is to be had by other methods than GET and HEAD, and what else a client sends is thrown away
as it comes.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

from twisted.internet.interfaces import IAddress
from twisted.protocols.policies import WrappingFactory
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

#: How long, in seconds, a client may be silent, and how many there may be.
_PATIENCE, _CLIENTS = 30, 50


def serving(root: Resource, reactor: Any) -> Any:
    """The factory of what is below *root*."""
    return _Few(_Site(root, requestFactory=_Request, timeout=_PATIENCE, reactor=reactor))


class Page(Resource):
    """Answers GET and HEAD."""

    def render(self, request: Request) -> bytes | int:
        if request.method not in (b"GET", b"HEAD"):
            # Twisted would tell those that it does not know that nobody does (501).
            request.setHeader(b"allow", b"GET, HEAD")
            return self.answer(request, b"only GET and HEAD\n", status=405)
        rendered: bytes | int = super().render(request)
        return rendered

    def answer(self, request: Request, content: bytes, kind: str = "text/plain; charset=utf-8",
               status: int = 200) -> bytes:
        request.setResponseCode(status)
        request.setHeader(b"content-type", kind.encode("ascii"))
        request.setHeader(b"cache-control", b"no-store")
        return content


class _Request(Request):
    def gotLength(self, length: int | None) -> None:
        # Twisted would keep a body in memory, or in a file, to its end.
        self.content = BytesIO()

    def handleContentChunk(self, data: bytes) -> None:
        pass


class _Site(Site):
    def log(self, request: Any) -> None:
        """Nothing: a line for each request would hide those that matter."""


class _Few(WrappingFactory):
    """Takes a connection while there are few."""

    noisy = False

    def buildProtocol(self, addr: IAddress | None) -> Any:
        return super().buildProtocol(addr) if len(self.protocols) < _CLIENTS else None
