"""Which SMTP commands may come when: every verb in every phase, every answer to each question."""

from __future__ import annotations

import re

import pytest

from mailsvc.mail import NULL_PATH, Address
from mailsvc.smtp import replies
from mailsvc.smtp.commands import COMMANDS
from mailsvc.smtp.dialogue import CHUNKS, CLOSED, GREETING, MAIL, PHASES, RCPT, READY, START
from mailsvc.smtp.events import (
    Aborted,
    Closed,
    Connected,
    DataBegins,
    Expand,
    Hello,
    MailFrom,
    MessageEnds,
    Proxied,
    QueueRun,
    RcptTo,
    TLSBegins,
    Turn,
    Turned,
    Verify,
)
from mailsvc.smtp.limits import SMTPSettings
from mailsvc.smtp.mode import LMTP, ODMR, TRANSPORT, Mode
from mailsvc.smtp.replies import Reply, reply
from mailsvc.smtp.session import Session
from tests.smtp_talk import (
    ACCEPTED,
    BUSY,
    GOING_DOWN,
    HELO,
    HOSTNAME,
    NO,
    RECIPIENT,
    SENDER,
    WAYS,
    Talk,
    codes,
    last,
    talk_in,
)

# ---- order of commands (RFC 5321 §4.1.4) ---------------------------------------------------------

_HELO_OK = reply(250, "", "mx.example.org greets client.example.net")
_CHUNK_OK = reply(250, "2.0.0", "0 octets received so far")
_CHUNKS_OK = reply(250, "2.0.0", "3 octets received so far")
_NO_RECIPIENT = {START: (replies.HELLO_FIRST, START), READY: (replies.MAIL_FIRST, READY),
                 MAIL: (replies.RECIPIENT_FIRST, MAIL)}


def _everywhere(answer: Reply, after: str = "") -> dict[str, tuple[Reply, str]]:
    """The same answer in every phase; the phase stays unless *after* says where it goes."""
    return {phase: (answer, after or phase) for phase in WAYS}


#: Each verb with an argument, and by phase: the reply, and the next phase.
ORDER: dict[bytes, dict[str, tuple[Reply, str]]] = {
    b"HELO client.example.net": _everywhere(_HELO_OK, READY),
    b"MAIL FROM:<b@example.net>": {
        START: (replies.HELLO_FIRST, START),
        READY: (replies.SENDER_OK, MAIL),
        MAIL: (replies.NESTED_MAIL, MAIL),
        RCPT: (replies.NESTED_MAIL, RCPT),
        CHUNKS: (replies.MID_CHUNKS, CHUNKS),
    },
    b"RCPT TO:<bob@example.org>": {
        START: (replies.HELLO_FIRST, START),
        READY: (replies.MAIL_FIRST, READY),
        MAIL: (replies.RECIPIENT_OK, RCPT),
        RCPT: (replies.RECIPIENT_OK, RCPT),
        CHUNKS: (replies.MID_CHUNKS, CHUNKS),
    },
    b"DATA": {
        **_NO_RECIPIENT,
        RCPT: (replies.START_DATA, RCPT),
        CHUNKS: (replies.MID_CHUNKS, CHUNKS),
    },
    b"BDAT 0": {
        **_NO_RECIPIENT,
        RCPT: (_CHUNK_OK, CHUNKS),
        CHUNKS: (_CHUNKS_OK, CHUNKS),
    },
    b"BDAT 0 LAST": {
        **_NO_RECIPIENT,
        RCPT: (ACCEPTED, READY),
        CHUNKS: (ACCEPTED, READY),
    },
    b"RSET": {**_everywhere(replies.RESET_OK, READY), START: (replies.RESET_OK, START)},
    b"NOOP": _everywhere(replies.NOOP_OK),
    b"QUIT": _everywhere(replies.BYE.by(HOSTNAME), CLOSED),
    b"HELP RCPT": _everywhere(reply(
        214, "2.0.0",
        "RCPT TO:<address> [NOTIFY=NEVER|SUCCESS,FAILURE,DELAY] [ORCPT=type;address]")),
    # RFC 5321 §4.1.4: at any time.
    b"VRFY bob@example.org": _everywhere(replies.CANNOT_VERIFY),
    b"EXPN bob@example.org": _everywhere(replies.EXPN_DISABLED),
    b"STARTTLS": {**_everywhere(replies.NOT_IMPLEMENTED), CHUNKS: (replies.MID_CHUNKS, CHUNKS)},
    b"XCLIENT ADDR=192.0.2.1": _everywhere(replies.NOT_TRUSTED),
    **{line: _everywhere(replies.NOT_IMPLEMENTED) for line in (
        b"AUTH PLAIN", b"TURN", b"ATRN example.org", b"ETRN example.org", b"XEXCH50 1 1")},
    # LHLO is LMTP's.
    **{line: _everywhere(replies.UNRECOGNIZED) for line in (b"WHAT", b"LHLO client.example.net")},
}


