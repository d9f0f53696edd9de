"""The mistakes in a document that is to be TOML, all of them, and what it holds beside them.

:mod:`tomllib` ends with the first one.  Here the line of each is left out and the rest is read
again, so that whoever wrote the document hears of all at once.  What a mistake makes of the lines
behind it cannot always be told: a text that nothing ends hides all that follows.
"""

from __future__ import annotations

import re
import tomllib
from typing import Any, NamedTuple

from mailsvc.toml import Outline, Path

#: After so many the rest is not read any more.
MOST = 25


class Mistake(NamedTuple):
    """Something that is no TOML.

    :ivar line: from 1, as is *column*.
    :ivar problem: what is wrong, in tomllib's words.
    :ivar path: the key or table that the line is about, or () when that cannot be told.
    :ivar value: how that key's value is written on the line, or None.
    :ivar begun: the line on which the key or table stands already, or the text or array begins that
        has no end; 0 for none.
    """

    line: int
    column: int
    problem: str
    path: Path = ()
    value: str | None = None
    begun: int = 0


_PAIR = re.compile(r"""[ \t]* ([A-Za-z0-9_-]+ (?: [ \t]* \. [ \t]* [A-Za-z0-9_-]+ )*) [ \t]*
                       = [ \t]* (.*?) [ \t]* (?: (?<=[ \t]) \# .* )? $""", re.VERBOSE)
_KEY = re.compile(r"[ \t]*([A-Za-z0-9_-]+)(?:[ \t]|:|$)")
#: How a line begins that does not belong to the one above.
_STATEMENT = re.compile(
    r"""[ \t]* (?: \[\[?[ \t]*[A-Za-z"'] | [A-Za-z0-9_.-]+ [ \t]* = | \# | $)""", re.VERBOSE)


def read(text: str) -> tuple[dict[str, Any], dict[Path, int], list[Mistake]]:
    """What *text* holds, the line of each key in it, and its mistakes in their order.

    :raises RecursionError: arrays or tables are nested too deep.
    """
    lines = text.replace("\r\n", "\n").split("\n")
    mistakes: list[Mistake] = []
    while len(mistakes) < MOST:
        remaining = "\n".join(lines)
        try:
            return tomllib.loads(remaining), Outline(remaining).lines, sorted(mistakes, key=_line)
        except tomllib.TOMLDecodeError as error:
            mistake, first, last = _mistake(lines, str(error))
        mistakes.append(mistake)
        lines[first:last] = [""] * (last - first)
    return {}, {}, sorted(mistakes, key=_line)


def _line(mistake: Mistake) -> int:
    return mistake.line


def _mistake(lines: list[str], message: str) -> tuple[Mistake, int, int]:
    """What *message* says of *lines*, and which of them, from 0, are to be left out for it."""
    place = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)\Z", message)
    assert place is not None
    problem = message[:place.start()]
    if place[1] is None:
        begun = _begin_of_last(lines)
        return Mistake(len(lines), len(lines[-1]) + 1, problem, begun=begun + 1), begun, len(lines)
    line, column = int(place[1]), int(place[2])
    first, last = line - 1, _end(lines, line - 1)
    begun = first if _is_whole(lines[:first]) else _begin_of_last(lines[:first])
    if begun < first and lines[first] and _STATEMENT.match(lines[first]):
        # A table or key where an array goes on: that is what is wrong, not the key.
        return (Mistake(line, 1, "Unclosed array, inline table or text", begun=begun + 1),
                begun, first)
    before = Outline("\n".join(lines[:begun]) + "\n")
    if problem.startswith("Cannot"):
        path = Outline("\n".join(lines[:line]) + "\n").last
        if re.match(r"[ \t]*\[", lines[first]):
            # Its keys are of no table that could be told.
            last = next((number for number in range(line, len(lines))
                         if re.match(r"[ \t]*\[", lines[number])), len(lines))
        return Mistake(line, column, problem, path, begun=before.lines.get(path, 0)), first, last
    if pair := _PAIR.match(lines[first]):
        names = re.split(r"[ \t]*\.[ \t]*", pair[1])
        return Mistake(line, column, problem, (*before.table, *names), pair[2]), first, last
    key = _KEY.match(lines[first])
    path = (*before.table, key[1]) if key else ()
    return Mistake(line, column, problem, path), first, last


def _begin_of_last(lines: list[str]) -> int:
    """The line, from 0, where the statement begins that has no end."""
    for number in range(len(lines) - 1, 0, -1):
        if lines[number] and _STATEMENT.match(lines[number]) and _is_whole(lines[:number]):
            return number
    return 0


def _is_whole(lines: list[str]) -> bool:
    try:
        tomllib.loads("\n".join(lines))
    except tomllib.TOMLDecodeError:
        return False
    return True


def _end(lines: list[str], first: int) -> int:
    """Behind which line, from 0, what begins on *first* ends."""
    opened = sum(lines[first].count(mark) for mark in "[{") - sum(
        lines[first].count(mark) for mark in "]}")
    last = first + 1
    if opened > 0 and "=" in lines[first]:
        while last < len(lines) and not _STATEMENT.match(lines[last]):
            last += 1
    return last
