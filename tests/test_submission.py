"""mailsvc.submission: who may send as whom, and what is done to a message."""

from __future__ import annotations

import email
import re
import time
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mailsvc.directory import SqliteDirectory
from mailsvc.errors import PermanentFailure, TemporaryFailure
from mailsvc.mail import NULL_PATH, Account, Address
from mailsvc.names import parse_address
from mailsvc.routing import Router, RoutingSettings
from mailsvc.submission.completion import Completion
from mailsvc.submission.limits import SubmissionSettings
from mailsvc.submission.senders import SenderRefused, Submitter, login, owns
from tests.messages import CORPUS, RAW

at = parse_address

BOB = Account("bob", "one.example")
BOB_ADDRESS = Address("bob", "one.example")
BOBS = {BOB_ADDRESS, Address("sales", "one.example")}
#: 2026-11-21 09:30:00 UTC, a Saturday.
NOON = 1_795_253_400
DATE = b"Date: Sat, 21 Nov 2026 09:30:00 +0000\r\n"
ID = b"Message-ID: <0123456789ABCDEF@mx.example>\r\n"
FROM = b"From: <bob@one.example>\r\n"
SENDER = b"Sender: <bob@one.example>\r\n"
ALL = DATE + FROM + ID


def completion(sender: Address = BOB_ADDRESS,
               owned: Callable[[Address], bool] = BOBS.__contains__, **given: Any) -> Completion:
    submitter = Submitter(BOB.name, BOB_ADDRESS, owned, "This login",
                          "<bob@one.example> or another address that leads to it")
    return Completion(SubmissionSettings(**given), submitter, sender, id="0123456789ABCDEF",
                      hostname="mx.example", seconds=NOON)


def complete(message: bytes, *cuts: int, **given: Any) -> bytes:
    """*message* completed, when it comes cut at *cuts*."""
    one = completion(**given)
    places = [0, *sorted(cut for cut in cuts if cut < len(message)), len(message)]
    blocks = [message[a:b] for a, b in pairwise(places)]
    return b"".join([*map(one.feed, blocks), one.finish()])


def refused(message: bytes, status: str, **given: Any) -> str:
    """Why *message* is refused, whole and octet by octet."""
    texts = []
    for cuts in ((), range(1, len(message))):
        with pytest.raises(PermanentFailure) as failure:
            complete(message, *cuts, **given)
        assert str(failure.value.status) == status
        texts.append(failure.value.text)
    assert texts[0] == texts[1]
    return texts[0]


# --- What is added and removed --------------------------------------------------------------------

#: A header that lacks nothing.
FULL = DATE + FROM + ID