def test_the_table_of_orders_is_complete() -> None:
    assert {line.partition(b" ")[0] for line in ORDER} == set(COMMANDS) - {b"EHLO"} | {b"WHAT"}
    for row in ORDER.values():
        assert set(row) == set(PHASES) - {GREETING, CLOSED}


@pytest.mark.parametrize("phase", WAYS)
@pytest.mark.parametrize("line", ORDER, ids=bytes.decode)
def test_order(line: bytes, phase: str) -> None:
    talk = talk_in(phase)
    answer, after = ORDER[line][phase]
    assert talk.say(line + b"\r\n") == answer.wire
    assert talk.session.phase is after
    # The transaction is there just as long as the phase says so.
    assert (talk.session.transactions.envelope is not None) == (after in (MAIL, RCPT, CHUNKS))
    assert talk.session.transactions.receiving == (answer is replies.START_DATA)
    began = phase is CHUNKS
    ended = after in (READY, CLOSED) and answer is not ACCEPTED
    assert len(talk.of(Aborted)) == (began and ended)


@pytest.mark.parametrize("phase", WAYS)
def test_order_of_ehlo(phase: str) -> None:
    talk = talk_in(phase)
    assert talk.say(b"EHLO client.example.net\r\n").startswith(b"250-mx.example.org greets client.")
    assert talk.session.phase is READY
    assert talk.session.extended
    assert talk.session.transactions.envelope is None
    assert talk.say(HELO) == _HELO_OK.wire
    assert not talk.session.extended


@pytest.mark.parametrize("phase", [START, READY, MAIL, RCPT])
def test_order_of_starttls(phase: str) -> None:
    talk = talk_in(phase, tls_available=True)
    assert talk.say(b"STARTTLS\r\n") == replies.START_TLS.wire
    assert talk.events == [TLSBegins()]
    assert talk.session.transactions.envelope is None
    talk.session.tls_started()
    assert talk.session.phase is START
    assert talk.session.hello == ""


def test_starttls_is_not_for_the_midst_of_chunks_nor_for_twice() -> None:
    talk = talk_in(CHUNKS, tls_available=True)
    assert talk.say(b"STARTTLS\r\n") == replies.MID_CHUNKS.wire
    talk = talk_in(READY, tls_available=True, tls_active=True)
    assert talk.say(b"STARTTLS\r\n") == replies.TLS_ACTIVE.wire
    assert not talk.of(TLSBegins)


def test_nothing_is_looked_at_before_the_greeting() -> None:
    session = Session("mx.example.org", SMTPSettings())
    session.receive(HELO)
    assert session.phase is GREETING
    assert session.next_event() == Connected()
    assert session.data_to_send() == b""
    assert session.buffered == len(HELO)
    session.reply(session.greeting)
    assert session.data_to_send() == b"220 mx.example.org ESMTP mailsvc\r\n"
    assert session.phase is START
    assert session.next_event() == Hello("client.example.net", extended=False)


