"""A bare SMTP session, its owner who says yes to everything, and ways to get it anywhere."""

from __future__ import annotations

from typing import Any

from mailsvc.mail import Account, Recipient
from mailsvc.smtp import replies
from mailsvc.smtp.dialogue import CHUNKS, MAIL, RCPT, READY, START
from mailsvc.smtp.events import (
    Connected,
    DataBegins,
    Event,
    Expand,
    Hello,
    MailFrom,
    MessageBlock,
    MessageEnds,
    Proxied,
    QueueRun,
    RcptTo,
    TLSBegins,
    Turn,
    Verify,
)
from mailsvc.smtp.limits import SMTPSettings
from mailsvc.smtp.mode import TRANSPORT, Mode
from mailsvc.smtp.replies import Reply, reply
from mailsvc.smtp.session import Session

HOSTNAME = "mx.example.org"
HELO = b"HELO client.example.net\r\n"
SENDER = b"MAIL FROM:<a@example.net>\r\n"
RECIPIENT = b"RCPT TO:<alice@example.org>\r\n"
ACCEPTED = reply(250, "2.0.0", "Taken")
BUSY = reply(450, "4.2.1", "Busy")
NO = reply(550, "5.7.1", "No")
GOING_DOWN = reply(421, "4.3.2", "Going down")

QUESTIONS = (Connected, Hello, Proxied, MailFrom, RcptTo, Verify, Expand, QueueRun, Turn,
             DataBegins, MessageEnds)


class Talk:
    """A session whose owner says yes to all, or what ``answers`` holds for an event's class.

    :ivar events: every event, in order.
    """

    def __init__(self, *, mode: Mode = TRANSPORT, tls_available: bool = False,
                 tls_active: bool = False, turns: bool = False, **limits: Any) -> None:
        self.session = Session(HOSTNAME, SMTPSettings(**limits), mode,
                               tls_available=tls_available, tls_active=tls_active, turns=turns)
        self.answers: dict[type, Reply | list[Reply]] = {}
        self.events: list[Event] = []
        self.run()

    def run(self) -> bytes:
        """Answer what is asked; what the session then says."""
        session = self.session
        while (event := session.next_event()) is not None:
            self.events.append(event)
            if isinstance(event, TLSBegins):
                break
            if isinstance(event, QUESTIONS):
                assert session.waiting
                session.reply(self.answers.get(type(event)) or self.yes(event))
            assert not session.waiting
        return session.data_to_send()

    def yes(self, event: Event) -> Reply:
        """The positive answer to a question."""
        match event:
            case Connected() | Proxied():
                return self.session.greeting
            case Hello():
                return self.session.hello_reply(event)
            case RcptTo(forward_path):
                assert self.session.transactions.envelope is not None
                self.session.transactions.envelope.recipients.append(
                    Recipient(forward_path, (Account(forward_path.local_part, "example.org"),)))
                return replies.RECIPIENT_OK
            case MailFrom():
                return replies.SENDER_OK
            case DataBegins():
                return replies.START_DATA
        return ACCEPTED

    def say(self, data: bytes) -> bytes:
        """The client sends *data*; what the session says."""
        self.session.receive(data)
        return self.run()

    def ask(self, data: bytes) -> Event:
        """The client sends *data*; the question that is left open."""
        self.session.receive(data)
        event = self.session.next_event()
        assert event is not None and self.session.waiting
        return event

    def of(self, kind: type) -> list[Any]:
        """The events of one class."""
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def text(self) -> bytes:
        """All the text of messages."""
        return b"".join(block.data for block in self.of(MessageBlock))


#: How a session gets to a phase.
WAYS = {
    START: b"",
    READY: HELO,
    MAIL: HELO + SENDER,
    RCPT: HELO + SENDER + RECIPIENT,
    CHUNKS: HELO + SENDER + RECIPIENT + b"BDAT 3\r\nx\r\n",
}


def talk_in(phase: str, **how: Any) -> Talk:
    """A Talk that has got to *phase*."""
    talk = Talk(**how)
    talk.say(WAYS[phase])
    assert talk.session.phase is phase
    talk.events.clear()
    return talk


def last(answer: Reply) -> bytes:
    """*answer* as the session says it when it may be the last (RFC 5321 §4.2.3)."""
    return (answer.by(HOSTNAME) if answer.code in (221, 421) else answer).wire


def codes(data: bytes) -> list[int]:
    """The codes of the replies in *data*."""
    return [int(line[:3]) for line in data.split(b"\r\n")[:-1] if line[3:4] == b" "]
