"""How much is kept for ``mailsvc trace``: the [trace] section."""

from __future__ import annotations

from dataclasses import dataclass

from mailsvc.settings import at_least, setting


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """``[trace]``."""

    enabled: bool = setting(
        True, "Whether what happens to each message and connection is kept for `mailsvc trace`: "
        "addresses, replies and ids, never the text of mail.")
    days: float = setting(
        30, "How long it is kept.", unit="days", check=at_least(0.01))
    octets: int = setting(
        1_073_741_824, "How much disk it may take; the oldest goes first.  A message takes some "
        "1,000 octets.", unit="octets", check=at_least(1_048_576))
