"""What a submission server allows and does to a message: the [submission] section."""

from __future__ import annotations

from dataclasses import dataclass

from mailsvc.names import DirectoryError, parse_address
from mailsvc.settings import at_least, networks, setting


def _addresses(table: dict[str, str]) -> str | None:
    try:
        for value in table.values():
            for address in value.split():
                if address != "*":
                    parse_address(address)
    except DirectoryError:
        return 'for each user, addresses with spaces between, or "*"'
    return None


def _accounts(names: list[str]) -> str | None:
    try:
        for name in names:
            parse_address(name)
    except DirectoryError:
        return 'accounts like "alerts@example.org"'
    return None


@dataclass(frozen=True, slots=True)
class SubmissionSettings:
    """The [submission] section.  0 means no limit where a sentence says so."""

    trusted_networks: list[str] = setting(
        [], "Networks whose clients may submit without a login, as any address of the domains "
        "served here: printers, programs.  What they send is counted for each client address.",
        check=networks)
    local_senders: dict[str, str] = setting(
        {}, "As whom else users of this machine may send over a Unix socket, by their name: "
        "addresses with spaces between, or \"*\" for anybody.  Each may send as its own name at "
        "this host and at the default domain; root and the user of the service, as anybody.",
        check=_addresses)
    check_from: bool = setting(
        True, "Whether From and Sender of a message, or Resent-From and Resent-Sender of one sent "
        "on, must name an address of the login, as the envelope always must.  If not, a Sender or "
        "Resent-Sender field tells whose login it was.")
    header_octets: int = setting(
        262_144, "Longest header of a submitted message.", unit="octets", check=at_least(1024))
    repair: bool = setting(
        False, "Whether text that is 8-bit without BODY=8BITMIME, or has lines longer than 998 "
        "octets, is made quoted-printable or base64.  Signed messages are left as they are.")
    repair_octets: int = setting(
        2_097_152, "Longest message that is repaired; longer ones are left as they are.",
        unit="octets", check=at_least(0))
    priority_most: int = setting(
        4, "Highest MT-PRIORITY (RFC 6710), from -9 to 9, that users may give their mail; what has "
        "more gets this one.",
        check=lambda value: None if -9 <= value <= 9 else "-9 to 9")
    priority_accounts: list[str] = setting(
        [], "Accounts that may give their mail any priority.", check=_accounts)
    messages_per_minute: int = setting(
        30, "Messages that one account may send in a minute; 0 for no limit.", check=at_least(0))
    messages_per_hour: int = setting(
        300, "Messages that one account may send in an hour; 0 for no limit.", check=at_least(0))
    messages_per_day: int = setting(
        2000, "Messages that one account may send in a day; 0 for no limit.", check=at_least(0))
    recipients_per_minute: int = setting(
        500, "Recipients that one account may send to in a minute; 0 for no limit.",
        check=at_least(0))
    recipients_per_hour: int = setting(
        2000, "Recipients that one account may send to in an hour; 0 for no limit.",
        check=at_least(0))
    recipients_per_day: int = setting(
        5000, "Recipients that one account may send to in a day; 0 for no limit.",
        check=at_least(0))
