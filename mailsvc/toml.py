"""What :mod:`tomllib` leaves out of TOML 1.0: where a key stands, how a value is written, and what
more there is in a document with mistakes.

:func:`locate` reads only text that tomllib has accepted, so it need not find a single mistake: it
walks over tokens and counts lines.  Names are decoded by tomllib itself.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from typing import Any, NamedTuple

#: How to reach a value: names of keys, and positions in arrays.
Path = tuple[str | int, ...]

_TOKEN = re.compile(
    r"""(?P<string>\"{3} (?: \\[\s\S] | (?!\"{3})[^\\] )* \"{3,5}
                 | '{3} (?: (?!'{3})[\s\S] )* '{3,5}
                 | " (?: \\. | [^"\\] )* "
                 | ' [^']* ')
      | (?P<space>[ \t\r]+ | \#[^\n]*)
      | (?P<mark>[\[\]{}=,.\n])
      | (?P<bare>[^ \t\r\n\#"'\[\]{}=,.]+)""", re.VERBOSE)


class _Token(NamedTuple):
    kind: str
    text: str
    line: int


_END = _Token("mark", "", 0)


def locate(text: str) -> dict[Path, int]:
    """The line, from 1, on which each key and table of *text* is first named.

    *text* is valid TOML.  Elements of arrays have no entry, but keys in them do, by their position.
    """
    return Outline(text).lines


class Outline:
    """What keys and tables a document, which is valid TOML, has.

    :ivar lines: see :func:`locate`.
    :ivar table: the one that is open at the end.
    :ivar last: the key or table that was named last.
    """

    def __init__(self, text: str) -> None:
        self.lines: dict[Path, int] = {}
        self.table: Path = ()
        self.last: Path = ()
        self._tokens = self._tokenize(text)
        self._elements: dict[Path, int] = {}  # of each array of tables, so far
        self._advance()
        self._document()

    @staticmethod
    def _tokenize(text: str) -> Iterator[_Token]:
        line = 1
        for match in _TOKEN.finditer(text):
            if match.lastgroup != "space":
                yield _Token(str(match.lastgroup), match[0], line)
            line += match[0].count("\n")

    def _advance(self) -> _Token:
        """Go to the next token, and return the one before."""
        token = getattr(self, "_token", _END)
        self._token = next(self._tokens, _END)
        return token

    def _at(self, *marks: str) -> bool:
        # The end counts as any mark, so that nothing waits for what will not come.
        return self._token is _END or (self._token.kind == "mark" and self._token.text in marks)

    def _document(self) -> None:
        while self._token is not _END:
            if self._at("\n"):
                self._advance()
            elif self._at("["):
                self.table = self.last = self._header()
            else:
                self._pair(self.table)

    def _header(self) -> Path:
        self._advance()
        many = self._at("[")
        if many:
            self._advance()
        line = self._token.line
        path: Path = ()
        for name in self._key():
            path = (*self._last(path), name)
            self.lines.setdefault(path, line)
        if many:
            self._elements[path] = self._elements.get(path, -1) + 1
            self._advance()
        self._advance()
        path = self._last(path)
        self.lines.setdefault(path, line)
        return path

    def _last(self, path: Path) -> Path:
        """*path*, or the last element so far when it is an array of tables."""
        return (*path, self._elements[path]) if path in self._elements else path

    def _key(self) -> list[str]:
        """The names of a dotted key, up to the mark behind it."""
        names = []
        while not self._at("=", "]"):
            kind, text, _ = self._advance()
            if kind != "mark":
                names.append(_name(text))
        return names

    def _pair(self, table: Path) -> None:
        line = self._token.line
        path = table
        for name in self._key():
            path = (*path, name)
            self.lines.setdefault(path, line)
        self.last = path
        self._advance()
        self._value(path)

    def _value(self, path: Path) -> None:
        if self._at("["):
            self._advance()
            index = 0
            while not self._at("]"):
                if self._at("\n", ","):
                    self._advance()
                else:
                    before = self._token
                    self._value((*path, index))
                    index += 1
                    if self._token is before:
                        self._advance()  # what is no TOML has an end, too
            self._advance()
        elif self._at("{"):
            self._advance()
            while not self._at("}"):
                if self._at("\n", ","):
                    self._advance()
                else:
                    self._pair(path)
            self._advance()
        else:
            # A number has a dot, a date and time two words.
            while not self._at(",", "]", "}", "\n"):
                self._advance()


def _name(token: str) -> str:
    if token[0] in "\"'":
        return str(tomllib.loads(f"name = {token}")["name"])
    return token


def literal(value: Any) -> str:
    """*value* (of those types that TOML has) on one line of TOML."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            # JSON's escapes are TOML's, but TOML wants DEL escaped too.
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case list():
            return "[" + ", ".join(map(literal, value)) + "]"
        case dict():
            pairs = [f"{_key_literal(key)} = {literal(item)}" for key, item in value.items()]
            return "{ " + ", ".join(pairs) + " }" if pairs else "{}"
    return str(value)


def _key_literal(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else literal(name)


_KEY = re.compile(r"""((?: [A-Za-z0-9_-]+ | "(?: \\. | [^"\\] )*" | '[^']*' | [. \t] )+) =""",
                  re.VERBOSE)


def assignment(text: str) -> tuple[tuple[str, ...], str]:
    """The path and the written value of ``KEY=VALUE``, KEY being dotted and perhaps quoted.

    :raises ValueError: when there is no such key in front of an equals sign.
    """
    match = _KEY.match(text)
    if match is None:
        raise ValueError(text)
    try:
        content = tomllib.loads(f"{match[1]} = 0")
    except tomllib.TOMLDecodeError as error:
        raise ValueError(text) from error
    path = []
    while isinstance(content, dict):
        ((name, content),) = content.items()
        path.append(name)
    return tuple(path), text[match.end():].strip()


def parsed(text: str) -> Any:
    """What *text* is as a TOML value, or *text* itself when it is none."""
    try:
        content = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    return content["value"] if len(content) == 1 else text
