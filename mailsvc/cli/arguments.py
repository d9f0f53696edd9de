"""What arguments may be: addresses, octets, times …  A wrong one ends the command, status 2."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

from mailsvc.mail import Address
from mailsvc.names import DirectoryError, check_domain, parse_address

#: What some editors put at the beginning of a file; no part of a password in it.
BYTE_ORDER_MARK = "\ufeff"
#: The longest time that can be asked for, in seconds: a hundred years.
_MOST_SECONDS = 3_155_760_000


class _Mailbox(click.ParamType):
    name = "NAME@DOMAIN"

    def convert(self, value: Any, param: click.Parameter | None,
                ctx: click.Context | None) -> Address:
        try:
            return parse_address(value)
        except DirectoryError as error:
            self.fail(str(error), param, ctx)


class _Domain(click.ParamType):
    name = "DOMAIN"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return check_domain(value)
        except DirectoryError as error:
            self.fail(str(error), param, ctx)


class _Octets(click.ParamType):
    name = "OCTETS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"([0-9]{1,18})([KMGT]?)", value, re.IGNORECASE | re.ASCII)
        if match is None:
            self.fail(f"{value!r} is not a size; expected octets such as 500000, 500K, 20M or 1G "
                      "(powers of 1,024), or 0 for no limit", param, ctx)
        return int(match[1]) << 10 * " KMGT".index(match[2].upper() or " ")


class _Duration(click.ParamType):
    name = "DURATION"
    _seconds: dict[str, int] = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}  # noqa: RUF012

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"([0-9]{1,10})([smhdw])", value, re.ASCII)
        seconds = int(match[1]) * self._seconds[match[2]] if match else 0
        if not 0 < seconds <= _MOST_SECONDS:
            self.fail(f"{value!r} is not a time; expected seconds, minutes, hours, days or weeks "
                      "such as 90s, 30m, 12h, 7d or 52w, a hundred years at most", param, ctx)
        return seconds


class Named(click.Path):
    """A path.  An empty one, as of a variable of the shell that is not set, is a mistake: it would
    be the present directory, or none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("it is empty; name a place", param, ctx)
        return super().convert(value, param, ctx)


MAILBOX = _Mailbox()
DOMAIN = _Domain()
OCTETS = _Octets()
DURATION = _Duration()


def octets_text(octets: int) -> str:
    """A quota as one would type it: 1G for 1073741824."""
    for suffix, shift in (("T", 40), ("G", 30), ("M", 20), ("K", 10)):
        if octets and octets % (1 << shift) == 0:
            return f"{octets >> shift}{suffix}"
    return str(octets)


def password_options(sentence: str) -> Callable[[Any], Any]:
    """Give a command the options --password-file and --password-stdin, whose value is the place of
    a password: a path, or "-" for standard input, or None where neither is given.

    :param sentence: what it is for.
    """
    def give(command: Any) -> Any:
        command = click.option("--password-stdin", "password_file", flag_value="-",
                               help="The same as --password-file -.")(command)
        return click.option("--password-file", "password_file", metavar="FILE|-",
                            help=sentence)(command)

    return give