def test_nothing_is_looked_at_after_the_end() -> None:
    talk = talk_in(READY)
    assert talk.say(b"QUIT\r\nNOOP\r\n") == last(replies.BYE)
    assert talk.events == [Closed(asked=True)]
    assert talk.say(b"NOOP\r\n") == b""
    assert talk.session.buffered == 0
    assert talk.session.next_event() is None


def turning(phase: str = READY) -> Talk:
    """A Talk with who has logged in to fetch mail."""
    talk = talk_in(phase, turns=True)
    talk.session.authenticated = "alice@example.org"
    return talk


@pytest.mark.parametrize("phase", WAYS)
def test_order_of_atrn(phase: str) -> None:
    talk = turning(phase)
    said = talk.say(b"ATRN example.org,a.example\r\n220 hello\r\n")
    if phase is READY:
        assert said == ACCEPTED.wire
        assert talk.events == [Turn(("example.org", "a.example")), Turned(b"220 hello\r\n")]
        assert talk.session.phase is CLOSED
        assert talk.say(b"NOOP\r\n") == b"" and talk.session.next_event() is None
    else:
        assert codes(said)[0] == 503
        assert not talk.of(Turn) and talk.session.phase is phase


@pytest.mark.parametrize("answer", [BUSY, replies.NO_MAIL, NO, GOING_DOWN])
def test_a_turn_that_is_refused(answer: Reply) -> None:
    talk = turning()
    talk.answers[Turn] = answer
    assert talk.say(b"ATRN\r\n") == last(answer)
    assert talk.events[0] == Turn(()) and not talk.of(Turned)
    assert talk.session.phase is (CLOSED if answer is GOING_DOWN else READY)
    # Nobody is to be dismissed because there is no mail, time and again.
    assert talk.session.errors == 0


@pytest.mark.parametrize("line", [b"ATRN example.org", b"ETRN example.org",
                                  b"XCLIENT ADDR=192.0.2.7"])
@pytest.mark.parametrize(("phase", "answer"), [
    (MAIL, replies.NESTED_MAIL), (RCPT, replies.NESTED_MAIL), (CHUNKS, replies.MID_CHUNKS)])
def test_what_is_not_for_the_midst_of_a_transaction(
        line: bytes, phase: str, answer: Reply) -> None:
    talk = talk_in(phase, turns=True, etrn=True)
    talk.session.trusted, talk.session.authenticated = True, "alice@example.org"
    assert talk.say(line + b"\r\n") == answer.wire
    assert talk.session.phase is phase


def test_a_proxy_may_speak_for_who_fetches_mail() -> None:
    """On the listener for ODMR too."""
    talk = Talk(mode=ODMR)
    talk.session.trusted = True
    talk.answers[Proxied] = talk.session.greeting
    assert talk.say(b"XCLIENT ADDR=192.0.2.7\r\n") == talk.session.greeting.wire


# ---- which commands bring no mail along ----------------------------------------------------------

IDLE = {b"HELO", b"EHLO", b"RSET", b"NOOP", b"HELP", b"VRFY", b"EXPN", b"STARTTLS", b"AUTH",
        b"TURN", b"ATRN", b"ETRN", b"XEXCH50", b"XCLIENT"}


@pytest.mark.parametrize("line", ORDER, ids=bytes.decode)
def test_idle_commands_are_counted(line: bytes) -> None:
    verb = line.partition(b" ")[0]
    talk = talk_in(READY, idle_commands=3)  # one of them was HELO
    for _ in range(2):
        assert talk.say(line + b"\r\n") != last(replies.TOO_MANY_COMMANDS)
    said = talk.say(line + b"\r\n")
    assert (said == last(replies.TOO_MANY_COMMANDS)) == (verb in IDLE)
    if verb in IDLE:
        assert talk.events[-1] == Closed(asked=False)


@pytest.mark.parametrize(("verb", "mode"), [(b"EHLO", TRANSPORT), (b"LHLO", LMTP)])
def test_each_introduction_is_counted_among_the_idle_commands(verb: bytes, mode: Mode) -> None:
    talk = Talk(mode=mode, idle_commands=1)
    assert codes(talk.say(verb + b" a.example\r\n")) == [250]
    assert talk.say(verb + b" a.example\r\n") == last(replies.TOO_MANY_COMMANDS)


