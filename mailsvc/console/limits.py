"""The [console] section."""

from __future__ import annotations

from dataclasses import dataclass

from mailsvc.settings import OneOf, at_least, networks, setting


def _ports(values: list[int]) -> str | None:
    return None if all(0 < value < 65_536 for value in values) else "ports from 1 to 65535"


@dataclass(frozen=True, slots=True)
class ConsoleSettings:
    """``[console]``."""

    cleartext: str = setting(
        "loopback", "Where the console is shown without TLS: on loopback and Unix sockets alone, "
        "nowhere (no), or everywhere (yes), for a proxy in front of it that has TLS.",
        check=OneOf("no", "loopback", "yes"))
    idle_minutes: float = setting(
        60, "How long a login lasts after the last page.", unit="minutes", check=at_least(1))
    login_hours: float = setting(
        12, "How long a login lasts at most.", unit="hours", check=at_least(0.1))
    message_octets: int = setting(
        26_214_400, "Largest message, with its attachments, that can be sent from a page.",
        unit="octets", check=at_least(1000))
    connections: int = setting(
        200, "Most connections of browsers that one process serves at once.", check=at_least(1))
    connections_per_address: int = setting(
        50, "Most of them from one address (IPv6: one /64); a browser has about six.",
        check=at_least(1))
    send_ports: list[int] = setting(
        [25, 465, 587], "Ports of other servers to which administrators may send a test message; "
        "[] for every one.", check=_ports)
    send_networks: list[str] = setting(
        [], "Networks not of the Internet (private, loopback) in which such a server may be.  A "
        "page must not become a way into them.", check=networks)
