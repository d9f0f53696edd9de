"""Delivery status notifications, read by the standard library and held to RFC 3464 and RFC 6522."""

from __future__ import annotations

import email
import email.policy
from email.header import decode_header, make_header
from email.message import EmailMessage
from typing import Any

import pytest
from flufl.bounce import all_failures
from hypothesis import given
from hypothesis import strategies as st

from mailsvc.mail import Address
from mailsvc.queue.dsn import ACTIONS, HEADER_OCTETS, TEXTS, Report
from mailsvc.queue.message import QueuedMessage, QueuedRecipient

NOW = 1_795_253_400.0  # 2026-11-21 09:30:00 UTC
ALICE, BOB = Address("alice", "example.org"), Address("bob", "example.net")
ORIGINAL = b"Subject: hello\r\nFrom: alice@example.org\r\n\r\nbody\r\n"


def report(action: str = "failed", *recipients: QueuedRecipient, sender: Address = ALICE,
           ret: str = "", envid: str = "", smtputf8: bool = False, hostname: str = "mx.example.org",
           **more: Any) -> Report:
    recipients = recipients or (failed(BOB),)
    return Report(action, QueuedMessage("M1", NOW - 60, sender, list(recipients), ret=ret,
                                        envid=envid, smtputf8=smtputf8),
                  recipients, hostname, NOW, **more)


def failed(address: Address, original: Address | None = None, **more: Any) -> QueuedRecipient:
    return QueuedRecipient(address, original or address, **{
        "status": "5.1.1", "reply": "550 5.1.1 No such user", "host": "mx.example.net",
        "tried": NOW - 1, **more})


def read(written: bytes) -> tuple[EmailMessage, str, list[EmailMessage], EmailMessage]:
    """The report, its paragraph, the groups of its second part, and what is returned."""
    assert written.count(b"\n") == written.count(b"\r\n") == written.count(b"\r")
    assert all(len(line) <= 998 for line in written.split(b"\r\n"))
    message = email.message_from_bytes(written, policy=email.policy.SMTP)
    assert message.defects == [] and message.get_content_type() == "multipart/report"
    assert message.get_param("report-type") == "delivery-status"
    # RFC 2045 §6.4: who has eight bits says so, and so does the whole.
    for part in written.split(f"--{message.get_boundary()}".encode())[1:-1]:
        header, _, body = part.partition(b"\r\n\r\n")
        assert body.isascii() or b"\r\nContent-Transfer-Encoding: 8bit" in header
    assert written.isascii() or message["Content-Transfer-Encoding"] == "8bit"
    text, status, returned = message.iter_parts()
    return message, text.get_content(), status.get_payload(), returned


@pytest.mark.parametrize("language", TEXTS)
@pytest.mark.parametrize("action", ACTIONS)
def test_whatever_happened_in_whichever_language(action: str, language: str) -> None:
    until = NOW + 3600 if action == "delayed" else 0.0
    message, text, groups, _ = read(report(action, language=language, until=until).write(
        "ID", ORIGINAL))
    subject = str(make_header(decode_header(message["Subject"])))
    assert subject == TEXTS[language].subjects[action]
    assert message["From"].addresses[0].display_name == TEXTS[language].sender
    assert str(message["From"].addresses[0].addr_spec) == "mailer-daemon@mx.example.org"
    assert (message["To"], message["Auto-Submitted"]) == ("alice@example.org", "auto-replied")
    assert "mx.example.org" in text and "<bob@example.net>" in text
    assert "{" not in text
    assert ("10:30" in text) == (action == "delayed")
    assert groups[1]["Action"] == action
    assert (groups[1]["Will-Retry-Until"] is not None) == (action == "delayed")


