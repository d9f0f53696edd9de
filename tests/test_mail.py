"""``mailsvc.mail`` and ``mailsvc.errors``: the values that mail is made of, and its failures."""

from __future__ import annotations

import dataclasses
import inspect
import os
import time

import pytest

from mailsvc import errors, mail
from mailsvc.errors import (
    EnhancedStatus,
    MailboxMoved,
    MailFailure,
    PermanentFailure,
    SomeNotRemoved,
    TemporaryFailure,
)
from mailsvc.mail import NULL_PATH, Account, Address, Envelope, Recipient, Remote, new_id

# ---- addresses ----


@pytest.mark.parametrize(("local_part", "domain", "text"), [
    ("a", "b.example", "a@b.example"),
    ("a.b", "c", "a.b@c"),
    ("a+tag", "c", "a+tag@c"),
    ("!#$%&'*+-/=?^_`{|}~", "c", "!#$%&'*+-/=?^_`{|}~@c"),
    ("пётр", "пример.example", "пётр@пример.example"),
    ("\u0080", "c", "\u0080@c"),
    ("a b", "c", '"a b"@c'),
    ("a@b", "c", '"a@b"@c'),
    (".a", "c", '".a"@c'),
    ("a.", "c", '"a."@c'),
    ("a..b", "c", '"a..b"@c'),
    ('a"b', "c", '"a\\"b"@c'),
    ("a\\b", "c", '"a\\\\b"@c'),
    ('\\"', "c", '"\\\\\\""@c'),
    ("a\n", "c", '"a\n"@c'),
    ("\x7f", "c", '"\x7f"@c'),
    ("<a>", "c", '"<a>"@c'),
    ("", "c", '""@c'),
    ("a", "[192.0.2.1]", "a@[192.0.2.1]"),
    ("postmaster", "", "postmaster"),
    ("a b", "", '"a b"'),
    ("", "", ""),
])
def test_an_address_is_written_with_quotes_where_it_needs_them(
    local_part: str, domain: str, text: str
) -> None:
    assert str(Address(local_part, domain)) == text


def test_a_mailbox_elsewhere_is_named_as_it_is_written() -> None:
    sales = Address("sales", "example.org")
    assert Remote(Address("a b", "elsewhere.example"), sales).name == '"a b"@elsewhere.example'


def test_the_null_path_is_empty() -> None:
    assert Address("", "") == NULL_PATH
    assert f"<{NULL_PATH}>" == "<>"


@pytest.mark.parametrize(("local_part", "domain", "ascii_only"), [
    ("a", "b", True), ("ä", "b", False), ("a", "ä.example", False), ("ä", "ä", False),
    ("", "", True),
])
def test_whether_an_address_needs_smtputf8(local_part: str, domain: str, ascii_only: bool) -> None:
    assert Address(local_part, domain).is_ascii is ascii_only


@pytest.mark.parametrize("value", [Address("a", "b"), Account("a", "b"), Recipient(NULL_PATH, ())])
def test_values_do_not_change(value: Address | Account | Recipient) -> None:
    field = dataclasses.fields(value)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, field, "x")
    assert not hasattr(value, "__dict__")
    assert hash(value) == hash(dataclasses.replace(value))


# ---- accounts and envelopes ----


def test_an_account_has_a_name_and_by_default_no_quota() -> None:
    account = Account("Bob", "example.org")
    assert account.name == "Bob@example.org"
    assert (account.quota_octets, account.quota_messages) == (0, 0)


def test_an_account_named_twice_gets_one_copy() -> None:
    ann, bob, cyd = (Account(name, "example.org") for name in ("ann", "bob", "cyd"))
    envelope = Envelope("ID", NULL_PATH)
    assert envelope.accounts() == ()
    for path, accounts in (("list", (bob, ann)), ("ann", (ann,)), ("more", (cyd, bob))):
        envelope.recipients.append(Recipient(Address(path, "example.org"), accounts))
    assert envelope.accounts() == (bob, ann, cyd)


def test_a_new_envelope_is_empty_and_shares_nothing() -> None:
    one, other = Envelope("A", NULL_PATH), Envelope("B", NULL_PATH)
    assert (one.size, one.body, one.smtputf8, one.recipients) == (0, "7BIT", False, [])
    one.recipients.append(Recipient(NULL_PATH, ()))
    assert other.recipients == []


