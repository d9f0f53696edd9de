"""A second message in the text of the first: nobody finds it, wherever the input is cut.

PITFALLS of SMTP: ends of data that are none, lines beyond a limit, BDAT out of step.  Everything
here goes through a whole :class:`mailsvc.smtp.session.Session`; the vectors are data, in
``tests/corpus/smuggling.toml``.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from mailsvc.mail import Account, Recipient
from mailsvc.smtp import events, replies
from mailsvc.smtp.limits import SMTPSettings
from mailsvc.smtp.replies import Reply, accepted
from mailsvc.smtp.session import Session
from tests.fuzz_scanner import cut, text_of_data

VECTORS = tomllib.loads((Path(__file__).parent / "corpus" / "smuggling.toml").read_text())["vector"]

NO_LIMITS = SMTPSettings(message_octets=0, errors=10_000, idle_commands=10_000)


class Owner:
    """Owns a session: accepts everything it is asked, but for *refused*, and keeps what came.

    :ivar senders: the reverse-path of each transaction that began.
    :ivar messages: each message accepted.
    :ivar output: what the client was sent.
    """

    def __init__(
        self, limits: SMTPSettings = NO_LIMITS, refused: dict[type, Reply] | None = None
    ) -> None:
        self.session = Session("mx.example.org", limits)
        self.senders: list[str] = []
        self.messages: list[bytes] = []
        self.output = b""
        self._refused = refused or {}
        self._blocks: list[bytes] | None = None
        self.feed(b"")

    def feed(self, data: bytes) -> None:
        """Receive *data* and act on all events."""
        self.session.receive(data)
        while (event := self.session.next_event()) is not None:
            answer = self._refused.get(type(event)) or self._answer(event)
            if answer is not None:
                self.session.reply(answer)
            assert not self.session.waiting
        self.output += self.session.data_to_send()

    def _answer(self, event: events.Event) -> Reply | None:
        match event:
            case events.Connected():
                return self.session.greeting
            case events.Hello():
                return self.session.hello_reply(event)
            case events.MailFrom(envelope):
                self.senders.append(str(envelope.reverse_path))
                return replies.SENDER_OK
            case events.RcptTo(forward_path):
                assert self.session.transactions.envelope is not None
                self.session.transactions.envelope.recipients.append(
                    Recipient(forward_path, (Account("bob", "example.net"),)))
                return replies.RECIPIENT_OK
            case events.DataBegins():
                assert self._blocks is None, "a message begins within another"
                self._blocks = []
                return replies.START_DATA
            case events.MessageBlock(data):
                assert self._blocks is not None, "text without a message"
                self._blocks.append(data)
                return None
            case events.MessageEnds(size):
                assert self._blocks is not None, "the end of no message"
                self.messages.append(b"".join(self._blocks))
                assert size == len(self.messages[-1])
                self._blocks = None
                return accepted("ID")
            case events.Aborted():
                # A message that the owner itself refused at DataBegins was never begun.
                assert self._blocks is not None or events.DataBegins in self._refused
                self._blocks = None
                return None
            case events.Closed():
                return None
            case _:
                raise AssertionError(f"{event} was not asked for")

    @property
    def codes(self) -> list[int]:
        """The code of each reply sent."""
        lines = self.output.split(b"\r\n")[:-1]
        return [int(line[:3]) for line in lines if line[3:4] == b" "]


def after(pieces: Iterable[bytes], limits: SMTPSettings = NO_LIMITS,
          refused: dict[type, Reply] | None = None) -> Owner:
    """The owner of a session that received *pieces*."""
    owner = Owner(limits, refused)
    for piece in pieces:
        owner.feed(piece)
    return owner


def transaction(sender: str) -> bytes:
    return b"MAIL FROM:<%s>\r\nRCPT TO:<bob@example.net>\r\nDATA\r\n" % sender.encode()


BEGIN = b"EHLO client.example\r\n" + transaction("alice@example.org")
SECOND = transaction("mallory@example.com") + b"Subject: smuggled\r\n\r\nhello"
#: The true end of the message, and an honest transaction behind it.
END = b"\r\n.\r\n" + transaction("carol@example.org") + b"honest\r\n.\r\nQUIT\r\n"

BEGIN_CODES = [220, 250, 250, 250, 354]
END_CODES = [250, 250, 354, 250, 221]
HONEST = b"honest\r\n"


def boundaries(stream: bytes) -> Iterator[list[bytes]]:
    """*stream* whole, octet by octet, and in two pieces at each place."""
    yield [stream]
    yield cut(stream, range(1, len(stream)))
    for place in range(1, len(stream)):
        yield cut(stream, [place])


def assert_one_message(owner: Owner, text: bytes | None, refusal: Reply | None = None) -> None:
    """One message came, *text*, or was refused with *refusal*; then the honest one."""
    if refusal is None:
        assert text is not None
        assert owner.messages == [text, HONEST]
        assert owner.codes == [*BEGIN_CODES, 250, *END_CODES]
    else:
        assert owner.messages == [HONEST]
        assert owner.codes == [*BEGIN_CODES, refusal.code, *END_CODES]
        assert owner.output.count(refusal.wire) == 1
    assert owner.senders == ["alice@example.org", "carol@example.org"]


# ---- ends of data that are none ----


def octets_of(vector: dict[str, str]) -> bytes:
    return vector["octets"].encode("latin-1")


@pytest.mark.parametrize("prefix", [b"", b"Subject: one\r\n\r\ntext", b"Received: x"],
                         ids=["at the start", "in the body", "in the header"])
@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_a_vector_makes_no_second_message(vector: dict[str, str], prefix: bytes) -> None:
    text = prefix + octets_of(vector) + SECOND
    # At the very start of the text, DATA's own CRLF is in front of it.
    message, rest = text_of_data(text + END)
    assert rest == END.removeprefix(b"\r\n.\r\n") or not prefix
    refusal = replies.STRAY_LINE_END if vector["outcome"] == "refused" else None
    for pieces in boundaries(BEGIN + text + END):
        assert_one_message(after(pieces), message, refusal)


def test_the_vectors_are_well_formed() -> None:
    assert len(VECTORS) >= 40
    assert len({vector["name"] for vector in VECTORS}) == len(VECTORS)
    assert len({vector["octets"] for vector in VECTORS}) == len(VECTORS)
    for vector in VECTORS:
        octets = octets_of(vector)
        assert b"\r\n.\r\n" not in octets
        bare = octets.replace(b"\r\n", b"")
        assert (vector["outcome"] == "refused") == (b"\r" in bare or b"\n" in bare)


def test_every_short_mix_of_cr_lf_dot_and_nul_is_an_end_only_if_it_holds_the_end() -> None:
    mixes = (b"".join(mix) for length in range(1, 6)
             for mix in itertools.product((b"\r", b"\n", b".", b"\0"), repeat=length))
    for mix in mixes:
        stream = BEGIN + b"text" + mix + SECOND + END
        begin = len(BEGIN) + 4
        variants = [[stream], cut(stream, range(begin, begin + len(mix) + 1))]
        variants += [cut(stream, [place]) for place in range(begin, begin + len(mix) + 1)]
        bare = mix.replace(b"\r\n", b"")
        refusal = replies.STRAY_LINE_END if b"\r" in bare or b"\n" in bare else None
        if b"\r\n.\r\n" in mix:
            # The end itself: two messages then, and for every server.
            assert mix == b"\r\n.\r\n"
            for pieces in variants:
                owner = after(pieces)
                assert len(owner.messages) == 3
                assert owner.senders[1] == "mallory@example.com"
            continue
        message, _ = text_of_data(b"text" + mix + SECOND + END)
        for pieces in variants:
            assert_one_message(after(pieces), message, refusal)


@pytest.mark.parametrize("stray", [b"\r", b"\n", b"\n\r", b"\r\r", b"x\n", b"x\r"])
def test_the_true_end_ends_a_message_with_a_stray_line_end_just_before_it(stray: bytes) -> None:
    for pieces in boundaries(BEGIN + b"text" + stray + END):
        assert_one_message(after(pieces), None, replies.STRAY_LINE_END)


@pytest.mark.parametrize("octets", [b"\r", b"\n", b".", b"\r\n", b"\r\n.", b"\r\n.\r"])
def test_an_end_begun_and_not_finished_is_waited_for(octets: bytes) -> None:
    owner = after([BEGIN + b"text" + octets])
    assert owner.codes == BEGIN_CODES
    assert owner.messages == []
    assert owner.session.transactions.receiving


def test_the_end_that_is_cut_off_from_its_text_by_a_pause() -> None:
    owner = after([BEGIN, b"text", b"\r", b"\n", b".", b"\r"])
    assert owner.codes == BEGIN_CODES
    owner.feed(b"\n")
    assert owner.codes == [*BEGIN_CODES, 250]
    assert owner.messages == [b"text\r\n"]


# ---- commands ----


@pytest.mark.parametrize("line", [
    b"NOOP\nMAIL FROM:<mallory@example.com>\r\n",
    b"NOOP\rMAIL FROM:<mallory@example.com>\r\n",
    b"NOOP\n\rMAIL FROM:<mallory@example.com>\r\n",
    b"NOOP\0\nMAIL FROM:<mallory@example.com>\r\n",
    b"MAIL FROM:<mallory@example.com>\n\r\n",
    b"MAIL FROM:<mallory@example.com>\r\r\n",
    b"\nMAIL FROM:<mallory@example.com>\r\n",
    b"MAIL FROM:<mallory@example.com>\0\r\n",
])
def test_only_crlf_ends_a_command(line: bytes) -> None:
    for pieces in boundaries(b"EHLO client.example\r\n" + line + b"QUIT\r\n"):
        owner = after(pieces)
        assert owner.senders == []
        assert owner.codes == [220, 250, 500, 221]


def test_what_a_command_line_too_long_holds_is_no_command() -> None:
    padding = b"x" * 5000
    for inside in (b"", b"\n", b"\r", b"\nMAIL FROM:<mallory@example.com>\n"):
        stream = b"EHLO client.example\r\nNOOP " + padding + inside + padding + b"\r\nQUIT\r\n"
        for step in (len(stream), 2048, 2047, 1000, 7):
            owner = after(cut(stream, range(step, len(stream), step)))
            assert owner.senders == []
            assert owner.codes == [220, 250, 500, 221]


# ---- lines and messages beyond a limit ----

LONG_TEXTS = [
    # What limit is passed, the text that passes it, the limits, the refusal.
    ("a line", b"x" * 20_000 + b"\r\n", SMTPSettings(text_line_octets=1000),
     replies.TEXT_LINE_TOO_LONG),
    ("a line in the header", b"Subject: " + b"x" * 20_000 + b"\r\n\r\n",
     SMTPSettings(text_line_octets=1000), replies.TEXT_LINE_TOO_LONG),
    ("a line that does not end", b"x" * 20_000, SMTPSettings(text_line_octets=1000),
     replies.TEXT_LINE_TOO_LONG),
    ("the message", b"x" * 20_000 + b"\r\n", SMTPSettings(message_octets=10_000),
     replies.MESSAGE_TOO_BIG),
    ("the hops", b"Received: x\r\n" * 200 + b"\r\n", SMTPSettings(), replies.LOOP),
    ("nothing", b"x" * 20_000 + b"\r\n", SMTPSettings(), None),
]


@pytest.mark.parametrize(("text", "limits", "refusal"), [row[1:] for row in LONG_TEXTS],
                         ids=[row[0] for row in LONG_TEXTS])
def test_beyond_a_limit_the_message_still_ends_at_its_end(
    text: bytes, limits: SMTPSettings, refusal: Reply | None
) -> None:
    behind = SECOND + b"\r\n..\r\n" + transaction("mallory@example.com") + b"again"
    message, _ = text_of_data(text + behind + END)
    # In later segments, as the pitfall has it; then cut at each octet behind the long part.
    later = [BEGIN, text, *cut(behind, range(20, len(behind), 20)), END]
    assert_one_message(after(later, limits), message, refusal)
    for size in (1, 999, 4096, 65_536):
        stream = BEGIN + text + behind + END
        assert_one_message(after(cut(stream, range(size, len(stream), size)), limits),
                           message, refusal)
    for place in range(len(behind) + 6):
        pieces = [BEGIN + text, *cut(behind + END, [place])]
        assert_one_message(after(pieces, limits), message, refusal)


def test_a_message_that_its_owner_gives_up_still_ends_at_its_end() -> None:
    behind = b"\r\n..\r\n" + SECOND + END
    for place in range(len(behind)):
        owner = after([BEGIN + b"text"])
        owner.session.transactions.refuse(replies.LOCAL_ERROR)
        owner.session.transactions.refuse(replies.LOOP)
        for piece in cut(behind, [place]):
            owner.feed(piece)
        assert_one_message(owner, None, replies.LOCAL_ERROR)


# ---- BDAT ----

HELLO = b"EHLO client.example\r\n"
RECIPIENT = b"MAIL FROM:<alice@example.org>\r\nRCPT TO:<bob@example.net>\r\n"
#: A chunk that looks like commands, line ends, and the end of data.
TRAP = b"\r\n.\r\nRSET\r\n" + transaction("mallory@example.com") + b"BDAT 3 LAST\r\nQUIT\r\n"
SIZE = b"%d" % len(TRAP)

CHUNKS: list[tuple[str, bytes, list[int], list[bytes]]] = [
    # What happens, what is sent behind EHLO, the codes, the messages accepted.
    ("a whole message in one chunk", RECIPIENT + b"BDAT " + SIZE + b" LAST\r\n" + TRAP,
     [250, 250, 250], [TRAP]),
    ("in two", RECIPIENT + b"BDAT " + SIZE + b"\r\n" + TRAP + b"BDAT 3 LAST\r\nx\r\n",
     [250, 250, 250, 250], [TRAP + b"x\r\n"]),
    ("in two, a CRLF cut", RECIPIENT + b"BDAT 2\r\nx\rBDAT 1 LAST\r\n\n", [250, 250, 250, 250],
     [b"x\r\n"]),
    ("0 LAST at once", RECIPIENT + b"BDAT 0 LAST\r\n", [250, 250, 250], [b""]),
    ("0 LAST behind another", RECIPIENT + b"BDAT 3\r\nx\r\nBDAT 0 LAST\r\n", [250, 250, 250, 250],
     [b"x\r\n"]),
    ("0, and 0, and LAST", RECIPIENT + b"BDAT 0\r\nBDAT 0\r\nBDAT 3 LAST\r\nx\r\n",
     [250, 250, 250, 250, 250], [b"x\r\n"]),
    ("a last line without its end", RECIPIENT + b"BDAT 1 LAST\r\nx", [250, 250, 250], [b"x\r\n"]),
    ("a stray LF", RECIPIENT + b"BDAT 4 LAST\r\nx\ny\nNOOP\r\n", [250, 250, 550, 250], []),
    ("a stray CR at the end", RECIPIENT + b"BDAT 2 LAST\r\nx\rNOOP\r\n", [250, 250, 550, 250], []),
    ("a stray LF in the first of two", RECIPIENT + b"BDAT 2\r\nx\nBDAT 3 LAST\r\nx\r\n",
     [250, 250, 550, 503], []),
    # The octets of a chunk that is refused are not commands.
    ("before MAIL", b"BDAT " + SIZE + b" LAST\r\n" + TRAP, [503], []),
    ("before MAIL, twice", (b"BDAT " + SIZE + b"\r\n" + TRAP) * 2, [503, 503], []),
    ("before MAIL, 0", b"BDAT 0\r\nBDAT 0 LAST\r\n", [503, 503], []),
    ("before RCPT", b"MAIL FROM:<alice@example.org>\r\nBDAT " + SIZE + b"\r\n" + TRAP
     + b"RCPT TO:<bob@example.net>\r\nBDAT 3 LAST\r\nx\r\n", [250, 503, 250, 250], [b"x\r\n"]),
    ("behind the last", RECIPIENT + b"BDAT 3 LAST\r\nx\r\nBDAT " + SIZE + b" LAST\r\n" + TRAP,
     [250, 250, 250, 503], [b"x\r\n"]),
    ("behind RSET", RECIPIENT + b"BDAT 3\r\nx\r\nRSET\r\nBDAT " + SIZE + b" LAST\r\n" + TRAP,
     [250, 250, 250, 250, 503], []),
    ("behind EHLO", RECIPIENT + b"BDAT 3\r\nx\r\nEHLO b\r\nBDAT " + SIZE + b" LAST\r\n" + TRAP,
     [250, 250, 250, 250, 503], []),
    # Other commands amid chunks.
    ("RSET, then anew",
     RECIPIENT + b"BDAT 3\r\nx\r\nRSET\r\n" + RECIPIENT + b"BDAT 3 LAST\r\ny\r\n",
     [250, 250, 250, 250, 250, 250, 250], [b"y\r\n"]),
    ("MAIL", RECIPIENT + b"BDAT 3\r\nx\r\nMAIL FROM:<mallory@example.com>\r\nBDAT 0 LAST\r\n",
     [250, 250, 250, 503, 250], [b"x\r\n"]),
    ("RCPT", RECIPIENT + b"BDAT 3\r\nx\r\nRCPT TO:<mallory@example.com>\r\nBDAT 0 LAST\r\n",
     [250, 250, 250, 503, 250], [b"x\r\n"]),
    ("DATA", RECIPIENT + b"BDAT 3\r\nx\r\nDATA\r\nBDAT 0 LAST\r\n",
     [250, 250, 250, 503, 250], [b"x\r\n"]),
    ("NOOP", RECIPIENT + b"BDAT 3\r\nx\r\nNOOP\r\nBDAT 0 LAST\r\n",
     [250, 250, 250, 250, 250], [b"x\r\n"]),
    ("a command that is none", RECIPIENT + b"BDAT 3\r\nx\r\nXYZZY\r\nBDAT 0 LAST\r\n",
     [250, 250, 250, 500, 250], [b"x\r\n"]),
]


@pytest.mark.parametrize(("stream", "codes", "messages"), [row[1:] for row in CHUNKS],
                         ids=[row[0] for row in CHUNKS])
def test_chunks(stream: bytes, codes: list[int], messages: list[bytes]) -> None:
    for pieces in boundaries(HELLO + stream + b"NOOP\r\nQUIT\r\n"):
        owner = after(pieces)
        assert owner.codes == [220, 250, *codes, 250, 221]
        assert owner.messages == messages
        assert "mallory@example.com" not in owner.senders
        assert not owner.session.transactions.receiving


@pytest.mark.parametrize("octets", [
    b"-1", b"-1 LAST", b"+1", b"", b"LAST", b"x", b"1x", b"1 LAST LAST", b"1 MORE", b"0x1",
    b"9" * 21, b"9" * 21 + b" LAST",
])
def test_a_chunk_of_no_known_size_ends_the_session(octets: bytes) -> None:
    # Nobody can say where its octets end, and none of them may be taken for a command.
    for begin, codes in ((HELLO, []), (HELLO + RECIPIENT, [250, 250]),
                         (HELLO + RECIPIENT + b"BDAT 3\r\nx\r\n", [250, 250, 250])):
        stream = begin + b"BDAT " + octets + b"\r\n"
        for pieces in [[stream + TRAP], cut(stream + TRAP, range(1, len(stream + TRAP))),
                       [stream, TRAP]]:
            owner = after(pieces)
            assert owner.codes == [220, 250, *codes, 501, 421]
            assert "mallory@example.com" not in owner.senders
            assert owner.messages == []


def test_a_chunk_before_the_client_said_its_name_is_swallowed() -> None:
    for pieces in boundaries(b"BDAT " + SIZE + b" LAST\r\n" + TRAP + b"NOOP\r\nQUIT\r\n"):
        owner = after(pieces)
        assert owner.codes == [220, 503, 250, 221]
        assert (owner.senders, owner.messages) == ([], [])


@pytest.mark.parametrize("octets", [b"99999999999999", b"99999999999999 LAST", b"9" * 20])
@pytest.mark.parametrize("limits", [NO_LIMITS, SMTPSettings()], ids=["no limit", "limits"])
def test_a_chunk_beyond_all_measure_is_never_left(octets: bytes, limits: SMTPSettings) -> None:
    stream = HELLO + RECIPIENT + b"BDAT " + octets + b"\r\n" + TRAP * 20
    for size in (1, 1000, len(stream)):
        owner = after(cut(stream, range(size, len(stream), size)), limits)
        assert owner.codes == [220, 250, 250, 250]
        assert (owner.senders, owner.messages) == (["alice@example.org"], [])
        assert owner.session.transactions.receiving


def test_a_chunk_too_big_is_swallowed_and_then_refused() -> None:
    limits = SMTPSettings(message_octets=len(TRAP) - 1)
    stream = RECIPIENT + b"BDAT " + SIZE + b" LAST\r\n" + TRAP + b"NOOP\r\nQUIT\r\n"
    for pieces in boundaries(HELLO + stream):
        owner = after(pieces, limits)
        assert owner.codes == [220, 250, 250, 250, 552, 250, 221]
        assert (owner.senders, owner.messages) == (["alice@example.org"], [])


@pytest.mark.parametrize("last", [b"", b" LAST"])
def test_a_chunk_that_the_owner_refuses_is_swallowed(last: bytes) -> None:
    stream = RECIPIENT + b"BDAT " + SIZE + last + b"\r\n" + TRAP + b"NOOP\r\nQUIT\r\n"
    for pieces in boundaries(HELLO + stream):
        owner = after(pieces, refused={events.DataBegins: replies.LOCAL_ERROR})
        assert owner.codes == [220, 250, 250, 250, 451, 250, 221]
        assert (owner.senders, owner.messages) == (["alice@example.org"], [])


def test_chunks_behind_recipients_that_were_all_refused_are_swallowed() -> None:
    stream = RECIPIENT + b"BDAT " + SIZE + b" LAST\r\n" + TRAP + b"NOOP\r\nQUIT\r\n"
    for pieces in boundaries(HELLO + stream):
        owner = after(pieces, refused={events.RcptTo: replies.reply(550, "5.1.1", "Nobody")})
        assert owner.codes == [220, 250, 250, 550, 554, 250, 221]
        assert (owner.senders, owner.messages) == (["alice@example.org"], [])


def test_a_connection_lost_amid_a_chunk_leaves_no_message() -> None:
    stream = HELLO + RECIPIENT + b"BDAT 10 LAST\r\n" + b"x" * 10
    for place in range(len(stream)):
        owner = after([stream[:place]])
        assert owner.messages == []
        owner.session.close(replies.TIMED_OUT)
        owner.feed(b"x" * 20)
        assert owner.messages == []
        assert owner.codes[-1] == 421