def test_what_programs_are_told() -> None:
    written = report("failed", failed(BOB), failed(
        Address("carol", "example.net"), Address("team", "example.org"), status="4.4.1", host="",
        reply="nobody answered within 30 seconds"), QueuedRecipient(ALICE, ALICE, status="5.0.0"),
        failed(BOB, orcpt="rfc822;Bob+x@example.com"), envid="QQ314159").write("ID", ORIGINAL)
    _, text, groups, _ = read(written)
    assert groups[0].items() == [
        ("Original-Envelope-Id", "QQ314159"), ("Reporting-MTA", "dns; mx.example.org"),
        ("Arrival-Date", "Sat, 21 Nov 2026 09:29:00 +0000")]
    assert groups[1].items() == [
        ("Final-Recipient", "rfc822; bob@example.net"), ("Action", "failed"), ("Status", "5.1.1"),
        ("Remote-MTA", "dns; mx.example.net"),
        ("Diagnostic-Code", "smtp; 550 5.1.1 No such user"),
        ("Last-Attempt-Date", "Sat, 21 Nov 2026 09:29:59 +0000")]
    # What was ours to find out has no remote host; and whom the message was for at first is told
    # to programs only as the sender put it (RFC 3461 §6.3 (d)).
    assert groups[2].items()[0] == ("Final-Recipient", "rfc822; carol@example.net")
    assert groups[2]["Original-Recipient"] is None
    assert groups[2]["Remote-MTA"] is None
    assert groups[2]["Diagnostic-Code"] == "x-mailsvc; nobody answered within 30 seconds"
    assert groups[3].keys() == ["Final-Recipient", "Action", "Status"]
    assert groups[4]["Original-Recipient"] == "rfc822; Bob+x@example.com"
    assert "<carol@example.net> (<team@example.org>)\n" in text.replace("\r\n", "\n")
    assert "    mx.example.net: 550 5.1.1 No such user" in text


@pytest.mark.parametrize("language", TEXTS)
@pytest.mark.parametrize(("action", "failures"), [
    ("failed", (set(), {b"bob@example.net", b"carol@example.net"})),
    ("delayed", ({b"bob@example.net", b"carol@example.net"}, set())),
    ("relayed", (set(), set())), ("delivered", (set(), set()))])
def test_a_mailing_list_reads_them(
        action: str, failures: tuple[set[bytes], set[bytes]], language: str) -> None:
    """By flufl.bounce, which is Mailman's."""
    status = {"failed": "5.1.1", "delayed": "4.4.1"}.get(action, "2.0.0")
    written = report(
        action, failed(BOB, status=status), failed(Address("carol", "example.net"), status=status),
        language=language).write("ID", ORIGINAL)
    assert all_failures(email.message_from_bytes(written)) == failures


@pytest.mark.parametrize(("action", "ret", "kind"), [
    ("failed", "FULL", "message/rfc822"), ("failed", "HDRS", "text/rfc822-headers"),
    ("failed", "", "text/rfc822-headers"), ("delayed", "FULL", "text/rfc822-headers")])
def test_what_is_returned(action: str, ret: str, kind: str) -> None:
    made = report(action, ret=ret)
    returned = read(made.write("ID", ORIGINAL))[3]
    assert returned.get_content_type() == kind
    assert made.whole == (kind == "message/rfc822")
    assert (b"body" in returned.as_bytes()) == made.whole
    assert b"Subject: hello\r\nFrom: alice@example.org\r\n" in returned.as_bytes()


def test_of_a_header_without_end_so_much_is_returned() -> None:
    written = report().write("ID", b"Subject: x\r\n" * 20_000)
    assert HEADER_OCTETS < len(written) < HEADER_OCTETS + 4000


JOERG = Address("jörg", "bücher.example")


@pytest.mark.parametrize("ret", ["FULL", "HDRS"])
@pytest.mark.parametrize("smtputf8", [False, True])
@pytest.mark.parametrize("original", [
    ORIGINAL, "Subject: é\r\n\r\nbody\r\n".encode(), "Subject: e\r\n\r\né\r\n".encode()])
