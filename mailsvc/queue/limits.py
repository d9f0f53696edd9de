"""How long and how much the queue tries: the [queue] section."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mailsvc.settings import OneOf, at_least, setting

#: The languages that reports are written in.
LANGUAGES = ("en", "ko")


def _jitter(value: float) -> str | None:
    return None if 0 <= value < 1 else "0 or more, and less than 1"


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """``[queue]``."""

    retry_first_seconds: float = setting(
        300, "How long after the first attempt to send a message the second is made.",
        unit="seconds", check=at_least(0.1))
    retry_factor: float = setting(
        2, "How many times longer each wait is than the one before.", check=at_least(1))
    retry_most_seconds: float = setting(
        14_400, "The longest wait between two attempts.", unit="seconds", check=at_least(0.1))
    retry_jitter: float = setting(
        0.2, "By which share a wait is made longer or shorter by chance, so that what failed "
        "together is not tried together.", check=_jitter)
    lifetime_seconds: float = setting(
        432_000, "How long a message is tried before it is returned to its sender (RFC 5321 "
        "§4.5.4.1 asks for four days at least).", unit="seconds", check=at_least(0))
    report_lifetime_seconds: float = setting(
        86_400, "The same for mail without a sender, such as reports.", unit="seconds",
        check=at_least(0))
    warning_seconds: float = setting(
        14_400, "After how long its sender is told that a message is delayed; 0 for never.",
        unit="seconds", check=at_least(0))
    old_seconds: float = setting(
        43_200, "From which age on the oldest message that waits is warned of in the log, once a "
        "day; 0 for never.", unit="seconds", check=at_least(0))
    connections: int = setting(
        100, "How many connections to other hosts are open at once, divided among the workers "
        "that send.",
        check=at_least(1))
    connections_per_destination: int = setting(
        10, "How many of them lead to one destination, a domain or a smarthost; divided likewise, "
        "so that fewer than 4 leave the sending to one worker.", check=at_least(1))
    messages_per_connection: int = setting(
        100, "How many messages are sent over one connection.", check=at_least(1))
    messages_per_minute: int = setting(
        0, "How many messages are sent to one destination in a minute, all by one worker; 0 for no "
        "limit.",
        check=at_least(0))
    idle_seconds: float = setting(
        2, "How long a connection is kept for a further message.", unit="seconds",
        check=at_least(0))
    language: str = setting(
        "en", "The language of reports to senders: en or ko.", check=OneOf(*LANGUAGES))

    def senders(self, processes: int) -> int:
        """How many of so many *processes* may send, between whom the bounds can be divided.

        Each has two connections to a destination at least, and a rate cannot be divided.
        """
        if self.messages_per_minute:
            return 1
        return max(1, min(processes, self.connections // 2, self.connections_per_destination // 2))

    def share(self, senders: int) -> QueueSettings:
        """What each of so many *senders* has to keep to."""
        return replace(self, connections=self.connections // senders,
                       connections_per_destination=self.connections_per_destination // senders)
