"""``mailsvc.pop3.replies`` and the checks of ``mailsvc.pop3.limits``."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from mailsvc.errors import (
    LoginTooSoon,
    MailboxFull,
    MaildropInUse,
    MailFailure,
    MessageVanished,
    PermanentFailure,
    SomeNotRemoved,
    StorageFull,
    TemporaryFailure,
)
from mailsvc.pop3.limits import POP3Settings
from mailsvc.pop3.replies import from_failure, negative, plural, positive


@pytest.mark.parametrize(("failure", "code"), [
    (MaildropInUse("why"), "[IN-USE] "),
    (LoginTooSoon("why"), "[LOGIN-DELAY] "),
    (TemporaryFailure("why"), "[SYS/TEMP] "),
    (SomeNotRemoved("why", (1,)), "[SYS/TEMP] "),
    (StorageFull("why"), "[SYS/TEMP] "),
    (MailboxFull("why"), "[SYS/TEMP] "),
    (MailFailure("why"), "[SYS/TEMP] "),
    (PermanentFailure("why"), "[SYS/PERM] "),
    (MessageVanished("why"), ""),
])
def test_failures_become_response_codes(failure: MailFailure, code: str) -> None:
    assert from_failure(failure) == f"-ERR {code}why\r\n".encode()


def test_replies_are_printable_and_short() -> None:
    assert positive("a\r\n\x1b[2Jé\x7f~ b") == b"+OK a???[2J??~ b\r\n"
    assert negative("x" * 500) == b"-ERR " + b"x" * 500 + b"\r\n"
    assert negative("x" * 501) == negative("x" * 500)
    assert len(negative("x" * 9999)) <= 512


def test_counting() -> None:
    assert [plural(n, "octet") for n in (0, 1, 2)] == ["0 octets", "1 octet", "2 octets"]


@pytest.mark.parametrize(("name", "good", "bad"), [
    ("autologout_seconds", [600, 1e9], [599.9, 0, -1]),
    ("login_seconds", [1], [0.9]),
    ("command_octets", [255], [254]),
    ("errors", [1], [0]),
    ("login_failures", [1], [0]),
    ("connections", [1], [0]),
    ("connections_per_address", [1], [0]),
    ("login_delay_seconds", [0], [-1]),
    ("expire", ["NEVER", "0", "365"], ["never", "", "-1", "NEVER ", "60\n", "x60", "٣"]),
    ("exempt_networks", [[], ["192.0.2.0/24", "::1/128"], ["192.0.2.1/24"]],
     [["example.org"], ["192.0.2.0/33"], ["192.0.2.0/24", ""]]),
])
def test_settings_are_checked(name: str, good: list[Any], bad: list[Any]) -> None:
    field = next(field for field in dataclasses.fields(POP3Settings) if field.name == name)
    check = field.metadata["check"]
    assert [check(value) for value in good] == [None] * len(good)
    assert all(isinstance(check(value), str) for value in bad)
    assert check(getattr(POP3Settings(), name)) is None