# ---- ids ----


@pytest.fixture(autouse=True)
def ids_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test does to the clock changes no id of a later test."""
    monkeypatch.setattr(mail, "_next_id", mail._ids())


def test_ids_are_distinct_and_rise() -> None:
    ids = [new_id() for _ in range(10_000)]
    assert len(set(ids)) == len(ids)
    assert ids == sorted(ids)
    assert {len(id) for id in ids} == {16}
    assert set("".join(ids)) <= set("0123456789ABCDEFGHJKMNPQRSTVWXYZ")


def test_ids_rise_though_the_clock_stands_or_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = new_id()
    now = time.time_ns() + 10**9
    monkeypatch.setattr(time, "time_ns", lambda: now)
    first, second = new_id(), new_id()
    monkeypatch.setattr(time, "time_ns", lambda: now - 3600 * 10**9)
    third = new_id()
    assert before < first < second < third
    assert len({before, first, second, third}) == 4


def test_an_id_is_made_of_microseconds_and_pid(monkeypatch: pytest.MonkeyPatch) -> None:
    microseconds = 32_503_680_000_000_000  # the year 3000
    monkeypatch.setattr(time, "time_ns", lambda: microseconds * 1000 + 999)
    monkeypatch.setattr(os, "getpid", lambda: 0x3FFFFF)
    digits = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
    value = 0
    id = new_id()
    for digit in id:
        value = value * 32 + digits.index(digit)
    assert value == microseconds << 25 | 0x3FFFFF


def test_a_forked_process_gives_other_ids() -> None:
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write_end, new_id().encode())
        finally:
            os._exit(0)
    os.close(write_end)
    theirs = os.read(read_end, 100).decode()
    os.close(read_end)
    os.waitpid(child, 0)
    assert len(theirs) == 16
    assert theirs[11:] != new_id()[11:]


# ---- failures ----

FAILURES = [
    found for _, found in inspect.getmembers(errors, inspect.isclass)
    if issubclass(found, MailFailure)
]


@pytest.mark.parametrize("kind", FAILURES)
def test_the_class_of_a_failure_and_of_its_status_agree(kind: type[MailFailure]) -> None:
    expected = 5 if issubclass(kind, PermanentFailure) else 4
    assert kind.default.class_ == expected
    assert issubclass(kind, PermanentFailure | TemporaryFailure) or kind is MailFailure


def test_the_status_of_each_failure() -> None:
    # RFC 3463 §3: 2 is the mailbox, 3 the mail system, 1 the address, 4 the way, 7 policy.
    assert {kind.__name__: str(kind.default) for kind in FAILURES} == {
        "MailFailure": "4.3.0",
        "TemporaryFailure": "4.3.0",
        "PermanentFailure": "5.3.0",
        "StorageFull": "4.3.1",
        "MailboxFull": "4.2.2",
        "MessageTooLarge": "5.2.3",
        "MaildropInUse": "4.2.1",
        "NothingWaits": "4.0.0",
        "TurnInUse": "4.7.0",
        "LoginTooSoon": "4.7.0",
        "MessageVanished": "5.2.0",
        "SomeNotRemoved": "4.2.0",
        "UnknownMailbox": "5.1.1",
        "MailboxMoved": "5.1.6",
        "RelayDenied": "5.7.1",
        "RoutingLoop": "5.4.6",
    }


def test_a_failure_says_what_happened() -> None:
    failure = TemporaryFailure("The disk is slow; try again later")
    assert failure.text == str(failure) == "The disk is slow; try again later"
    assert failure.status == (4, 3, 0)
    assert str(failure.status) == "4.3.0"


def test_a_status_of_its_own() -> None:
    failure = PermanentFailure("No", EnhancedStatus(5, 7, 13))
    assert str(failure.status) == "5.7.13"
    assert PermanentFailure("No").status == (5, 3, 0)


def test_failures_that_carry_more() -> None:
    moved = MailboxMoved("Moved", "new@example.net")
    assert (moved.text, moved.forward_path) == ("Moved", "new@example.net")
    assert str(moved) == "Moved"
    kept = SomeNotRemoved("some deleted messages not removed", (3, 7))
    assert (kept.numbers, str(kept)) == ((3, 7), "some deleted messages not removed")
