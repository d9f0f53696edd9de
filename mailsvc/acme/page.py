"""What the authority fetches: ``/.well-known/acme-challenge/TOKEN`` (RFC 8555 §8.3).

The answer is the token and our thumbprint, whatever the token: only the holder of the account's key
has a use for it.  Everything else is 404.
"""

from __future__ import annotations

import re
from typing import Any

from twisted.web.resource import Resource
from twisted.web.server import Request

from mailsvc.acme.files import Files
from mailsvc.web import Page, serving

#: RFC 8555 §8.1: base64url, of 128 bits at least.
_TOKEN = re.compile(rb"[A-Za-z0-9_-]{22,256}")


def challenges(files: Files, reactor: Any) -> Any:
    """The factory that answers by what is in *files*."""
    root, known = Page(), Page()
    root.putChild(b".well-known", known)
    known.putChild(b"acme-challenge", _Challenges(files))
    return serving(root, reactor)


class _Challenges(Page):
    def __init__(self, files: Files) -> None:
        super().__init__()
        self._files = files

    def getChild(self, path: bytes, request: Request) -> Resource:
        thumbprint = self._files.thumbprint
        if thumbprint is None or request.postpath or not _TOKEN.fullmatch(path):
            return super().getChild(path, request)
        return _Authorization(path + b"." + thumbprint)


class _Authorization(Page):
    def __init__(self, content: bytes) -> None:
        super().__init__()
        self._content = content

    def render_GET(self, request: Request) -> bytes:
        return self.answer(request, self._content, "application/octet-stream")