@pytest.mark.parametrize(("message", "result"), [
    # All there: untouched.
    (FULL + b"\r\nHello.\r\n", FULL + b"\r\nHello.\r\n"),
    # Something missing is put on top.
    (FROM + ID + b"\r\nHello.\r\n", DATE + FROM + ID + b"\r\nHello.\r\n"),
    (DATE + ID + b"\r\nHello.\r\n", FROM + DATE + ID + b"\r\nHello.\r\n"),
    (DATE + FROM + b"\r\nHello.\r\n", ID + DATE + FROM + b"\r\nHello.\r\n"),
    (b"Subject: x\r\n\r\nHello.\r\n", ALL + b"Subject: x\r\n\r\nHello.\r\n"),
    # No header at all.
    (b"\r\nHello.\r\n", ALL + b"\r\nHello.\r\n"),
    (b"\r\n", ALL + b"\r\n"),
    (b"", ALL),
    (b"Hello.\r\n", ALL + b"\r\nHello.\r\n"),
    (b"Hello.", ALL + b"\r\nHello."),
    (b" folded: what?\r\n", ALL + b"\r\n folded: what?\r\n"),
    (b": no name\r\n", ALL + b"\r\n: no name\r\n"),
    (b"\x00: x\r\n", ALL + b"\r\n\x00: x\r\n"),
    ("Grüße: x\r\n".encode(), ALL + "\r\nGrüße: x\r\n".encode()),
    # Nothing but a header, whole or not.
    (FULL, FULL),
    (FULL + b"Subject: x", FULL + b"Subject: x"),
    (FULL + b"Subject: x\r", FULL + b"Subject: x\r"),
    (FULL + b"Subject: x\r\n more", FULL + b"Subject: x\r\n more"),
    (FULL + b"Subject", FULL + b"\r\nSubject"),
    # A header that text ends.
    (FULL + b"Dear all,\r\nBcc: x@y\r\n", FULL + b"\r\nDear all,\r\nBcc: x@y\r\n"),
    (b"From bob Sat Nov 21\r\nSubject: x\r\n", ALL + b"\r\nFrom bob Sat Nov 21\r\nSubject: x\r\n"),
    # Any case, obsolete white space, folded lines, 8-bit and NUL.
    (b"DATE : x\r\nfrom\t:bob@one.example\r\nmessage-ID:\r\n\r\n",
     b"DATE : x\r\nfrom\t:bob@one.example\r\nmessage-ID:\r\n\r\n"),
    (b"From:\r\n bob\r\n\t@one.example\r\n" + DATE + ID + b"\r\n",
     b"From:\r\n bob\r\n\t@one.example\r\n" + DATE + ID + b"\r\n"),
    (FULL + b"Subject: \x00 \xff\r\n \x80\r\n\r\n\x00\xff",
     FULL + b"Subject: \x00 \xff\r\n \x80\r\n\r\n\x00\xff"),
    # Names that only begin alike.
    (b"Dated: x\r\nX-From: y\r\nMessage-IDs: z\r\n\r\n",
     ALL + b"Dated: x\r\nX-From: y\r\nMessage-IDs: z\r\n\r\n"),
    # Bcc goes, with its folded lines; nothing else does.
    (b"Bcc: a@b\r\n" + FULL + b"\r\n", FULL + b"\r\n"),
    (FULL + b"bCC :\r\n a@b,\r\n\t\r\n c@d\r\n\r\nBcc: e@f\r\n", FULL + b"\r\nBcc: e@f\r\n"),
    (FULL + b"Bcc: a@b", FULL),
    (FULL + b"Bcc: a@b\r\n folded", FULL),
    (FULL + b"Bcc: a\r\nBcc: b\r\nResent-Bcc: c\r\nSubject: x\r\n\r\n",
     FULL + b"Subject: x\r\n\r\n"),
    (FULL + b"X-Bcc: a\r\nBccs: b\r\n\r\n", FULL + b"X-Bcc: a\r\nBccs: b\r\n\r\n"),
    (FULL + b"Bcc:\r\nText\r\n", FULL + b"\r\nText\r\n"),
    (b"Bcc: a\r\n\r\n", ALL + b"\r\n"),
    # Bcc in a nested message is content.
    (FULL + b"Content-Type: message/rfc822\r\n\r\nBcc: a@b\r\n\r\nx\r\n",
     FULL + b"Content-Type: message/rfc822\r\n\r\nBcc: a@b\r\n\r\nx\r\n"),
])
def test_completed(message: bytes, result: bytes) -> None:
    assert complete(message) == result
    assert complete(message, *range(len(message))) == result
    for cut in range(1, len(message)):
        assert complete(message, cut) == result


def test_who_is_named_without_a_reverse_path() -> None:
    """RFC 8098 §2.1: a receipt has none."""
    assert b"From: <bob@one.example>\r\n" in complete(b"\r\n", sender=NULL_PATH)


def test_the_reverse_path_is_named_otherwise() -> None:
    assert b"From: <sales@one.example>\r\n" in complete(b"\r\n", sender=at("sales@one.example"))
    odd = Address('b"\\ ü', "one.example")
    assert 'From: <"b\\"\\\\ ü"@one.example>\r\n'.encode() in complete(
        b"\r\n", sender=odd, owned={odd}.__contains__)


# --- Any message, any cuts ------------------------------------------------------------------------

_NAMES = ["Date", "From", "Message-ID", "message-id", "Bcc", "BCC", "Resent-Bcc", "Sender", "To",
          "X-Bcc", "", "Dear all,", "\x00", " ", "From bob ", "B" * 1000, "b c c"]
