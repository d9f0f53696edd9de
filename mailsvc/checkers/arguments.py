"""What stands behind ``--auth NAME:``, read into the settings of a checker.

It is written like an endpoint string: ``key=value`` pairs between colons, where a backslash makes
the next character (a colon, a backslash) an ordinary one.  The pair ``file=PATH`` reads further
keys from a TOML file, which needs no such care, nor that of a shell, nor that of systemd, to which
``%s`` in a unit means something else; a key that is given in both is taken from the string.

The keys are the fields of a frozen dataclass of :func:`mailsvc.settings.setting` fields, of strings
and numbers.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
import typing
from importlib.util import find_spec
from typing import Any, TypeVar

from twisted.cred.strcred import InvalidAuthArgumentString

Settings = TypeVar("Settings")

_PIECE = re.compile(r"\\(?P<escaped>.)|(?P<colon>:)|(?P<plain>[^\\:]+|\\)", re.DOTALL)
_KINDS = {int: "an integer", float: "a number", str: "a string"}


class BadArguments(InvalidAuthArgumentString):
    """An argument string that no checker can be made of; the text says what was expected."""


def read(kind: type[Settings], text: str, first: str = "file") -> Settings:
    """The settings of class *kind* that *text* gives.

    :param first: the key of a value that stands without one.
    :raises BadArguments: with every mistake.
    """
    given: dict[str, Any] = {}
    problems = []
    for piece in _pieces(text):
        name, equals, value = piece.partition("=")
        if not equals:
            name, value = first, piece
        if name in given:
            problems.append(f"{name} is given twice: expected once")
        given[name] = value
    kinds = typing.get_type_hints(kind)
    for name, value in given.items():
        if kinds.get(name, str) is not str:
            given[name] = _number(value)
    path = given.pop("file", None)
    if path is not None:
        given = {**_table(path), **given}
    fields = {each.name: each for each in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in given.keys() - fields.keys():
        problems.append(f"{name}: no such key; expected some of file, {', '.join(fields)}")
    for name, each in fields.items():
        value = given.get(name, each.default)
        expected = _expected(kinds[name], value, each.metadata["check"])
        if expected is not None:
            problems.append(f"{name}={value}: expected {expected}" if name in given else
                            f"{name} is missing: expected {expected}")
    if problems:
        raise BadArguments("; ".join(problems))
    return kind(**given)


def explain(kind: type) -> str:
    """The keys of a class of settings, for people: a line each, with its default."""
    lines = []
    for each in dataclasses.fields(kind):
        unit = f" {each.metadata['unit']}" if each.metadata["unit"] else ""
        default = "" if each.default == "" else f" [default: {each.default}{unit}]"
        lines.append(f"{each.name}: {each.metadata['sentence']}{default}")
    lines.append("file: A TOML file with more of these keys.")
    lines += ["", "Keys are written KEY=VALUE with colons between them; a colon or a backslash in "
                  "a value takes a backslash before it, which a file does not need."]
    return "\n".join(lines)


def require(module: str, extra: str) -> None:
    """Say what to install when *module* cannot be imported.

    :raises BadArguments: it cannot.
    """
    if find_spec(module) is None:
        raise BadArguments(f"the package {module} is not installed: expected an installation made "
                           f"with pip install 'mailsvc[{extra}]'")


def contents(key: str, path: str) -> bytes:
    """What the file at *path*, named by *key*, holds.

    :raises BadArguments: it cannot be read.
    """
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except OSError as error:
        raise BadArguments(f"{key}={path}: cannot be read ({error.strerror}): expected a file that "
                           f"this user (uid {os.geteuid()}) may read") from error


def secret(key: str, path: str) -> str:
    """The one line that the file at *path*, named by *key*, holds.

    :raises BadArguments: it cannot be read, or holds anything else.
    """
    try:
        lines = contents(key, path).decode().splitlines()
    except UnicodeDecodeError:
        lines = []
    if len(lines) != 1 or not lines[0]:
        raise BadArguments(f"{key}={path}: expected a file of one line, the secret, in UTF-8")
    return lines[0]


def _pieces(text: str) -> list[str]:
    pieces = [""]
    for match in _PIECE.finditer(text):
        if match["colon"]:
            pieces.append("")
        else:
            pieces[-1] += match["escaped"] or match["plain"]
    return [piece for piece in pieces if piece]


def _number(text: str) -> int | float | str:
    for kind in int, float:
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _table(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(contents("file", path).decode("utf-8-sig"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadArguments(f"file={path}: expected TOML ({error})") from error


def _expected(kind: type, value: object, check: Any) -> str | None:
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or isinstance(value, bool):
        return _KINDS[kind]
    return check(value) if check else None
