"""mailsvc.console.texts: each word of the pages stands in every catalogue, and no other does."""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailsvc.console import (
    domains,
    letters,
    live,
    meanings,
    overview,
    pages,
    sending,
    texts,
    tracing,
)
from mailsvc.queue.filter import STATUSES, summary
from mailsvc.queue.message import STATES

CONSOLE = Path(pages.__file__).parent
OTHERS = [language for language in texts.LANGUAGES if language != "en"]

_CALLS = re.compile(r'\b_\(\s*"((?:[^"\\]|\\.)*)"')
_CHOICES = re.compile(r"\b_\(\{(.*?)\}\[")
_VALUE = re.compile(r':\s*"([^"]*)"')


def words() -> set[str]:
    """Every English word or sentence that pages say through ``_``."""
    found = {*pages.NOTICES.values(), *meanings.all_meanings(), *overview.TILES,
             *overview.GRAPHS.values(), *overview.REASONS.values(), "something else",
             *tracing.PHASES, *domains.PURPOSES.values(), domains.SPF, domains.DKIM,
             *(words for _, words in domains.VERDICTS.values()), *sending.TLS_CHOICES.values(),
             *STATUSES, *STATES, *live.ENDINGS.values(), *live.CHOICES.values(),
             *(set(summary([])) - {"messages"}), *letters.FIELDS, "mail", "data"}
    for path in (CONSOLE / "templates").glob("*.html"):
        text = path.read_text()
        found |= {each.replace('\\"', '"') for each in _CALLS.findall(text)}
        for choices in _CHOICES.findall(text):
            found |= set(_VALUE.findall(choices))
    for path in CONSOLE.glob("*.py"):
        found |= set(_said(ast.parse(path.read_text())))
    return found - {"{reason}"}


def _said(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(
                function, "id", "")
            place = {"Problem": 0, "translate": 0, "Entry": 1, "BadForm": 0, "TooStrange": 0}.get(
                name)
            if place is not None and isinstance(node.args[place], ast.Constant):
                yield node.args[place].value


@pytest.mark.parametrize("language", OTHERS)
def test_a_catalogue_lacks_nothing_and_has_nothing_else(language: str) -> None:
    catalogue = texts.catalogue(language)
    assert sorted(words() - set(catalogue)) == [], "without a translation"
    assert sorted(set(catalogue) - words()) == [], "not said by any page"


@pytest.mark.parametrize("language", OTHERS)
def test_a_translation_has_the_same_names(language: str) -> None:
    def names(text: str) -> set[str]:
        return {name for _, name, _, _ in string.Formatter().parse(text) if name}

    for text, translated in texts.catalogue(language).items():
        assert names(text) == names(translated), text
        assert translated != text and translated.strip()


@pytest.mark.parametrize(("accepted", "chosen", "language"), [
    ("", "", "en"), ("ko-KR,ko;q=0.9,en;q=0.8", "", "ko"), ("de, en;q=0.7, ko;q=0.3", "", "en"),
    ("en;q=0.1, ko;q=0.2", "", "ko"), ("ko", "en", "en"), ("en", "ko", "ko"), ("en", "xx", "en"),
    ("ko;q=nonsense, en", "", "en"), ("," * 100_000, "", "en"),
])
def test_the_language_is_chosen(accepted: str, chosen: str, language: str) -> None:
    assert texts.choose(accepted, chosen) == language


def test_values_are_filled_in() -> None:
    assert texts.translator("en")("{count} messages", count=3) == "3 messages"
    assert "3" in texts.translator("ko")("{count} messages", count=3)
    assert texts.translator("ko")("not in any catalogue") == "not in any catalogue"