#: White space before the colon, which the standard library's parser does not know.
_OBSOLETE = ["DATE ", "From\t", "bcc ", "Resent-Bcc \t"]
_VALUES = [" x", " bob@one.example", " Bob <sales@one.example>", "", " a@b,\r\n c@d", "\r\n\t",
           " \x00\xff", " =?utf-8?q?x?=", "\r\n \r\n x", " " + "y" * 1100]
_TEXTS = st.sampled_from([b"\r\n", b"Hello.\r\n", b".\r\n", b"--b\r\n", b"Bcc: z@z\r\n", b" x\r\n",
                          b"\x00\xff\r\n", b"no end"])


def messages(names: list[str]) -> st.SearchStrategy[bytes]:
    lines = st.builds(lambda name, value: f"{name}:{value}\r\n".encode("latin-1"),
                      st.sampled_from(names), st.sampled_from(_VALUES))
    return st.builds(lambda header, body: b"".join(header + body),
                     st.lists(lines, max_size=8), st.lists(_TEXTS, max_size=5))


MESSAGES = messages(_NAMES + _OBSOLETE)


@given(MESSAGES, st.lists(st.integers(0, 2000), max_size=8))
def test_cuts_make_no_difference(message: bytes, cuts: list[int]) -> None:
    def outcome(*cuts: int) -> bytes | str:
        try:
            return complete(message, *cuts)
        except PermanentFailure as failure:
            return failure.text

    assert outcome(*cuts) == outcome()


@given(messages(_NAMES))
@example(b"Subject: x\r\nDear all,\r\nFrom: evil@one.example\r\nBcc: a@b\r\n")
def test_what_another_reader_finds(message: bytes) -> None:
    """By the standard library's parser, which knows nothing of ours."""
    found = email.message_from_bytes(complete(message, check_from=False))
    before = email.message_from_bytes(_header(message)[0])
    assert not found.get_all("Bcc") and not found.get_all("Resent-Bcc")
    for name in ("Date", "From", "Message-ID"):
        assert len(found.get_all(name)) == len(before.get_all(name, [1]))


@given(MESSAGES)
def test_nothing_else_is_touched(message: bytes) -> None:
    result = complete(message, check_from=False)
    added, rest = _added(result)
    header, text = _header(message)
    bare = re.sub(rb"(?ims)^(?:resent-)?bcc[ \t]*:.*?(?:\r\n(?![ \t])|\Z)", b"", header)
    assert rest in (bare + text, bare + b"\r\n" + text)
    assert re.fullmatch(rb"(?:(?:Date|From|Sender|Message-ID): [^\r\n]+\r\n){0,4}", added)


def _header(message: bytes) -> tuple[bytes, bytes]:
    """A line-at-a-time reference: the header of *message* and the rest."""
    lines = re.findall(rb".*?\r\n|.+\Z", message, re.DOTALL)
    size = 0
    for number, line in enumerate(lines):
        field = re.match(rb"[!-9;-~]{1,998}[ \t]{0,998}:", line)
        folded = number and line[:1] in (b" ", b"\t")
        if not (field or folded):
            break
        size += len(line)
    return message[:size], message[size:]


def _added(result: bytes) -> tuple[bytes, bytes]:
    """What completion put on top: its fields differ from all that the messages are made of."""
    size = 0
    for field in (DATE, FROM, SENDER, ID):
        if result[size:].startswith(field):
            size += len(field)
    return result[:size], result[size:]


@pytest.mark.parametrize("name", [*CORPUS, *RAW])
def test_the_corpus_keeps_its_octets(name: str) -> None:
    message = {**CORPUS, **RAW}[name]
    result = complete(message, 1, 50, 200, check_from=False)
    assert result.endswith(message)
    assert complete(result, check_from=False) == result  # what is complete stays as it is


# --- Bounds ---------------------------------------------------------------------------------------