def test_a_message_that_was_refused_does_not_reset_the_counts() -> None:
    talk = Talk(idle_commands=2, errors=3)
    talk.answers[MessageEnds] = NO
    talk.say(HELO + SENDER + RECIPIENT)
    assert codes(talk.say(b"DATA\r\n.\r\n")) == [354, 550]
    assert codes(talk.say(b"NOOP\r\nWHAT\r\n")) == [250, 500]
    assert codes(talk.say(b"NOOP\r\n")) == [421]


# ---- answers -------------------------------------------------------------------------------------

#: What each question is asked by, and in which phases.
ASKED_BY: dict[type, tuple[bytes, tuple[str, ...]]] = {
    Hello: (b"EHLO other.example.net\r\n", (START, READY, MAIL, RCPT, CHUNKS)),
    MailFrom: (SENDER, (READY,)),
    RcptTo: (b"RCPT TO:<bob@example.org>\r\n", (MAIL, RCPT)),
    Verify: (b"VRFY bob\r\n", (START, READY, MAIL, RCPT, CHUNKS)),
    Expand: (b"EXPN bob\r\n", (START, READY, MAIL, RCPT, CHUNKS)),
    QueueRun: (b"ETRN example.org\r\n", (READY,)),
}
ASKED = [(kind, line, phase) for kind, (line, phases) in ASKED_BY.items() for phase in phases]


@pytest.mark.parametrize(("kind", "line", "phase"), ASKED,
                         ids=[f"{kind.__name__}-{phase}" for kind, _, phase in ASKED])
@pytest.mark.parametrize("answer", [BUSY, NO], ids=["450", "550"])
def test_a_negative_answer_changes_nothing(kind: type, line: bytes, phase: str,
                                           answer: Reply) -> None:
    talk = talk_in(phase, disclose_mailboxes=True, etrn=True)
    session = talk.session
    mail = session.transactions
    before = (mail.envelope, session.hello, session.extended, mail.intake)
    talk.answers[kind] = answer
    assert talk.say(line) == last(answer)
    assert [type(event) for event in talk.events] == [kind]
    assert session.phase is phase
    assert (mail.envelope, session.hello, session.extended, mail.intake) == before


@pytest.mark.parametrize(("kind", "line", "phase"), ASKED,
                         ids=[f"{kind.__name__}-{phase}" for kind, _, phase in ASKED])
def test_an_answer_of_421_ends_the_session(kind: type, line: bytes, phase: str) -> None:
    talk = talk_in(phase, disclose_mailboxes=True, etrn=True)
    talk.answers[kind] = GOING_DOWN
    assert talk.say(line + b"NOOP\r\n") == last(GOING_DOWN)
    assert talk.session.phase is CLOSED
    ends = [Aborted("connection closed")] if phase is CHUNKS else []
    assert talk.events[1:] == [*ends, Closed(asked=False)]


@pytest.mark.parametrize("answer", [GOING_DOWN, reply(554, "", "No SMTP service here")])
def test_a_connection_that_is_refused(answer: Reply) -> None:
    session = Session("mx.example.org", SMTPSettings())
    assert session.next_event() == Connected()
    session.reply(answer)
    assert session.data_to_send() == last(answer)
    assert session.phase is CLOSED
    assert session.next_event() == Closed(asked=False)
    assert session.next_event() is None


@pytest.mark.parametrize("answer", [BUSY, NO, GOING_DOWN], ids=["450", "550", "421"])
def test_data_refused_by_the_owner_ends_the_transaction(answer: Reply) -> None:
    talk = talk_in(RCPT)
    talk.answers[DataBegins] = answer
    assert talk.say(b"DATA\r\n") == last(answer)
    # No message had begun, so none is aborted.
    assert not talk.of(Aborted)
    assert talk.session.phase is (CLOSED if answer is GOING_DOWN else READY)
    assert talk.session.transactions.envelope is None
    assert not talk.session.transactions.receiving


