"""The style sheet, the script and the icon: read once, kept for a year by browsers.

Their addresses carry a digest of what they hold, so that a new version has a new address.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files

from mailsvc.console.call import Answer, Call, Content, Problem

TYPES = {"console.css": "text/css; charset=utf-8", "console.js": "text/javascript; charset=utf-8",
         "icon.svg": "image/svg+xml"}


@cache
def _content(name: str) -> bytes:
    return (files("mailsvc.console") / "static" / name).read_bytes()


@cache
def address(name: str) -> str:
    """Where one of :data:`TYPES` is."""
    return f"/static/{name}?{hashlib.sha256(_content(name)).hexdigest()[:12]}"


async def show(call: Call) -> Answer:
    """A file."""
    name = call.words["name"]
    if name not in TYPES:
        raise Problem("There is no such page.", 404)
    return Content(_content(name), TYPES[name], lasting=True)