def test_a_long_header_is_refused() -> None:
    """PITFALLS, SMTP row 17."""
    field = b"X: " + b"y" * 95 + b"\r\n"
    one, held = completion(), 0
    tracemalloc.start()
    with pytest.raises(PermanentFailure, match="header of the message is longer than 262144 oct"):
        for _ in range(1000):
            held += 10_000
            one.feed(field * 100)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 300_000 and peak < 1_500_000


@pytest.mark.parametrize("rest", [
    b"", b"\r\n", b"\r\nbody", b"text is no field\r\n", b"text", b"\r\n: 1\r\n", b"a"])
@pytest.mark.parametrize("excess", [0, 1])
def test_the_limit_is_exact(rest: bytes, excess: int) -> None:
    header = b"X: " + b"y" * (1024 - 5 + excess) + b"\r\n"
    for cuts in ((), range(1, 2000), (1023,), (1024,), (1025,), (1026,)):
        if excess:
            with pytest.raises(PermanentFailure, match="1024"):
                complete(header + rest, *cuts, header_octets=1024)
        else:
            assert header in complete(header + rest, *cuts, header_octets=1024)


@pytest.mark.parametrize("end", [b"", b"\r", b"\r\n"])
def test_the_limit_of_a_header_that_nothing_ends(end: bytes) -> None:
    header = b"X: y\r\n folded " + b"z" * (1024 - 14 - len(end)) + end
    assert header in complete(header, header_octets=len(header))
    refused(header, "5.6.0", header_octets=len(header) - 1)


def test_a_long_line_of_a_header_is_bounded() -> None:
    one = completion()
    one.feed(b"Subject: ")
    with pytest.raises(PermanentFailure) as failure:
        for _ in range(100):
            one.feed(b"x" * 10_000)
    assert str(failure.value.status) == "5.6.0"


@pytest.mark.parametrize("text", [b"no field ", b"x" * 999, b"\x00", b"\xff"])
def test_text_without_a_header_is_not_held(text: bytes) -> None:
    one = completion()
    assert one.feed(text * 2) == ALL + b"\r\n" + text * 2
    for _ in range(100):
        assert one.feed(b"y" * 10_000) == b"y" * 10_000


def test_the_body_passes_through() -> None:
    one = completion()
    one.feed(FULL + b"\r\n")
    block = bytes(100_000)
    assert one.feed(block) is block
    assert one.finish() == b""


def test_dribbled_octets_are_no_burden() -> None:
    began = time.process_time()
    complete(b"X: y\r\n" * 8000 + b"\r\n", *range(48_002))
    assert time.process_time() - began < 5


# --- From and Sender ------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [
    b"bob@one.example", b"Bob <bob@one.example>", b"bob@one.example (Bob)",
    b'"B, ob" <bob@ONE.example>',
    b"(x) <bob@one.example>", b"<sales@one.example>", b"=?utf-8?q?B=C3=B6b?= <bob@one.example>",
    b"Bob <eve@two.example>, bob@one.example", b"Both: eve@two.example, <sales@one.example>;",
    b"bob @ one.example", b"(a (nested) comment \\) ) bob@one.example", b'"bob"@one.example',
    "Böb <bob@one.example>".encode(), b",bob@one.example,,", b"B. O. B. <bob@one.example>",
])
def test_an_author_who_may(value: bytes) -> None:
    message = b"From: " + value + b"\r\n" + DATE + ID + b"\r\n"
    result = complete(message)
    several = b"eve" in value
    assert result == (SENDER if several else b"") + message


@pytest.mark.parametrize("value", [
    b"eve@two.example", b'"bob@one.example" <eve@two.example>', b"bob@two.example",
    b"(bob@one.example) eve@two.example", b"eve@two.example, mallory@two.example",
    b"bobs@one.example", b'"bob "@one.example', b"<eve@two.example> (bob@one.example)",
    b'"<bob@one.example>" <eve@two.example>',
])
def test_an_author_who_may_not(value: bytes) -> None:
    text = refused(b"From: " + value + b"\r\n\r\n", "5.7.1")
    assert "may not send as <" in text and "use <bob@one.example>" in text


