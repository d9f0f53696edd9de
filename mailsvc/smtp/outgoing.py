"""The sending side of SMTP on a connection: joins a SendingSession to a Line.

The counterpart of :mod:`mailsvc.smtp.server`.  :meth:`Outgoing.issue` queues a command and answers
a Deferred for its reply; the rest is the loop, the message that is pumped as the server takes it,
and time: each reply has its own limit, which slow drips do not prolong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from mailsvc.dialing import Line
from mailsvc.errors import EnhancedStatus
from mailsvc.mail import Address
from mailsvc.smtp import writing
from mailsvc.smtp.failures import (
    BadMessage,
    LoginRefused,
    Refused,
    SendingFailure,
    Stage,
    TimedOut,
    TLSFailed,
    said,
    status_of,
)
from mailsvc.smtp.outcome import Tally
from mailsvc.smtp.replies import Reply
from mailsvc.smtp.requests import (
    Command,
    ContentWanted,
    Event,
    Failed,
    Replied,
    TLSWanted,
)
from mailsvc.smtp.sending import SendingSession
from mailsvc.smtp.source import Source
from mailsvc.smtp.timeouts import Timeouts
from mailsvc.trust import Secured, Trust, Untrusted


class Transfer:
    """One transaction whose commands go out together.

    :param sent: called when its message has been sent, all its recipients being accepted, and the
        next transaction may be said although the server has not answered it.
    :ivar tally: its recipients.
    """

    def __init__(self, out: Outgoing, sent: Callable[[], object] | None) -> None:
        self._out = out
        self._sent = sent
        self.tally = Tally()
        #: How many of its commands are not over.
        self._open = 0
        self._heard: Deferred[None] | None = None

    def tell(self, command: Command) -> None:
        """Have *command*, which has been queued, go out with those told before and after it.

        What is replied is in the tally.
        """
        self._open += 1
        self._out.told(command, self)

    def heard(self) -> Deferred[None]:
        """Send what was told; fires when all of it has been replied to, or has failed."""
        heard = self._heard = Deferred()
        self._out.advance()
        self._hear()
        return heard

    def over(self) -> None:
        """For the connection: one of its commands is."""
        self._open -= 1
        self._hear()

    def is_sent(self) -> None:
        """For the connection: its message is."""
        if self._sent is not None and self.tally.accepted == len(self.tally.outcomes):
            self._sent()

    def _hear(self) -> None:
        heard = self._heard
        if heard is not None and not self._open:
            self._heard = None
            heard.callback(None)


class Outgoing:
    """One connection.

    :param hello: says EHLO, when something needs it.
    :param transcript: told of each line of the dialogue, as ``SendingSession`` tells it.
    :ivar greeted: fires with the greeting.
    :ivar greeting: the 220; None before it came.
    :ivar tally: the present transaction's recipients.
    :ivar transactions: how many messages were accepted.
    """

    def __init__(
        self, line: Line, hello: Callable[[], Deferred[Reply]], *, lmtp: bool,
        timeouts: Timeouts, transcript: Callable[[bool, str], None] | None,
    ) -> None:
        self.line = line
        self.session = SendingSession(lmtp=lmtp, tls_active=line.secured is not None,
                                      transcript=transcript)
        self.greeting: Reply | None = None
        self.tally = Tally()
        self.transactions = 0
        self._hello = hello
        self._timeouts = timeouts
        #: The Deferreds of open commands, and the messages of those that are DATA.
        self._open: dict[Command, Deferred[Reply]] = {}
        self._sources: dict[Command, Source] = {}
        #: The commands of a transaction, and who waits for the replies to all of them.
        #: The commands that are not over of those told together.
        self._transfers: dict[Command, Transfer] = {}
        self._waiting_for_hello: list[Deferred[None]] | None = None
        self._handshake: Deferred[Secured] | None = None
        self._trust = Trust()
        #: What the deadline was last set for.
        self._timed: object = None
        self._replies = 0
        self._advancing = False
        self._closing: list[Deferred[SendingFailure]] = []
        self.greeted: Deferred[Reply] = Deferred()
        self._open[self.session.opening] = self.greeted
        line.attach(self)
        self.advance()

    @property
    def closed(self) -> SendingFailure | None:
        """Why the connection has ended; None while it has not."""
        return self.session.commands.ended

    # ---- for the owner ----

    def ready(self) -> Deferred[None]:
        """Fires when the server has been greeted, and what it offers is known."""
        done: Deferred[None] = Deferred()
        if self.session.extended is not None and self.session.commands.ended is None:
            done.callback(None)
        elif self._waiting_for_hello is not None:
            self._waiting_for_hello.append(done)
        else:
            self._waiting_for_hello = [done]
            self._hello().addBoth(self._hello_done)
        return done

    def issue(self, make: Callable[[SendingSession], Command]) -> Deferred[Reply]:
        """Queue the command that *make* makes.

        :raises SendingFailure: it cannot be said; BadArgument too.
        """
        command = make(self.session)
        answered = self._open[command] = Deferred()
        self.advance()
        return answered

    def begin(self, sent: Callable[[], object] | None = None) -> Transfer:
        """The next transaction; parameters as of :class:`Transfer`."""
        transfer = Transfer(self, sent)
        self.tally = transfer.tally
        return transfer

    def told(self, command: Command, transfer: Transfer) -> None:
        """For :class:`Transfer`: *command* is one of its own."""
        self._transfers[command] = transfer

    def recipient(self, forward_path: Address | str, notify: Sequence[str], orcpt: str) -> Command:
        """Queue RCPT, as :meth:`SendingSession.rcpt`, and keep account of it."""
        try:
            command = self.session.rcpt(forward_path, notify=tuple(notify), orcpt=orcpt)
        except SendingFailure as failure:
            self.tally.add(writing.address(forward_path), failure)
            raise
        self.tally.add(writing.address(forward_path), command)
        return command

    def hold_back(self, wanted: bool) -> None:
        """Whether ``wait_for_room`` is to work."""
        self.line.hold_back(wanted)

    async def wait_for_room(self) -> None:
        """Wait until the server takes more."""
        if self.line.paused:
            self.line.set_deadline(self._timeouts.block)
            await self.line.wait_for_room()
            self._timed = None
            self._keep_time()

    def give_up(self, error: BaseException) -> None:
        """The message cannot go on: *error*."""
        self.session.commands.end(
            error if isinstance(error, SendingFailure)
            else BadMessage(f"the message could not be read: {error}", Stage.CONTENT,
                            EnhancedStatus(4, 3, 0)))
        self.advance()

    def content(self, source: Source) -> Command:
        """Queue DATA, for ``issue``, with the message to send when it is answered 354."""
        command = self.session.data()
        self._sources[command] = source
        return command

    def end(self, failure: SendingFailure) -> None:
        """End the connection; what is under way fails."""
        self.session.commands.end(failure)
        self.advance()

    def when_closed(self) -> Deferred[SendingFailure]:
        """Fires when the connection has ended, with why."""
        done: Deferred[SendingFailure] = Deferred()
        if self.closed is not None:
            done.callback(self.closed)
        else:
            self._closing.append(done)
        return done

    async def start_tls(self, trust: Trust) -> Reply:
        """STARTTLS, verify, and EHLO again."""
        await self.ready()
        if "STARTTLS" not in self.session.extensions:
            raise TLSFailed("the server does not offer STARTTLS", "starttls-not-supported")
        self._trust = trust
        self._handshake = Deferred()
        try:
            await self.issue(lambda session: session.start_tls())
        except Refused as refused:
            if self.closed is not None:
                raise
            raise TLSFailed(f"the server refused STARTTLS: {refused}", "starttls-not-supported",
                            reply=refused.reply) from None
        try:
            await self._handshake
        except Untrusted as problem:
            failure = TLSFailed(problem.text, problem.reason)
            self.session.commands.end(failure)
            self.advance()
            raise failure from None
        self.session.tls_started()
        return await self._hello()

    # ---- the loop ----

    def received(self, data: bytes) -> None:
        """For the line."""
        self.session.receive(data)
        self.advance()

    def lost(self, why: str) -> None:
        """For the line."""
        self.session.lost(why)
        self.advance()

    def overdue(self) -> None:
        """For the line."""
        command = self.session.commands.awaiting
        stage = Stage.CONTENT if self.session.commands.sending or command is None else command.stage
        if stage is Stage.CONTENT:
            text = "the server took nothing of the message for too long"
        else:
            text = f"the server took too long to answer ({stage})"
        self.session.commands.end(TimedOut(text, stage))
        self.advance()

    def advance(self) -> None:
        """Handle events, and send what is owed.

        What a handler sets off sends at once too, or a message would pile up here.
        """
        self._flush()
        if self._advancing:
            return
        self._advancing = True
        try:
            while (event := self.session.next_event()) is not None:
                self._handle(event)
        finally:
            self._advancing = False
        self._flush()
        self._keep_time()

    def _flush(self) -> None:
        data = self.session.data_to_send()
        if data:
            self.line.write(data)

    def _handle(self, event: Event) -> None:
        if isinstance(event, Replied):
            self._replied(event.command, event.reply, event.more)
        elif isinstance(event, Failed):
            self._sources.pop(event.command, None)
            transfer = self._transfers.pop(event.command, None)
            if transfer is not None:
                transfer.tally.failed(event.command, event.failure)
                transfer.over()
            else:
                self.tally.failed(event.command, event.failure)
                self._open.pop(event.command).errback(event.failure)
        elif isinstance(event, ContentWanted):
            source = self._sources.pop(event.command)
            if source.block is not None:
                self._send_block(source.block, source.proven)
                transfer = self._transfers.get(event.command)
                if transfer is not None and self.session.commands.is_open and self.closed is None:
                    # RFC 2920 §3.1: a message may be the first of a group.
                    transfer.is_sent()
            else:
                Deferred.fromCoroutine(self._send_content(source))
        elif isinstance(event, TLSWanted):
            self._timed = None
            self.line.set_deadline(self._timeouts.tls)
            assert self._handshake is not None
            self.line.start_tls(self._trust).chainDeferred(self._handshake)
        else:
            if event.failure.stage is Stage.QUIT:
                self.line.hang_up()
            else:
                self.line.abort()
            closing, self._closing = self._closing, []
            for done in closing:
                done.callback(event.failure)

    def _replied(self, command: Command, reply: Reply, more: bool) -> None:
        self._replies += 1
        if command is self.session.opening:
            self.greeting = reply
        transfer = self._transfers.get(command)
        tally = self.tally if transfer is None else transfer.tally
        tally.replied(command, reply, lmtp=self.session.lmtp)
        if more:
            return
        self._sources.pop(command, None)
        positive = reply.positive
        if command.stage is Stage.END:
            positive = any(each.accepted for each in tally.outcomes) or (
                reply.positive and not tally.outcomes)
            self.transactions += positive
        if transfer is not None:
            del self._transfers[command]
            transfer.over()
            return
        answered = self._open.pop(command)
        if positive:
            answered.callback(reply)
        else:
            kind = LoginRefused if command.stage is Stage.AUTH else Refused
            answered.errback(kind(said(reply), command.stage, status_of(reply), reply=reply))

    def _hello_done(self, result: Reply | Failure) -> None:
        waiting, self._waiting_for_hello = self._waiting_for_hello or [], None
        for each in waiting:
            if isinstance(result, Failure):
                each.errback(result)
            else:
                each.callback(None)

    def _send_block(self, block: bytes, proven: bool) -> None:
        """354 came: send a message that is one block."""
        try:
            self.session.whole(block, proven)
        except Exception as error:
            self.give_up(error)

    async def _send_content(self, source: Source) -> None:
        """354 came: send the message."""
        session = self.session
        self.line.hold_back(True)
        try:
            async for block in source.blocks():
                if not session.commands.sending:
                    return
                session.content(block)
                self.advance()
                await self.wait_for_room()
            if session.commands.sending:
                session.finish()
        except Exception as error:
            self.give_up(error)
        finally:
            self.line.hold_back(False)
            self.advance()

    # ---- time ----

    def _keep_time(self) -> None:
        """Set the deadline anew when something else is waited for than before."""
        command = self.session.commands.awaiting
        if self.session.commands.ended is not None or (
                self._handshake is not None and not self._handshake.called):
            return
        now_timed = None if command is None or self.session.commands.sending else (
            command, command.stage, self._replies)
        if now_timed != self._timed:
            self._timed = now_timed
            self.line.set_deadline(None if command is None or now_timed is None
                               else self._timeouts.of(command.stage))
