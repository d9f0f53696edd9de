"""The paths of HTTP routes: a name in braces stands for one segment."""

from __future__ import annotations

import urllib.parse


def match(route: str, path: str) -> dict[str, str] | None:
    """What the names in *route* stand for in *path*, as it came in a request; None when it is
    another's."""
    segments, asked = route.split("/"), path.split("/")
    if len(segments) != len(asked):
        return None
    words: dict[str, str] = {}
    for segment, word in zip(segments, asked, strict=True):
        if segment.startswith("{"):
            words[segment.strip("{}")] = urllib.parse.unquote(word)
        elif segment != word:
            return None
    return words if all(words.values()) else None
