"""What became of each recipient of a message."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from mailsvc.errors import EnhancedStatus
from mailsvc.mail import Address
from mailsvc.smtp.failures import SendingFailure, Stage, refusal, said, status_of
from mailsvc.smtp.replies import Reply
from mailsvc.smtp.requests import Command


class Recipient(NamedTuple):
    """A forward-path with the parameters of RFC 3461.

    :ivar notify: "NEVER", or some of "SUCCESS", "FAILURE", "DELAY"; empty for the server's default.
    :ivar orcpt: ``type;address``, as meant (not xtext).
    """

    forward_path: Address | str
    notify: Sequence[str] = ()
    orcpt: str = ""


class Outcome(NamedTuple):
    """What became of one recipient.

    :ivar recipient: the forward-path.
    :ivar reply: the server's reply that decided; None if it did not come to one.
    :ivar failure: why it did not succeed; None if it did.
    """

    recipient: Address
    reply: Reply | None = None
    failure: SendingFailure | None = None

    @property
    def accepted(self) -> bool:
        """Whether the server is responsible for it now."""
        return self.failure is None

    @property
    def temporary(self) -> bool:
        """Whether it failed and is worth trying again."""
        return self.failure is not None and self.failure.temporary

    @property
    def permanent(self) -> bool:
        """Whether it failed and is not worth trying again."""
        return self.failure is not None and not self.failure.temporary

    @property
    def in_flight(self) -> bool:
        """Whether the server may have it although it did not say so: a duplicate is possible."""
        return self.failure is not None and self.failure.in_flight

    @property
    def status(self) -> EnhancedStatus:
        """The enhanced status code, made up from the reply's code if the server gave none."""
        if self.failure is not None:
            return self.failure.status
        assert self.reply is not None
        return status_of(self.reply)

    def __str__(self) -> str:
        what = self.failure.text if self.failure is not None else said(self.reply)  # type: ignore[arg-type]
        return f"{self.recipient}: {what}"


class Tally:
    """The outcomes of one transaction, as replies come in.

    :ivar unfinished: whether the server holds a transaction that no message has ended.
    """

    def __init__(self) -> None:
        self.unfinished = False
        self._outcomes: list[Outcome] = []
        self._rcpts: dict[Command, int] = {}
        #: Who was accepted and has no final reply yet, in order.
        self._accepted: deque[int] = deque()

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        return tuple(self._outcomes)

    @property
    def accepted(self) -> int:
        """How many recipients wait for the message."""
        return len(self._accepted)

    def add(self, recipient: Address, command: Command | SendingFailure) -> None:
        """RCPT was queued as *command*, or could not be."""
        if isinstance(command, Command):
            self._rcpts[command] = len(self._outcomes)
            command_failure = SendingFailure("the message has not been sent", Stage.RCPT)
            self._outcomes.append(Outcome(recipient, None, command_failure))
        else:
            self._outcomes.append(Outcome(recipient, None, command))

    def replied(self, command: Command, reply: Reply, *, lmtp: bool) -> None:
        """A reply came; the command's stage says what for."""
        failure = None if reply.positive else refusal(reply, command.stage)
        if command.stage is Stage.MAIL:
            self.unfinished = reply.positive
        elif command in self._rcpts:
            number = self._rcpts.pop(command)
            if reply.positive:
                self._accepted.append(number)
            else:
                sender = command.transaction.sender_reply if command.transaction else None
                if sender is not None and not sender.positive:
                    # Sent ahead, RCPT gets a 503; what decided is what MAIL was answered.
                    reply, failure = sender, refusal(sender, Stage.MAIL)
                self._settle(number, reply, failure)
        elif command.stage is Stage.END:
            self.unfinished = False
            # RFC 2033 §4.2: in LMTP one reply is for one recipient.
            for _ in range(1 if lmtp and self._accepted else len(self._accepted)):
                self._settle(self._accepted.popleft(), reply, failure)
        elif command.stage in (Stage.DATA, Stage.CONTENT) and failure is not None:
            while self._accepted:
                self._settle(self._accepted.popleft(), reply, failure)

    def failed(self, command: Command, failure: SendingFailure) -> None:
        """No reply came, or will."""
        if command in self._rcpts:
            self._settle(self._rcpts.pop(command), failure.reply, failure)
        elif command.stage in (Stage.DATA, Stage.CONTENT, Stage.END):
            while self._accepted:
                self._settle(self._accepted.popleft(), failure.reply, failure)

    def given_up(self, failure: SendingFailure) -> None:
        """The connection has ended: whoever still waits for the message does not get it."""
        while self._accepted:
            self._settle(self._accepted.popleft(), failure.reply, failure)

    def _settle(self, number: int, reply: Reply | None, failure: SendingFailure | None) -> None:
        self._outcomes[number] = Outcome(self._outcomes[number].recipient, reply, failure)
