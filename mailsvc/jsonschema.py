"""The configuration file as a JSON Schema, for editors and for programs that write such files.

``mailsvc config schema`` prints it.  It is made from the declarations that the parser goes by
(:data:`mailsvc.config.KEYS`), in the dialect of 2020-12.  What it refuses the parser refuses too;
the parser knows more, such as what a network looks like, and says it in better words.
"""

from __future__ import annotations

import typing
from typing import Any

from mailsvc.config import KEYS, SECTIONS
from mailsvc.settings import AtLeast, Key, OneOf

_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}


def json_schema() -> dict[str, Any]:
    """The schema of the whole file."""
    sections: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    for key in KEYS.values():
        sections[key.section][key.name] = _property(key)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "mailsvc.toml",
        "description": "The configuration of mailsvc.",
        **_object({name: _object(keys) for name, keys in sections.items()}),
    }


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _property(key: Key) -> dict[str, Any]:
    sentence = f"{key.sentence} In {key.unit}." if key.unit else key.sentence
    bounds: dict[str, Any] = {}
    if isinstance(key.check, OneOf):
        bounds["enum"] = list(key.check.choices)
    elif isinstance(key.check, AtLeast):
        bounds["minimum"] = key.check.minimum
    return {**_type(key.kind), **bounds, "default": key.default, "description": sentence}


def _type(kind: Any) -> dict[str, Any]:
    items = typing.get_args(kind)
    if typing.get_origin(kind) is list:
        return {"type": "array", "items": _type(items[0])}
    if typing.get_origin(kind) is dict:
        return {"type": "object", "additionalProperties": _type(items[1])}
    return {"type": _TYPES[kind]}
