"""What the commands that talk to other servers have in common: where, and with which secret."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from mailsvc.cli.arguments import BYTE_ORDER_MARK


def host_and_port(text: str, port: int) -> tuple[str, int]:
    """What ``--server`` names: HOST, HOST:PORT, [IPv6]:PORT, or the path of a socket.

    :param port: what ``--port`` says, 0 for nothing; it may not contradict.
    """
    host, colon, given = text.rpartition(":")
    if text.startswith("/"):
        return text, port
    if not colon or (":" in host and not host.endswith("]")):
        return text.strip("[]"), port
    if text.endswith("]"):
        return text[1:-1], port
    if not given.isdecimal() or not 0 < int(given[:6]) < 65_536:
        raise click.UsageError(f"--server {text}: {given!r} is not a port; expected HOST:PORT")
    if port and port != int(given):
        raise click.UsageError(f"--server {text} names one port, and --port {port} another; leave "
                               "one of them out")
    return host.strip("[]"), int(given)


#: What can be done about a certificate, by what is wrong with it (RFC 8460 §4.3).
_REMEDIES = {
    "certificate-not-trusted": "--ca FILE trusts the authority, or the self-signed certificate, in "
                               "FILE; --no-verify takes any certificate",
    "certificate-host-mismatch": "give --server a name that it is for; --no-verify takes any "
                                 "certificate",
    "certificate-expired": "--no-verify takes any certificate",
}


def is_no_host(text: str) -> bool:
    """Whether a connection failed, as *text* says, for there is no such host."""
    return "DNS lookup" in text or "is not a host" in text


def with_remedy(text: str, reason: str) -> str:
    """*text*, which says what is wrong, and what can be done if *reason* is about a certificate."""
    return "; ".join(filter(None, [text, _REMEDIES.get(reason)]))


def without_greeting(text: str, tls: str) -> str:
    """*text*, which says that no greeting came, and why that may be; *tls* as ``--tls`` has it."""
    if tls == "implicit":
        return text
    return f"{text}; if this port speaks TLS from the first octet, add --tls implicit"


def _can_ask() -> bool:
    # Standard input may be something else, such as the message.
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return sys.stdin.isatty()
    return True


def read_secret(place: str | None) -> str:
    """What ``--password-file`` holds: its first line; asked for without one."""
    if place is None:
        if not _can_ask():
            raise click.UsageError("no password, and no terminal to ask for one; "
                                   "pipe it in and add --password-stdin")
        return str(click.prompt("Password", hide_input=True, err=True))
    try:
        text = sys.stdin.readline() if place == "-" else Path(place).read_text("utf-8")
        text = text.removeprefix(BYTE_ORDER_MARK)
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"--password-file {place}: {error}") from None
    return text.splitlines()[0] if text else ""
