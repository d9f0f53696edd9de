"""The limits of a receiving SMTP session: the [smtp] section (RFC 5321 §4.5.3)."""

from __future__ import annotations

from dataclasses import dataclass

from mailsvc.settings import OneOf, at_least, networks, setting


@dataclass(frozen=True, slots=True)
class SMTPSettings:
    """The [smtp] section.  0 means no limit where a sentence says so."""

    message_octets: int = setting(
        52_428_800, "Largest message accepted; 0 for no limit.", unit="octets", check=at_least(0)
    )
    recipients: int = setting(
        1000, "Most recipients of one message (RFC 5321 asks for 100 or more).", check=at_least(1)
    )
    command_octets: int = setting(
        2048,
        "Longest command line, CRLF counted (RFC 5321 asks for 512 or more).",
        unit="octets",
        check=at_least(512),
    )
    text_line_octets: int = setting(
        0,
        "Longest line of a message, CRLF counted; 0 for no limit.",
        unit="octets",
        check=at_least(0),
    )
    hold_most_seconds: int = setting(
        2_592_000,
        "How far ahead users who submit may have a message released (FUTURERELEASE, RFC 4865); 0 "
        "for not at all.",
        unit="seconds",
        check=lambda value: None if 0 <= value <= 999_999_999 else "0 to 999999999",
    )
    deliver_by_least_seconds: int = setting(
        0,
        "The shortest time in which a message may be wanted delivered, or else returned "
        "(DELIVERBY, RFC 2852); 0 for any.",
        unit="seconds",
        check=lambda value: None if 0 <= value <= 999_999_999 else "0 to 999999999",
    )
    priority_most: int = setting(
        0,
        "Highest MT-PRIORITY (RFC 6710), from -9 to 9, that other hosts may give their mail; what "
        "has more gets this one.",
        check=lambda value: None if -9 <= value <= 9 else "-9 to 9",
    )
    hops: int = setting(
        100, "Received fields that make a message a loop (RFC 5321 §6.3).", check=at_least(1)
    )
    errors: int = setting(
        50, "Commands refused, since the last accepted message, that end a connection.",
        check=at_least(1),
    )
    free_errors: int = setting(
        10, "Commands refused, likewise, before each further refusal waits.", check=at_least(0)
    )
    error_delay_seconds: float = setting(
        0.5,
        "How much longer each such refusal waits than the one before, up to 5 seconds; 0 for none.",
        unit="seconds",
        check=at_least(0),
    )
    greeting_delay_seconds: float = setting(
        0,
        "How long clients of listeners.smtp wait for the greeting.  Whoever speaks before it, as "
        "programs do that send spam and listen to nothing, is refused with 554.  0 for not at all; "
        "where it is set, 1 to 6 will do.",
        unit="seconds",
        check=lambda value: None if 0 <= value <= 60 else "0 to 60",
    )
    login_failures: int = setting(
        3, "Failed logins that end a connection.", check=at_least(1)
    )
    starttls: bool = setting(
        True,
        "Whether STARTTLS is offered where nobody logs in; programs that verify certificates "
        "stumble over a self-signed one there.",
    )
    allow_cleartext_auth: str = setting(
        "no",
        "Whether users may log in to submission without TLS: no, from loopback alone, or yes.",
        check=OneOf("no", "loopback", "yes"),
    )
    idle_commands: int = setting(
        1000,
        "NOOP, RSET, HELO, VRFY and such, since the last accepted message, that end a connection.",
        check=at_least(1),
    )
    messages: int = setting(
        0, "Messages accepted over one connection; 0 for no limit.", check=at_least(0)
    )
    disclose_mailboxes: bool = setting(
        False, "Whether VRFY and EXPN tell strangers which mailboxes exist."
    )
    etrn: bool = setting(
        False, "Whether the hosts of routing.relay_domains may ask for what waits for them (ETRN, "
        "RFC 1985)."
    )
    command_seconds: float = setting(
        300, "Time for one command to arrive whole.", unit="seconds", check=at_least(1)
    )
    data_seconds: float = setting(
        180, "Time without a single octet amid a message.", unit="seconds", check=at_least(1)
    )
    message_seconds: float = setting(
        3600, "Time for one message to arrive whole.", unit="seconds", check=at_least(1)
    )
    connections: int = setting(
        10_000, "Most connections at once.", check=at_least(1)
    )
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
        "connection that brings them.  A message takes three or more.  0 for no limit.",
        check=at_least(0),
    )
    xclient_networks: list[str] = setting(
        [],
        "Networks of proxies that may say by XCLIENT whose connection it is, and by AUTH= of MAIL "
        "who submitted a message.",
        check=networks,
    )
    exempt_networks: list[str] = setting(
        ["127.0.0.0/8", "::1/128"],
        "Networks that those limits on one address, and the waiting for errors and for the "
        "greeting, do not bind.",
        check=networks,
    )
