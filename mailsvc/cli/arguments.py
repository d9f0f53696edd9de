"""What arguments may be: addresses, domains, octets.  A wrong one ends the command, status 2."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

from mailsvc.mail import Address
from mailsvc.names import DirectoryError, check_domain, parse_address


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


MAILBOX = _Mailbox()
DOMAIN = _Domain()
OCTETS = _Octets()


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
