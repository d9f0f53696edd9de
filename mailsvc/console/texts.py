"""The words of the console: English in the pages, and a catalogue for each other language.

A page says ``_("Send")``.  A catalogue is a TOML file in ``texts/``, a table from the English words
to the others; what it lacks is shown in English (tests/test_console_texts.py lets it lack nothing).
Values are filled in by name: ``_("{count} messages", count=3)``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from functools import cache
from importlib.resources import files

#: What the languages call themselves, the first being that of the pages.
LANGUAGES = {"en": "English", "ko": "한국어"}

Translate = Callable[..., str]


@cache
def catalogue(language: str) -> dict[str, str]:
    """The words of *language* by the English ones."""
    if language == next(iter(LANGUAGES)):
        return {}
    text = (files("mailsvc.console") / "texts" / f"{language}.toml").read_text("utf-8")
    return tomllib.loads(text)


def translator(language: str) -> Translate:
    """What pages in *language* call ``_``."""
    words = catalogue(language)

    def translate(text: str, **values: object) -> str:
        found = words.get(text, text)
        return found.format(**values) if values else found

    return translate


def choose(accepted: str, chosen: str = "") -> str:
    """The language of a page.

    :param accepted: the field Accept-Language (RFC 9110 §12.5.4).
    :param chosen: what the reader has chosen, which counts more.
    """
    if chosen in LANGUAGES:
        return chosen
    wanted: list[tuple[float, str]] = []
    for each in accepted.split(",")[:20]:
        name, _, weight = each.strip().partition(";q=")
        try:
            wanted.append((float(weight or 1), name.partition("-")[0].lower()))
        except ValueError:
            continue
    # sorted is stable: of equals the first.
    for _, name in sorted(wanted, key=lambda pair: -pair[0]):
        if name in LANGUAGES:
            return name
    return next(iter(LANGUAGES))
