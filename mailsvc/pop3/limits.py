"""The limits and choices of POP3: the [pop3] section."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mailsvc.settings import OneOf, at_least, networks, setting


def _expire(value: str) -> str | None:
    return None if re.fullmatch(r"NEVER|[0-9]+", value) else '"NEVER" or a number of days'


@dataclass(frozen=True, slots=True)
class POP3Settings:
    """The [pop3] section.  0 means no limit where a sentence says so."""

    autologout_seconds: float = setting(
        600,
        "Time without a command that ends a session, deleting nothing (RFC 1939: 600 or more).",
        unit="seconds",
        check=at_least(600),
    )
    login_seconds: float = setting(
        120, "Time from connecting to being logged in.", unit="seconds", check=at_least(1)
    )
    command_octets: int = setting(
        1024,
        "Longest command line, CRLF counted (RFC 2449 asks for 255 or more).",
        unit="octets",
        check=at_least(255),
    )
    errors: int = setting(20, "Malformed commands that end a connection.", check=at_least(1))
    free_errors: int = setting(
        10, "Malformed commands before each further one waits for its answer.", check=at_least(0)
    )
    error_delay_seconds: float = setting(
        0.5,
        "How much longer each such answer waits than the one before, up to 5 seconds; 0 for none.",
        unit="seconds",
        check=at_least(0),
    )
    login_failures: int = setting(3, "Failed logins that end a connection.", check=at_least(1))
    connections: int = setting(10_000, "Most connections at once.", check=at_least(1))
    connections_per_address: int = setting(
        100, "Most connections at once from one address (IPv6: one /64).", check=at_least(1)
    )
    connections_per_minute: int = setting(
        0, "Most new connections in a minute from one address (IPv6: one /64); 0 for no limit.",
        check=at_least(0),
    )
    commands_per_minute: int = setting(
        0,
        "Most commands in a minute from one address, over all its connections; more end the "
        "connection that brings them.  A client may have reason to fetch and delete thousands of "
        "messages.  0 for no limit.",
        check=at_least(0),
    )
    exempt_networks: list[str] = setting(
        ["127.0.0.0/8", "::1/128"],
        "Networks that those limits on one address, and the waiting for errors, do not bind.",
        check=networks,
    )
    stls: bool = setting(True, "Whether STLS is offered.")
    allow_cleartext_auth: str = setting(
        "loopback",
        "Whether users may log in without TLS: no, from loopback alone, or yes.",
        check=OneOf("no", "loopback", "yes"),
    )
    apop: bool = setting(
        False, "Whether APOP is offered, for accounts whose secret can be recovered."
    )
    expire: str = setting(
        "NEVER", "What CAPA says of how long mail is kept: NEVER, or days.", check=_expire
    )
    login_delay_seconds: int = setting(
        0,
        "Time that must pass between two logins to one account; 0 for no limit.",
        unit="seconds",
        check=at_least(0),
    )
