"""A client's commands on their way: which may go out, and which wait for a reply (RFC 2920).

Commands may be put in at any time.  What the protocol allows is let out: one at a time, or where
the server offers PIPELINING all up to the next that must end a group; nothing amid a message.
Replies come back in the order of the commands.  A command that has become senseless before it went
out (RCPT after a refused MAIL, DATA without a recipient) is not sent, but fails with the reply that
made it so.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable

from mailsvc.smtp.failures import Refused, SendingFailure, Stage, said, status_of
from mailsvc.smtp.replies import Reply
from mailsvc.smtp.requests import Command, Ended, Event, Failed, Replied


class Pipeline:
    """The commands of one connection.

    :param first: what is waited for to begin with: the greeting.
    :param transcript: told of each line: whether it is ours, and what may be shown of it.
    :ivar ahead: whether commands are sent ahead where the server offers it.
    :ivar offered: whether it does.
    :ivar sending: the DATA command whose message the next octets are to be, or None.
    :ivar ended: why the connection is of no use any more, or None.
    :ivar events: what has become of commands, for the owner.
    """

    __slots__ = ("_awaited", "_output", "_queue", "_transcript", "ahead", "ended", "events",
                 "offered", "sending")

    def __init__(self, first: Command, transcript: Callable[[bool, str], None]) -> None:
        self.ahead = True
        self.offered = False
        self.sending: Command | None = None
        self.ended: SendingFailure | None = None
        self.events: deque[Event] = deque()
        self._queue: deque[Command] = deque()
        self._awaited: deque[Command] = deque([first])
        self._output: list[bytes] = []
        self._transcript = transcript

    @property
    def is_open(self) -> bool:
        """Whether a command may go out before the one before it is answered."""
        return self.ahead and self.offered

    @property
    def awaiting(self) -> Command | None:
        """What the server owes a reply to; None when it is our turn."""
        return self._awaited[0] if self._awaited else None

    @property
    def stage(self) -> Stage:
        """How far the client has come."""
        if self.sending is not None:
            return Stage.CONTENT
        return self._awaited[0].stage if self._awaited else Stage.IDLE

    def take(self) -> bytes:
        """The octets to send, which are thereby forgotten here."""
        output = b"".join(self._output)
        self._output.clear()
        return output

    # ---- out ----

    def put(self, command: Command) -> Command:
        """Queue *command*, and return it."""
        if self.ended is not None:
            failure = copy.copy(self.ended)
            failure.stage, failure.in_flight = command.stage, False
            self.events.append(Failed(command, failure))
        else:
            self._queue.append(command)
            self.release()
        return command

    def release(self) -> None:
        """Let out what may go."""
        while self._queue and self.sending is None:
            command, awaited = self._queue[0], self._awaited
            if awaited and (awaited[-1].ends_group or not self.is_open):
                return
            self._queue.popleft()
            transaction = command.transaction
            obstacle = transaction.obstacle if transaction is not None else None
            if command.stage is Stage.RCPT and transaction is not None and obstacle is not (
                    transaction.sender_reply):
                obstacle = None
            if obstacle is not None and command.stage is not Stage.MAIL and not awaited:
                self.events.append(Failed(command, Refused(
                    f"not tried after {said(obstacle)}", command.stage, status_of(obstacle),
                    reply=obstacle)))
                continue
            command.in_flight = command.last_chunk
            awaited.append(command)
            self.send(command.wire, command.shown or command.wire.decode().rstrip("\r\n"))

    def send(self, octets: bytes, shown: str | None = None) -> None:
        """Send what belongs to the command in front; *shown*, if anything, goes to the transcript.
        """
        self._output.append(octets)
        if shown is not None:
            self._transcript(True, shown)

    # ---- what became of the command in front ----

    def answered(self, reply: Reply, *, more: bool = False) -> None:
        """It has its *reply*, and is done unless there is *more*."""
        command = self._awaited[0]
        if not more:
            self._awaited.popleft()
        self.events.append(Replied(command, reply, more))

    def failed(self, failure: SendingFailure) -> None:
        """It has an answer that is none."""
        self.events.append(Failed(self._awaited.popleft(), failure))

    def begin(self) -> None:
        """It is DATA, and the server wants the message."""
        self.sending = self._awaited.popleft()

    def whole(self) -> None:
        """The message is whole, and the reply to it due."""
        command, self.sending = self.sending, None
        assert command is not None and command.transaction is not None
        command.stage, command.ends_group = Stage.END, False
        command.in_flight = command.transaction.accepted > 0
        self._awaited.append(command)

    def end(self, failure: SendingFailure) -> None:
        """Give up: every open command fails with *failure*, as it looks from there."""
        if self.ended is not None:
            return
        self.ended = failure
        failure.in_flight = any(command.in_flight for command in self._awaited)
        open_commands = [self.sending] if self.sending is not None else []
        open_commands += [*self._awaited, *self._queue]
        for command in open_commands:
            each = copy.copy(failure)
            each.stage, each.in_flight = command.stage, command.in_flight
            self.events.append(Failed(command, each))
        self.events.append(Ended(failure))
        self.sending = None
        self._awaited.clear()
        self._queue.clear()
        self._output.clear()
