"""How one setting is declared: its default, type, unit and sentence, in the class that uses it; and
what such a :class:`Key` expects.

A *section* is a frozen dataclass whose fields are made by :func:`setting`.  It stands in the module
that obeys it (``SMTPSettings`` in ``smtp/session.py``), and ``config.py`` gathers the sections into
the configuration file, its commented example, its documentation and its error messages.  So a
setting is one line in one place.

This module reads no file and knows no section.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import math
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

#: A check takes the value and returns what was expected instead, or None when the value will do.
Check = Callable[[Any], str | None]
#: Takes the value and returns what of it others than its owner may see.
Shown = Callable[[Any], Any]


def setting(default: Any, sentence: str, *, unit: str = "", check: Check | None = None,
            shown: Shown | None = None) -> Any:
    """Declare one field of a section.

    *default* may be an immutable value or a ``list``/``dict`` (copied per instance).  *sentence*
    says what the setting does, for an operator.  *unit* is "octets", "seconds", … or empty.
    *shown* leaves out what is secret in a value, beside the passwords in URLs.
    """
    metadata = {"sentence": sentence, "unit": unit, "check": check, "shown": shown}
    if isinstance(default, list | dict):
        kind = type(default)
        return dataclasses.field(default_factory=lambda: kind(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class AtLeast:
    """A check for numbers: *minimum* or more."""

    def __init__(self, minimum: int | float) -> None:
        self.minimum = minimum

    def __call__(self, value: Any) -> str | None:
        return None if value >= self.minimum else f"{self.minimum} or more"


#: As a check is written where a setting is declared.
at_least = AtLeast


class OneOf:
    """A check for names: one of *choices*, which stand for the type of such a setting as well."""

    def __init__(self, *choices: str) -> None:
        self.choices = choices

    def __str__(self) -> str:
        return "one of " + ", ".join(self.choices)

    def __call__(self, value: Any) -> str | None:
        return None if value in self.choices else str(self)


def networks(values: list[str]) -> str | None:
    """A check for networks in CIDR form, or single addresses."""
    try:
        for value in values:
            ipaddress.ip_network(value, strict=False)
    except ValueError:
        return 'networks like "192.0.2.0/24" and "2001:db8::/32"'
    return None


# ---- as a key of the configuration --------------------------------------------------------------

_ONE = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
_MANY = {bool: "true or false", int: "integers", float: "numbers", str: "strings"}


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the configuration, as its section declares it.

    :ivar kind: the annotation: bool, int, float, str, or a list or (by name) a dict of one of them.
    :ivar shown: leaves out what is secret in a value; None when nothing but passwords in URLs is.
    """

    section: str
    name: str
    kind: Any
    default: Any
    unit: str
    sentence: str
    check: Check | None
    shown: Shown | None

    def __str__(self) -> str:
        return f"{self.section}.{self.name}"

    @property
    def type(self) -> str:
        """What a value has to be, for people: "an integer"."""
        container, items = typing.get_origin(self.kind), typing.get_args(self.kind)
        if isinstance(self.check, OneOf):
            return str(self.check)
        if container is None:
            return _ONE[self.kind]
        return f"{'an array' if container is list else 'a table'} of {_MANY[items[-1]]}"

    @property
    def form(self) -> str:
        """Type and unit, for what lists the keys: "Number, seconds"."""
        kind = self.type.removeprefix("an ").removeprefix("a ").capitalize()
        return f"{kind}, {self.unit}" if self.unit else kind

    def expected(self, value: object) -> str | None:
        """What was expected instead of *value*, or None when it will do."""
        expected: str | None = self.type
        if _fits(self.kind, value):
            expected = self.check(value) if self.check else None
        return f"{expected} ({self.unit})" if expected and self.unit else expected


def _fits(kind: Any, value: object) -> bool:
    items = typing.get_args(kind)
    match value:
        case list():
            return typing.get_origin(kind) is list and all(_fits(items[0], x) for x in value)
        case dict():
            return typing.get_origin(kind) is dict and all(
                _fits(items[1], x) for x in value.values())
        case bool():
            return kind is bool
        case int():
            return kind in {int, float}
        case float():
            return kind is float and math.isfinite(value)
    return kind is str and isinstance(value, str)


def keys_of(section: str, cls: type) -> Iterator[Key]:
    """The keys of *section*, in the order in which *cls*, its dataclass, declares them."""
    kinds = typing.get_type_hints(cls)
    for key in dataclasses.fields(cls):
        default = (key.default if key.default_factory is dataclasses.MISSING
                   else key.default_factory())
        yield Key(section, key.name, kinds[key.name], default, **key.metadata)
