"""MTA-STS (RFC 8461): what a domain's record and its policy say.  Text in, values out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

#: Most octets of a policy, and most of its ``mx`` lines that are read.
POLICY_OCTETS = 65_536
_PATTERNS = 1000

#: RFC 8461 §3.2: no policy is kept for longer than a year or so.
MOST_SECONDS = 31_557_600

MODES = ("enforce", "testing", "none")

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_PATTERN = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")
_ID = re.compile(r"[A-Za-z0-9]{1,32}")


class Unusable(ValueError):
    """A record or a policy that cannot be used; the text says what was expected."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What a domain says of its exchangers.

    :ivar mode: one of :data:`MODES`.
    :ivar patterns: the exchangers' names, in lower case, "*." for any one label.
    :ivar max_age: for how many seconds it holds from when it was fetched.
    :ivar text: as it was fetched, for reports.
    """

    mode: str
    patterns: tuple[str, ...]
    max_age: int
    text: str = ""

    def matches(self, host: str) -> bool:
        """Whether *host* may be an exchanger (RFC 8461 §4.1)."""
        name = host.lower().rstrip(".")
        # A wildcard is the whole leftmost label, and no more than one.
        return name in self.patterns or f"*.{name.partition('.')[2]}" in self.patterns


def parse_record(texts: Sequence[str]) -> str | None:
    """The policy's id out of the TXT records at ``_mta-sts.DOMAIN``; None if there is no policy.

    :raises Unusable: there is a record that means to be one, and is none.
    """
    # RFC 8461 §3.1: others are discarded, and of two neither counts.
    meant = [text for text in texts if re.match(r"v=STSv1[ \t]*(;|$)", text)]
    if not meant:
        return None
    if len(meant) > 1:
        raise Unusable(f"{len(meant)} records with v=STSv1, expected one")
    fields: dict[str, str] = {}
    for part in meant[0].split(";")[1:]:
        if part.strip():
            # §3.2: of a field that comes twice the first counts.
            fields.setdefault(*_field(part))
    found = fields.get("id")
    if found is None:
        raise Unusable(f"{meant[0]!r}: expected an id, such as v=STSv1; id=20261127;")
    if not _ID.fullmatch(found):
        raise Unusable(f"id={found!r}: expected 1 to 32 letters and digits")
    return found


def _field(text: str) -> tuple[str, str]:
    name, equals, value = text.strip(" \t").partition("=")
    if not equals:
        raise Unusable(f"{text!r}: expected name=value")
    return name.rstrip(" \t"), value.lstrip(" \t")


def parse_policy(content: bytes) -> Policy:
    """The policy that *content* is (RFC 8461 §3.2).

    :raises Unusable: it is none; the text names the line.
    """
    if len(content) > POLICY_OCTETS:
        raise Unusable(f"more than {POLICY_OCTETS} octets")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unusable(f"octet {error.start} is no UTF-8") from None
    fields: dict[str, str] = {}
    patterns: list[str] = []
    for number, line in enumerate(re.split(r"\r?\n", text), 1):
        if not line.strip(" \t"):
            continue
        name, colon, value = (part.strip(" \t") for part in line.partition(":"))
        if not colon:
            raise Unusable(f"line {number}: {line[:80]!r}: expected key: value")
        if name == "mx":
            patterns.append(_pattern(number, value))
        else:
            # Of a key that comes twice the first counts; unknown ones do not.
            fields.setdefault(name, value)
    if len(patterns) > _PATTERNS:
        raise Unusable(f"{len(patterns)} mx lines, expected at most {_PATTERNS}")
    for name, expected in (("version", "STSv1"), ("mode", " or ".join(MODES)),
                           ("max_age", "a number of seconds")):
        if name not in fields:
            raise Unusable(f"no {name}: expected {expected}")
    if fields["version"] != "STSv1":
        raise Unusable(f"version: {fields['version'][:80]!r}: expected STSv1")
    if fields["mode"] not in MODES:
        raise Unusable(f"mode: {fields['mode'][:80]!r}: expected " + " or ".join(MODES))
    if not re.fullmatch(r"[0-9]{1,10}", fields["max_age"]):
        raise Unusable(f"max_age: {fields['max_age'][:80]!r}: expected a number of seconds")
    if not patterns and fields["mode"] != "none":
        raise Unusable(f"no mx: mode {fields['mode']} needs one at least")
    return Policy(fields["mode"], tuple(patterns), min(int(fields["max_age"]), MOST_SECONDS), text)


def _pattern(number: int, value: str) -> str:
    if not _PATTERN.fullmatch(value) or len(value) > 255:
        raise Unusable(f"line {number}: mx: {value[:80]!r}: expected a host name, perhaps with "
                       '"*" for its first label')
    return value.lower()