def test_the_refusal_names_the_address() -> None:
    assert refused(b"From: a@two.example, b@two.example\r\n\r\n", "5.7.1") == (
        "This login may not send as <a@two.example> or <b@two.example>; use <bob@one.example> or "
        "another address that leads to it")


@pytest.mark.parametrize("value", [
    b"", b"bob", b"Bob", b"<>", b"<bob>", b"bob@one.example <eve@two.example>", b"nobody:;",
    b"bob@one.example eve@two.example", b"<bob@one.example> eve@two.example", b"<bob@one.example",
    b"<eve@two.example><bob@one.example>", b"<@two.example:bob@one.example>", b"bob@one.example>",
    b"bob@one.example@two.example", b"bob..b@one.example", b".bob@one.example", b"bob@.one.example",
    b"bob.@one.example", b"bob@one.example.", b"@one.example", b"bob@",
    b"bob@one.example;", b"a: b: bob@one.example;;", b"a: bob@one.example", b'"bob@one.example',
    b"(bob@one.example", b"bob@one.example)", b"bob\x00@one.example", b"b\xffb@one.example",
    b"Pat, Bob <bob@one.example>", b": bob@one.example;", b"eve@two.example\x0b,bob@one.example",
    b"bob@[one.example", b"bob\\@one.example", b"eve@two.example<bob@one.example>", b"x" * 17_000,
])
def test_an_author_not_to_be_understood(value: bytes) -> None:
    text = refused(b"From: " + value + b"\r\n\r\n", "5.6.0")
    assert text.startswith("The From field cannot be understood: ")
    assert complete(b"From: " + value + b"\r\n\r\n", check_from=False).startswith(
        DATE + SENDER + ID)


def test_several_from_fields() -> None:
    message = FROM + b"from : eve@two.example\r\n\r\n"
    assert "several From fields" in refused(message, "5.6.0")
    assert complete(message, check_from=False) == DATE + SENDER + ID + message


def test_several_sender_fields() -> None:
    assert "several Sender" in refused(FROM + SENDER + SENDER + b"\r\n", "5.6.0")


def test_a_sender_must_be_ones_own_too() -> None:
    message = b"From: eve@two.example, bob@one.example\r\nSender: %s\r\n" + DATE + ID + b"\r\n"
    assert complete(message % b"sales@one.example") == message % b"sales@one.example"
    assert "<eve@two.example>" in refused(message % b"eve@two.example", "5.7.1")
    assert "<eve@two.example>" in refused(message % b"eve@two.example, bob@one.example", "5.7.1")
    assert "Sender field" in refused(message % b"nobody", "5.6.0")
    assert "<eve@two.example>" in refused(b"Sender: eve@two.example\r\n\r\n", "5.7.1")
    other = message % b"eve@two.example"
    assert complete(other, check_from=False) == other


def test_a_sender_is_added_where_from_does_not_tell() -> None:
    eve = b"From: eve@two.example\r\n" + DATE + ID + b"\r\n"
    assert complete(eve, check_from=False) == SENDER + eve
    assert complete(FULL + b"\r\n", check_from=False) == FULL + b"\r\n"
    assert complete(eve, check_from=False, sender=at("sales@one.example")).startswith(
        b"Sender: <sales@one.example>\r\n")


def test_a_message_sent_on_unchanged() -> None:
    """RFC 5322 §3.6.6: From stays what it was, and Resent-From tells who sent it on."""
    eve = b"From: eve@two.example\r\nSender: x@two.example\r\n" + DATE + ID + b"\r\n"
    latest = b"Resent-From: bob@one.example\r\n"
    earlier = b"Resent-From: eve@two.example\r\n"
    assert complete(latest + earlier + eve) == latest + earlier + eve
    refused(earlier + latest + eve, "5.7.1")
    refused(b"Resent-From: nobody\r\n" + eve, "5.6.0")
    assert complete(earlier + eve, check_from=False) == b"Resent-" + SENDER + earlier + eve


RESENT = b"Resent-From: bob@one.example\r\n"
#: The rest of a message that is sent on.
ORIGINAL = b"From: eve@two.example\r\nSender: x@two.example\r\n" + DATE + ID + b"\r\n"
#: What an earlier sender said of itself.
HISTORY = b"Resent-Sender: x@two.example\r\nResent-From: eve@two.example\r\n"