@pytest.mark.parametrize("sender", [ALICE, JOERG])
@pytest.mark.parametrize("recipient", [failed(BOB), failed(JOERG), failed(BOB, JOERG)])
def test_more_than_ascii(ret: str, smtputf8: bool, original: bytes, sender: Address,
                         recipient: QueuedRecipient) -> None:
    made = report("failed", recipient, sender=sender, ret=ret, smtputf8=smtputf8)
    written = made.write("ID", original)
    message, _, groups, returned = read(written)
    assert made.smtputf8 == (sender == JOERG)
    international = recipient.address == JOERG
    status = list(message.iter_parts())[1]
    assert status.get_content_type() == (
        "message/global-delivery-status" if international else "message/delivery-status")
    if not international:
        assert groups[1]["Final-Recipient"] == "rfc822; bob@example.net"
    eight_bit = not (original if ret == "FULL" else original.partition(b"\r\n\r\n")[0]).isascii()
    whole = {True: "message/global", False: "message/rfc822"}
    header = {True: "message/global-headers", False: "text/rfc822-headers"}
    assert returned.get_content_type() == (whole if ret == "FULL" else header)[
        eight_bit and smtputf8]


def test_what_a_host_lacks_is_no_reply_of_it() -> None:
    """RFC 3461 §9.2."""
    written = report("failed", failed(BOB, status="5.7.30", reply="REQUIRETLS is not offered"),
                     failed(BOB, reply="550-5.1.1 so")).write("ID", ORIGINAL)
    groups = read(written)[2]
    assert (groups[1]["Remote-MTA"], groups[1]["Diagnostic-Code"]) == (
        "dns; mx.example.net", "x-mailsvc; REQUIRETLS is not offered")
    assert groups[2]["Diagnostic-Code"].startswith("x-mailsvc;")


def test_an_original_recipient_beyond_ascii_is_told_in_ascii() -> None:
    """RFC 6533 §3; so it can be told apart in a report of either form."""
    written = report("failed", failed(BOB, orcpt="utf-8;jörg@example.com")).write("ID", ORIGINAL)
    assert read(written)[2][1]["Original-Recipient"] == r"utf-8; j\x{F6}rg@example.com"


def test_no_line_is_longer_than_a_line_may_be() -> None:
    word = "x" * 4000
    text = report("failed", failed(BOB, host="h" * 2000, reply=f"550 5.1.1 {word} end")).write(
        "R1", b"Subject: hi\r\n\r\n")
    assert max(map(len, text.split(b"\r\n"))) <= 998
    parsed = email.message_from_bytes(text, policy=email.policy.default)
    group = list(list(parsed.iter_parts())[1].iter_parts())[1]
    assert "".join(group["Diagnostic-Code"].split()) == f"smtp;5505.1.1{word}end"


def test_a_long_name_leaves_the_boundary_short() -> None:
    """RFC 2046 §5.1.1."""
    name = ".".join(["x" * 60] * 4)
    message = read(report(hostname=name).write("0DJ7W4K2M1Q00F3A", ORIGINAL))[0]
    assert message.get_boundary() is not None and len(message.get_boundary()) <= 70


@given(reply=st.text(max_size=300), host=st.text(max_size=30),
       orcpt=st.text(max_size=60), envid=st.text(max_size=40))
def test_nothing_that_others_say_becomes_a_field(reply: str, host: str, orcpt: str,
                                                 envid: str) -> None:
    written = report("failed", failed(BOB, reply=reply, host=host, orcpt=orcpt),
                     envid=envid).write("ID", ORIGINAL)
    assert written.isascii()
    _, _, groups, _ = read(written)
    assert len(groups) == 2
    assert set(groups[0].keys()) <= {"Original-Envelope-Id", "Reporting-MTA", "Arrival-Date"}
    assert set(groups[1].keys()) <= {"Original-Recipient", "Final-Recipient", "Action", "Status",
                                     "Remote-MTA", "Diagnostic-Code", "Last-Attempt-Date"}
    assert groups[1]["Action"] == "failed"
