"""How one setting is declared: its default, type, unit and sentence, in the class that uses it.

A *section* is a frozen dataclass whose fields are made by :func:`setting`.  It stands in the module
that obeys it (``SMTPSettings`` in ``smtp/session.py``), and ``config.py`` gathers the sections into
the configuration file, its commented example, its documentation and its error messages.  So a
setting is one line in one place.

This module reads no file and knows no section.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Callable
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
