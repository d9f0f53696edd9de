"""The mail transactions of an SMTP session: MAIL, RCPT, DATA or BDAT, and the end (RFC 5321 §3.3).

There is one at a time.  What the owner answers to its steps is acted on here, and so is the text of
its message, from its first octet to the reply that tells what became of it; in LMTP, the replies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mailsvc.mail import Envelope
from mailsvc.smtp import replies
from mailsvc.smtp.dialogue import CHUNKS, MAIL, RCPT, READY, START, Dialogue
from mailsvc.smtp.events import (
    Aborted,
    DataBegins,
    MailFrom,
    MessageBlock,
    MessageEnds,
    RcptTo,
)
from mailsvc.smtp.intake import Intake
from mailsvc.smtp.replies import Reply, printable, reply


class Transactions:
    """Those of *session*.

    :ivar envelope: that of the open transaction, or None.
    :ivar refused_recipient: whether it had a recipient that was refused.
    :ivar intake: the message that is arriving, or None.
    :ivar messages: how many messages were accepted.
    """

    __slots__ = ("_session", "envelope", "intake", "messages", "refused_recipient")

    def __init__(self, session: Dialogue) -> None:
        self._session = session
        self.envelope: Envelope | None = None
        self.refused_recipient = False
        self.intake: Intake | None = None
        self.messages = 0

    @property
    def receiving(self) -> bool:
        """Whether the next octets belong to a message, not to a command."""
        return self.intake is not None and self.intake.chunk != 0

    @property
    def exhausted(self) -> bool:
        """Whether the connection has brought as many messages as one may."""
        return 0 < self._session.limits.messages <= self.messages

    @property
    def transmission_type(self) -> str:
        """How the open one arrives, for Received (RFC 3848; RFC 6531 §4.3)."""
        session = self._session
        if not session.extended:
            return "SMTP"
        utf8 = self.envelope is not None and self.envelope.smtputf8
        if session.mode.lmtp:
            name = "UTF8LMTP" if utf8 else "LMTP"
        else:
            name = "UTF8SMTP" if utf8 else "ESMTP"
        return name + ("S" if session.tls_active else "") + ("A" if session.authenticated else "")

    def out_of_order(self, verb: str) -> Reply:
        """Why *verb* is not legal in the session's phase (RFC 5321 §4.1.4)."""
        session = self._session
        if session.phase is CHUNKS:
            return replies.MID_CHUNKS
        if session.phase is START:
            return replies.LHLO_FIRST if session.mode.lmtp else replies.HELLO_FIRST
        if verb == "MAIL":
            return replies.NESTED_MAIL
        if verb in ("DATA", "BDAT") and session.phase is MAIL:
            # RFC 5321 §3.3: 554 when recipients were named and none of them would do.
            # RFC 2033 §4.2 wants 503 all the same.
            none_valid = self.refused_recipient and not session.mode.lmtp
            return replies.NO_VALID_RECIPIENTS if none_valid else replies.RECIPIENT_FIRST
        return replies.MAIL_FIRST

    def end(self, reason: str) -> None:
        """Forget the open one; the owner of a message that has begun is told *reason*."""
        session = self._session
        if self.intake is not None:
            self.intake = None
            session.tell(Aborted(reason))
        self.envelope = None
        self.refused_recipient = False
        if session.phase in (MAIL, RCPT, CHUNKS):
            session.phase = READY

    # ---- the text of a message ----

    def chunk(self, octets: int, last: bool) -> None:
        """A BDAT command announces *octets*, in order or not."""
        session, intake = self._session, self.intake
        admission = intake is None and session.phase is RCPT
        if intake is None:
            intake = self.intake = Intake(session.limits, chunked=True)
            if not admission:
                # RFC 3030 §2: the octets follow in any case, and must not be taken for commands.
                intake.refusal = self.out_of_order("BDAT")
        intake.expect(octets, last)
        if admission:
            # From its answer it goes on.
            session.ask(DataBegins())
        elif octets == 0:
            self._chunk_ends(intake)

    def take(self, data: bytes) -> bytes:
        """Take octets of the message that is arriving; what lay behind it, or behind its chunk."""
        intake = self.intake
        assert intake is not None
        block, rest = intake.feed(data)
        if block:
            self._session.tell(MessageBlock(block))
        if intake.dots_ended:
            self._message_ends(intake)
        elif intake.chunk == 0:
            self._chunk_ends(intake)
        return rest

    def refuse(self, answer: Reply) -> None:
        """Decide amid a message how it will end: the rest is swallowed, then *answer* sent."""
        intake = self.intake
        if intake is not None and intake.refusal is None:
            intake.refusal = answer
            if self._session.retract():
                # Its end had come with its last block, and will not be asked about.
                self._message_ends(intake)

    def _chunk_ends(self, intake: Intake) -> None:
        session = self._session
        if intake.last:
            block = intake.finish()
            if block:
                session.tell(MessageBlock(block))
            self._message_ends(intake)
        elif intake.refusal:
            # RFC 3030 §2: after a failed chunk the transaction is over; further ones get 503.
            self._message_ends(intake)
        else:
            session.phase = CHUNKS
            session.say(reply(250, "2.0.0", f"{intake.announced} octets received so far"))

    def _message_ends(self, intake: Intake) -> None:
        session = self._session
        if not intake.refusal:
            session.ask(MessageEnds(intake.size))
        elif session.phase not in (RCPT, CHUNKS):
            # BDAT out of order: no message had begun, and a transaction without recipients goes on.
            self.intake = None
            session.refuse(intake.refusal)
        elif intake.dots_ended or intake.last:
            self._refuse_each(self._for_each(intake.refusal), intake.refusal.lines[0])
        else:
            # A chunk that is not the last has one reply, in LMTP too.
            self._refuse_each([intake.refusal], intake.refusal.lines[0])

    # ---- what the owner answers ----

    def outcomes(self, answers: list[Reply]) -> None:
        """A message has come to its end, with an outcome for each recipient."""
        self.intake = None
        answers = self._named(answers)
        if any(answer.positive for answer in answers):
            self._accept(answers)
        else:
            self._refuse_each(answers, answers[0].lines[0])

    def _sender(self, question: MailFrom, answer: Reply) -> None:
        if not answer.positive:
            self._session.refuse(answer)
            return
        self.envelope = question.envelope
        self._session.phase = MAIL
        self._session.say(answer)

    def _recipient(self, question: RcptTo, answer: Reply) -> None:
        session = self._session
        if answer.positive:
            session.phase = RCPT
            session.say(answer)
            return
        self.refused_recipient = True
        if answer.code < 500:
            # Not the client's fault, so not counted against it.
            session.say(answer)
        else:
            session.refuse(answer)

    def _admitted(self, question: DataBegins, answer: Reply) -> None:
        session, intake = self._session, self.intake
        if intake is not None:
            # BDAT: the octets come unasked; 354 has no place, and a refusal waits for their end.
            if not answer.positive:
                self.refuse(answer)
            if intake.chunk == 0:
                self._chunk_ends(intake)
        elif answer.positive:
            self.intake = Intake(session.limits, chunked=False)
            session.say(answer)
        else:
            self.end(answer.lines[0])
            session.refuse(answer)

    def _ended(self, question: MessageEnds, answer: Reply) -> None:
        self.intake = None
        answers = self._for_each(answer)
        if answer.positive:
            self._accept(answers)
        else:
            self._refuse_each(answers, answer.lines[0])

    def _accept(self, answers: list[Reply]) -> None:
        self.end("")
        self.messages += 1
        self._session.forgive()
        for each in answers:
            self._session.say(each)

    def _refuse_each(self, answers: list[Reply], reason: str) -> None:
        """Nobody gets the message: one error, however many are told."""
        self.end(reason)
        for each in answers[:-1]:
            self._session.say(each)
        self._session.refuse(answers[-1])

    def _for_each(self, answer: Reply) -> list[Reply]:
        """What is said of a message: *answer*, or for LMTP one for each RCPT (RFC 2033 §4.2)."""
        if not self._session.mode.lmtp or self.envelope is None:
            return [answer]
        return self._named([answer] * len(self.envelope.recipients))

    def _named(self, answers: list[Reply]) -> list[Reply]:
        """*answers*, one for each recipient, with whom each is for."""
        assert self.envelope is not None
        return [Reply(answer.code, answer.status,
                      (printable(f"<{recipient.forward_path}> {answer.lines[0]}"),))
                for recipient, answer in zip(self.envelope.recipients, answers, strict=True)]


#: What follows from the answers to the questions that a transaction asks.
STEPS: dict[type, Callable[[Transactions, Any, Reply], None]] = {
    MailFrom: Transactions._sender,
    RcptTo: Transactions._recipient,
    DataBegins: Transactions._admitted,
    MessageEnds: Transactions._ended,
}