@pytest.mark.parametrize("answer", [BUSY, NO], ids=["450", "550"])
def test_bdat_refused_by_the_owner_is_swallowed_first(answer: Reply) -> None:
    talk = talk_in(RCPT)
    talk.answers[DataBegins] = answer
    assert talk.say(b"BDAT 6 LAST\r\nNOO") == b""
    assert talk.session.transactions.receiving
    assert talk.say(b"P\r\n") == answer.wire
    assert talk.events == [DataBegins(), Aborted(answer.lines[0])]
    assert talk.session.phase is READY


@pytest.mark.parametrize("answer", [BUSY, NO, GOING_DOWN], ids=["450", "550", "421"])
@pytest.mark.parametrize("way", [b"DATA\r\ntext\r\n.\r\n", b"BDAT 6 LAST\r\ntext\r\n"])
def test_a_message_refused_at_its_end(way: bytes, answer: Reply) -> None:
    talk = talk_in(RCPT)
    talk.answers[MessageEnds] = answer
    assert talk.say(way).endswith(last(answer))
    assert talk.of(MessageEnds) == [MessageEnds(6)]
    if answer is GOING_DOWN:
        # The answer to MessageEnds is the end of the message in any case: no Aborted.
        assert talk.events[-1] == Closed(asked=False)
    else:
        assert talk.session.phase is READY
    assert talk.session.transactions.envelope is None


def test_a_question_must_be_answered_before_the_next_event() -> None:
    talk = talk_in(READY)
    question = talk.ask(SENDER + RECIPIENT)
    with pytest.raises(RuntimeError, match=r"MailFrom.* has not been answered$"):
        talk.session.next_event()
    talk.session.receive(b"NOOP\r\n")
    with pytest.raises(RuntimeError, match=r"MailFrom.* has not been answered$"):
        talk.session.next_event()
    assert isinstance(question, MailFrom)
    assert talk.session.data_to_send() == b""
    talk.session.reply(replies.SENDER_OK)
    assert codes(talk.run()) == [250, 250, 250]


def test_there_is_no_answer_without_a_question() -> None:
    talk = talk_in(READY)
    with pytest.raises(RuntimeError, match=r"^no question is open$"):
        talk.session.reply(ACCEPTED)
    talk.ask(SENDER)
    talk.session.reply(replies.SENDER_OK)
    with pytest.raises(RuntimeError, match=r"^no question is open$"):
        talk.session.reply(replies.SENDER_OK)


def test_what_is_asked() -> None:
    talk = Talk(disclose_mailboxes=True)
    talk.say(b'EHLO [192.0.2.1]\r\nVRFY alice\r\nEXPN <Friends@Example.ORG> SMTPUTF8\r\n'
             b'MAIL FROM:<"a b"@Example.NET> SIZE=17 BODY=8bitmime SMTPUTF8\r\n'
             b"RCPT TO:<Postmaster>\r\n")
    connected, hello, verify, expand, sender, recipient = talk.events
    assert connected == Connected()
    assert hello == Hello("[192.0.2.1]", extended=True)
    assert verify == Verify(Address("alice", ""))
    assert expand == Expand(Address("Friends", "example.org"))
    assert recipient == RcptTo(Address("postmaster", ""))
    assert isinstance(sender, MailFrom)
    envelope = sender.envelope
    assert envelope is talk.session.transactions.envelope
    assert re.fullmatch(r"[0-9A-Z]{16}", envelope.id)
    assert (envelope.reverse_path, envelope.size, envelope.body, envelope.smtputf8) == (
        Address("a b", "example.net"), 17, "8BITMIME", True)
    talk.say(b"RSET\r\nMAIL FROM:<>\r\n")
    following = talk.of(MailFrom)[-1].envelope
    assert following.id > envelope.id
    assert (following.reverse_path, following.size, following.body, following.smtputf8) == (
        NULL_PATH, 0, "7BIT", False)
    assert following.recipients == []
