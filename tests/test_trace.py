"""``mailsvc.trace``: the header we add, to the octet, and the loops we see."""

from __future__ import annotations

import email.utils
import re
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailsvc.mail import NULL_PATH, Address, Envelope, Recipient
from mailsvc.trace import HopCount, address_literal, date, trace_header
from tests.fuzz_scanner import check_chunk_reader, check_hop_count, cut, received_fields

ALICE = Address("alice", "example.org")
BOB = Address("bob", "example.net")


def header(*forward_paths: Address, reverse_path: Address = ALICE, client: str = "192.0.2.1",
           hello: str = "client.example", protocol: str = "ESMTP") -> bytes:
    envelope = Envelope("01HXAMPLE0000001", reverse_path)
    envelope.recipients = [Recipient(path, ()) for path in forward_paths]
    return trace_header(envelope, client=client, hello=hello, protocol=protocol,
                        hostname="mx.example.org", seconds=1_700_000_000)


# ---- what is written ----


@pytest.mark.parametrize(("user", "comment"), [
    ("carol", b"(user carol)"), ("EXAMPLE\\carol d", b"(user EXAMPLE\\\\carol d)"),
    ("a)b(", b"(user a\\)b\\()"), ("x\r\nBcc: y\0\u202e\xfc", b"(user x??Bcc: y???)"),
])
def test_a_user_of_this_machine_is_named_in_a_comment(user: str, comment: bytes) -> None:
    envelope = Envelope("01HXAMPLE0000001", ALICE)
    assert b"Received: from here " + comment + b"\r\n\tby mx" in trace_header(
        envelope, client="", hello="here", protocol="ESMTP", hostname="mx.example.org",
        seconds=1_700_000_000, user=user)


def test_the_header_of_a_message_to_one_recipient() -> None:
    assert header(BOB) == (
        b"Return-Path: <alice@example.org>\r\n"
        b"Received: from client.example ([192.0.2.1])\r\n"
        b"\tby mx.example.org with ESMTP id 01HXAMPLE0000001\r\n"
        b"\tfor <bob@example.net>;\r\n"
        b"\tTue, 14 Nov 2023 22:13:20 +0000\r\n"
    )


@pytest.mark.parametrize("recipients", [(), (BOB, ALICE), (BOB, BOB), (BOB,) * 1000])
def test_no_recipient_is_named_to_another(recipients: tuple[Address, ...]) -> None:
    assert header(*recipients) == (
        b"Return-Path: <alice@example.org>\r\n"
        b"Received: from client.example ([192.0.2.1])\r\n"
        b"\tby mx.example.org with ESMTP id 01HXAMPLE0000001;\r\n"
        b"\tTue, 14 Nov 2023 22:13:20 +0000\r\n"
    )


@pytest.mark.parametrize(("client", "literal"), [
    ("192.0.2.1", "[192.0.2.1]"),
    ("2001:db8::1", "[IPv6:2001:db8::1]"),
    ("::1", "[IPv6:::1]"),
])
def test_the_client_is_an_address_literal(client: str, literal: str) -> None:
    assert address_literal(client) == literal
    assert f"Received: from client.example ({literal})\r\n".encode() in header(client=client)


@pytest.mark.parametrize(("priority", "clause"), [
    (4, b"\r\n\tpriority 4;\r\n"), (-9, b"\r\n\tpriority -9;\r\n"), (0, b"0000001;\r\n")])
def test_a_priority_is_a_clause(priority: int, clause: bytes) -> None:
    """RFC 6710."""
    envelope = Envelope("01HXAMPLE0000001", ALICE, priority=priority)
    assert clause in trace_header(envelope, client="", hello="here", protocol="ESMTP",
                                  hostname="mx.example.org", seconds=1_700_000_000)


def test_a_client_without_an_address_has_only_its_name() -> None:
    assert b"Received: from client.example\r\n" in header(client="")


def test_the_null_reverse_path_and_postmaster() -> None:
    text = header(Address("postmaster", ""), reverse_path=NULL_PATH)
    assert text.startswith(b"Return-Path: <>\r\n")
    assert b"\r\n\tfor <postmaster>;\r\n" in text


def test_a_quoted_local_part_is_quoted() -> None:
    text = header(Address('a "b\\', "example.net"), reverse_path=Address("", "example.org"))
    assert text.startswith(b'Return-Path: <""@example.org>\r\n')
    assert b'\r\n\tfor <"a \\"b\\\\"@example.net>;\r\n' in text


def test_names_of_other_scripts_are_utf_8() -> None:
    text = header(Address("пётр", "пример.example"), hello="bücher.example", protocol="UTF8SMTPS")
    assert "from bücher.example (".encode() in text
    assert "for <пётр@пример.example>;".encode() in text
    assert b" with UTF8SMTPS id " in text


def test_the_longest_names_still_make_lines_within_998_octets() -> None:
    label = "a" * 63
    domain = ".".join([label, label, label, "a" * 61])
    text = header(Address("b" * 64, domain[:189]), reverse_path=Address("c" * 64, domain[:189]),
                  hello=domain, client="2001:db8:1111:2222:3333:4444:5555:6666")
    lines = text.split(b"\r\n")
    assert max(map(len, lines)) <= 998
    # RFC 5322 §2.2.3: every line but the first of a field begins with white space.
    assert [bool(re.match(rb"[A-Z][a-z-]+", line, re.I)) for line in lines[:-1]] == [
        True, True, False, False, False]
    assert lines[-1] == b""


