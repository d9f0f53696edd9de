"""The configuration in effect, and why each key is what it is, for administrators."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mailsvc.config import Key
from mailsvc.console.call import Answer, Call, Page
from mailsvc.toml import literal


async def show(call: Call) -> Answer:
    """Every key, or those in whose name, value or meaning stands what is looked for."""
    wanted, changed = call.query["q"].casefold(), "changed" in call.query
    sections: dict[str, list[dict[str, Any]]] = {}
    count = 0
    for key, described in _described(call):
        texts = (str(key), described["value"], key.sentence)
        if (wanted and not any(wanted in text.casefold() for text in texts)) or (
                changed and not described["where"]):
            continue
        sections.setdefault(key.section, []).append(described)
        count += 1
    return Page("configuration.html", {"sections": sections, "count": count,
                                       "wanted": call.query["q"], "changed": changed})


def _described(call: Call) -> Iterator[tuple[Key, dict[str, Any]]]:
    settings = call.backend.settings
    for key, value in settings.entries():
        yield key, {
            "name": key.name, "value": literal(without_secrets(value)),
            "default": literal(key.default),
            "where": settings.given.get(str(key)), "sentence": key.sentence, "unit": key.unit,
            "expected": key.type}


def without_secrets(value: Any) -> Any:
    """*value*, with the password of whatever is a URL masked."""
    match value:
        case dict():
            return {name: without_secrets(each) for name, each in value.items()}
        case list():
            return [without_secrets(each) for each in value]
        case str():
            return _masked(value)
    return value


def _masked(text: str) -> str:
    scheme, found, rest = text.partition("://")
    login, at, place = rest.rpartition("@")
    user, colon, _ = login.partition(":")
    return f"{scheme}://{user}:…@{place}" if found and at and colon else text