@pytest.mark.parametrize("header", [
    RESENT + b"Resent-Sender: sales@one.example\r\n",
    b"resent-sender : bob@one.example\r\n" + RESENT,
    # Another block follows: of another kind is what is between, or a name comes again.
    RESENT + b"Received: x\r\n" + HISTORY,
    RESENT + b"To: x\r\n folded\r\n" + HISTORY,
    RESENT + b"Resent-Date: x\r\nResent-Date: y\r\n" + HISTORY,
    b"Resent-To: x\r\n" + RESENT + b"Resent-To: y\r\n" + HISTORY,
    RESENT + b"Resent-Sender: bob@one.example\r\n" + HISTORY,
    RESENT + b"Resent-From: eve@two.example\r\nResent-Sender: x@two.example\r\n",
    b"X: y\r\n" + RESENT + b"Received: x\r\n" + HISTORY + HISTORY,
])
def test_who_sent_it_on(header: bytes) -> None:
    """RFC 5322 §3.6.6: of the latest block alone, which is on top."""
    assert complete(header + ORIGINAL) == header + ORIGINAL
    assert complete(header + ORIGINAL, *range(500)) == header + ORIGINAL


@pytest.mark.parametrize("header", [
    RESENT + b"Resent-Sender: eve@two.example\r\n",
    b"Resent-Sender: eve@two.example\r\n" + RESENT,
    b"Resent-Sender: eve@two.example\r\nReceived: x\r\n" + RESENT + HISTORY,
    RESENT + b"Resent-To: x\r\nRESENT-SENDER:\r\n eve@two.example\r\n" + HISTORY,
    # No block ends where none follows.
    RESENT + b"To: x\r\nResent-Sender: eve@two.example\r\n",
    RESENT + b"Resent-To: x\r\nResent-To: y\r\nResent-Sender: eve@two.example\r\n",
    # Nor before it has an author.
    b"Resent-To: x\r\nResent-To: y\r\nResent-Sender: eve@two.example\r\n" + RESENT + HISTORY,
])
def test_who_may_not_have_sent_it_on(header: bytes) -> None:
    assert "<eve@two.example>" in refused(header + ORIGINAL, "5.7.1")
    assert complete(header + ORIGINAL, check_from=False) == header + ORIGINAL


def test_blocks_that_are_none() -> None:
    sender = b"Resent-Sender: bob@one.example\r\n"
    assert "several Resent-Sender" in refused(RESENT + sender + b"X: y\r\n" + sender + ORIGINAL,
                                              "5.6.0")
    assert "Resent-Sender field" in refused(RESENT + b"Resent-Sender: me\r\n" + ORIGINAL, "5.6.0")
    # Without a Resent-From it is From that counts, and whoever is named besides.
    assert complete(sender + FULL + b"\r\n") == sender + FULL + b"\r\n"
    assert "<x@two.example>" in refused(b"Resent-Sender: x@two.example\r\n" + FULL, "5.7.1")
    assert "<eve@two.example>" in refused(sender + ORIGINAL, "5.7.1")


def test_a_resent_sender_is_added_where_resent_from_does_not_tell() -> None:
    both = b"Resent-From: eve@two.example, bob@one.example\r\n" + ORIGINAL
    assert complete(both) == b"Resent-" + SENDER + both


def test_a_directory_that_cannot_be_read_is_no_refusal() -> None:
    def fails(address: Address) -> bool:
        raise TemporaryFailure("not now")

    with pytest.raises(TemporaryFailure):
        complete(FULL + b"\r\n", owned=fails)


@pytest.mark.parametrize("value", [
    b"(" * 16_000, b'"' * 16_001, b"a," * 8000, b"<" * 16_000, b"a:" * 8000, b"(\\" * 8000,
    b"a@b," * 4000, b" " * 16_000, b'"\\' * 8000])
def test_hostile_fields_take_no_time(value: bytes) -> None:
    began = time.process_time()
    with pytest.raises(PermanentFailure):
        complete(b"From: " + value + b"\r\n\r\n", owned=lambda address: False)
    assert time.process_time() - began < 1