@pytest.mark.parametrize(("seconds", "text"), [
    (0, "Thu, 1 Jan 1970 00:00:00 +0000"),
    (951_782_399, "Mon, 28 Feb 2000 23:59:59 +0000"),
    (951_782_400, "Tue, 29 Feb 2000 00:00:00 +0000"),
    (1_709_251_199, "Thu, 29 Feb 2024 23:59:59 +0000"),
    (1_735_689_599, "Tue, 31 Dec 2024 23:59:59 +0000"),
    (4_102_444_800, "Fri, 1 Jan 2100 00:00:00 +0000"),
])
def test_dates(seconds: int, text: str) -> None:
    assert date(seconds) == text


@settings(deadline=None)
@given(st.integers(0, 2**33))
def test_a_date_reads_back(seconds: int) -> None:
    parsed = email.utils.parsedate_to_datetime(date(seconds))
    assert int(parsed.timestamp()) == seconds
    assert date(seconds).startswith(parsed.strftime("%a, "))


def test_every_month_and_day_of_the_week_has_its_name() -> None:
    for day in range(370):
        text = date(day * 86_400 + 3_661)
        parsed = email.utils.parsedate_to_datetime(text)
        assert text == f"{parsed:%a}, {parsed.day} {parsed:%b %Y} 01:01:01 +0000"


# ---- what is counted ----


def hops(*blocks: bytes) -> int:
    count = HopCount()
    for block in blocks:
        count.feed(block)
    return count.hops


@pytest.mark.parametrize(("message", "expected"), [
    (b"", 0),
    (b"Received: x\r\n", 1),
    (b"Received: x\r\nReceived: y\r\n\r\n", 2),
    (b"Received: x\r\n\r\nReceived: y\r\n", 1),
    (b"\r\nReceived: x\r\n", 0),
    (b"\r\n\r\nReceived: x\r\n", 0),
    (b"RECEIVED: x\r\nreceived:y\r\nrEcEiVeD:\r\n\r\n", 3),
    (b"Received : x\r\nReceived\t \t: y\r\n\r\n", 2),
    (b"Subject: x\r\n Received: no\r\n\tReceived: no\r\n\r\n", 0),
    (b"X-Received: no\r\nReceived-SPF: no\r\nReceivedx: no\r\nReceived\r\n\r\n", 0),
    (b"Received: x\r\n\tReceived: no\r\nSubject: Received: no\r\n\r\n", 1),
    (b"A:\r\nReceived:" + b"x" * 2000 + b"\r\nReceived: y\r\n\r\n", 2),
    (b"Received" + b" " * 50 + b": x\r\n\r\n", 1),
    (b"Received" + b" " * 51 + b": no\r\n\r\n", 0),
    (b"Received" + b" " * 60 + b"x: no\r\n\r\n", 0),
    (b"Received: x\r\n" * 120 + b"\r\n", 120),
    # The long s and the Kelvin sign are no letters of a field name.
    ("Received\u017f: no\r\n\r\n".encode(), 0),
])
def test_received_fields_of_the_header_are_counted(message: bytes, expected: int) -> None:
    assert received_fields(message) == expected
    assert hops(message) == expected
    for size in (1, 2, 3, 7, 64, 65, 100):
        check_hop_count(check_chunk_reader(cut(message, range(size, len(message), size))))
    if len(message) < 200:
        for place in range(len(message)):
            check_hop_count(check_chunk_reader(cut(message, [place])))


def test_the_body_is_not_looked_at_again() -> None:
    assert hops(b"Received: a\r\n\r\n", b"Received: b\r\n\r\n", b"\r\nReceived: c\r\n\r\n") == 1


def test_white_space_beyond_what_is_carried_makes_no_field() -> None:
    # What a block leaves open is remembered in part; the part must not read differently.
    for spaces in range(40, 80):
        opening = b"Received" + b" " * spaces
        assert hops(opening, b"x" + b" " * 80, b":\r\n\r\n") == 0
        assert hops(opening + b"x", b": y\r\n\r\n") == 0
        assert hops(opening, b": y\r\n\r\n") == (spaces <= 50)


names = st.sampled_from([b"Received", b"received ", b"RECEIVED\t", b"Received" + b" " * 52, b"X",
                         b" Received", b"\tfolded", b"", b"Receive", b"Received-By"])
lines = st.builds(lambda name, rest: name + rest, names, st.sampled_from(
    [b":", b": x", b"", b" :", b": Received: x", b":" + b"y" * 70]))
messages = st.lists(lines, max_size=12).map(lambda all_lines: b"".join(
    line + b"\r\n" for line in all_lines))


@settings(deadline=None)
@given(messages, st.lists(st.integers(0, 400), max_size=8), st.sampled_from([b"", b"Received: x"]))
def test_hops_are_counted_wherever_blocks_are_cut(
    message: bytes, places: list[int], tail: bytes
) -> None:
    check_hop_count(check_chunk_reader(cut(message + tail, places)))


@pytest.mark.parametrize("block", [
    b"x" * 65_536,
    b"Received" + b" " * 65_528,
    b"X: y\r\n" * 10_000,
], ids=["no line end", "white space", "many fields"])
def test_a_huge_header_is_not_held(block: bytes) -> None:
    count = HopCount()
    tracemalloc.start()
    try:
        for _ in range(100):
            count.feed(block)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(block)
    finally:
        tracemalloc.stop()
    assert count.hops == 0
    count.feed(b"z\r\nReceived: x\r\n\r\n")
    assert count.hops == 1