# --- Who owns an address --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Router]:
    with SqliteDirectory(tmp_path_factory.mktemp("senders") / "accounts.sqlite") as directory:
        for domain, separators in (("one.example", None), ("dash.example", "-"),
                                   ("all.example", None), ("two.example", None)):
            directory.add_domain(domain, separators=separators)
        for name in ("Bob@one.example", "alice@one.example", "bob+lists@one.example",
                     "redirected@one.example", "carol@one.example", "bob@dash.example",
                     "anna@all.example", "quiet@one.example", "loop@one.example"):
            directory.add_account(at(name))
        for name, *targets in (
                ("sales@one.example", "bob@one.example"),
                ("all@one.example", "sales@one.example", "alice@one.example"),
                ("info@two.example", "all@one.example"),
                ("loop@one.example", "loop+x@one.example"),
                ("redirected@one.example", "alice@one.example")):
            directory.add_alias(at(name), list(map(at, targets)))
        directory.add_alias(at("carol@one.example"), [at("c@new.example")], moved=True)
        directory.set_catch_all("all.example", at("anna@all.example"))
        yield Router(directory, "mx.example", RoutingSettings(postmaster="quiet@one.example"))


@pytest.mark.parametrize(("address", "owners"), [
    ("bob@one.example", "bob"),
    ("BOB@one.example", "bob"),
    ("bob+news@one.example", "bob"),
    ("bob+lists@one.example", "bob+lists"),
    ("bob+lists+x@one.example", "bob+lists"),
    ("bob-x@one.example", ""),
    ("bob-x@dash.example", "bob@dash"),
    ("sales@one.example", "bob"),
    ("sales+eu@one.example", "bob"),
    ("all@one.example", "bob alice"),
    ("info@two.example", "bob alice"),
    ("redirected@one.example", "redirected alice"),
    ("redirected+x@one.example", "alice"),
    ("loop@one.example", "loop"),
    ("carol@one.example", ""),
    ("whoever@all.example", "anna@all"),
    ("anna@all.example", "anna@all"),
    ("bob@two.example", ""),
    ("bob@elsewhere.example", ""),
    ("bob@[192.0.2.1]", ""),
    ("postmaster@two.example", "quiet"),
    ("abuse@one.example", "quiet"),
    ("ghost@one.example", ""),
    ("bob@one.example.", "bob"),
    ("<>", "bob alice bob+lists redirected carol quiet loop bob@dash anna@all"),
])
def test_owners(router: Router, address: str, owners: str) -> None:
    local_part, _, domain = address.rpartition("@")
    asked = NULL_PATH if address == "<>" else Address(local_part, domain)
    found = []
    for name in ("bob", "alice", "bob+lists", "redirected", "carol", "quiet", "loop", "bob@dash",
                 "anna@all"):
        local, _, where = name.partition("@")
        # What else is known of an account may have changed since its login.
        account = Account({"bob": "Bob"}.get(name, local), f"{where or 'one'}.example", 7, 7)
        if owns(router, account, asked):
            found.append(name)
            login(router, account).require(asked)
        else:
            with pytest.raises(SenderRefused) as refusal:
                login(router, account).require(asked)
            assert str(refusal.value.status) == "5.7.1"
            assert f"<{asked}>" in refusal.value.text
            assert f"use <{account.name}>" in refusal.value.text
    assert found == sorted(owners.split(), key=found.index) and len(found) == len(owners.split())


def test_an_account_that_was_removed_owns_nothing(router: Router) -> None:
    assert not owns(router, Account("ghost", "one.example"), at("ghost@one.example"))


def test_a_directory_out_of_order(tmp_path_factory: pytest.TempPathFactory) -> None:
    class Broken:
        def route(self, forward_path: Address) -> tuple[Account, ...]:
            raise TemporaryFailure("The directory of accounts cannot be read now")

    with pytest.raises(TemporaryFailure):
        owns(Broken(), BOB, at("bob@one.example"))  # type: ignore[arg-type]
