"""Who watches which connections of this process, and what they are told.

A :class:`Watch` chooses connections by the client's address, by who logs in, or by whom mail is
for.  Each is chosen as soon as that is known, and from then on what passes is told, by a
:class:`mailsvc.transcript.Transcript`; nothing is kept of what was said before, so nothing can be
told of it.  Those that are open when the watch begins are chosen by what is known of them then.

While nobody watches, this costs a look at one attribute when a connection begins, a login is tried
or a recipient is named.  A connection that is watched is tapped where it meets its transport:
neither the conversation nor its session know, and none other pays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from mailsvc.connections import Connections
from mailsvc.networks import address_of, network_of
from mailsvc.transcript import POP3Transcript, SMTPTranscript, Transcript

_log = Logger("mailsvc")

#: How many watches a process bears, and how many connections each of them.
WATCHES, CONNECTIONS = 10, 200

#: Is told a line: of which connection, whose it is ("C", "S", or "*" for a note), and the line.
Tell = Callable[[str, str, str], None]


class Watchable(Protocol):
    """What is asked of a connection.

    :ivar client: the peer's IP address, or "".
    :ivar account: who has logged in, or tries to.
    :ivar at_rest: whether the client has all its answers.
    :ivar turned: whether the connection is no conversation any more.
    """

    id: str
    client: str
    transport: Any
    dataReceived: Any
    connectionLost: Any
    factory: Any

    @property
    def account(self) -> str: ...

    @property
    def at_rest(self) -> bool: ...

    @property
    def turned(self) -> bool: ...

    @property
    def recipients(self) -> list[str]:
        """Whom the mail under way is for."""


class Watch:
    """What somebody watches.

    :param tell: is told all lines.
    :param address: an IP address or a network of the client's; or
    :param account: the name of who logs in; or
    :param recipient: whom mail is for.
    :param protocol: "smtp" (all that speak SMTP), "pop3" or "" for both.
    :param text: whether messages are shown.
    :raises ValueError: it chooses nothing, or by two things; the text says what to do.
    """

    def __init__(self, tell: Tell, *, address: str = "", account: str = "", recipient: str = "",
                 protocol: str = "", text: bool = False) -> None:
        if sum(map(bool, (address, account, recipient))) != 1:
            raise ValueError("choose by one of address, account and recipient")
        if protocol not in ("", "smtp", "pop3"):
            raise ValueError(f"{protocol!r} is no protocol here; choose smtp or pop3")
        try:
            self._network = network_of(address) if address else None
        except ValueError as problem:
            raise ValueError(f"{address!r} is no IP address or network, such as 192.0.2.7 or "
                             "2001:db8::/64") from problem
        self.tell, self.text = tell, text
        self._account, self._recipient = account.lower(), recipient.lower()
        self._protocol = protocol
        #: How many connections it has now.
        self.count = 0

    def why(self, connection: Watchable, recipient: str) -> str:
        """Why *connection* is to be watched, or "" when it is not.

        :param recipient: whom mail on it is for, as was said just now, or "".
        """
        speaks = connection.factory.login_protocol
        if self._protocol and (speaks == "pop3") != (self._protocol == "pop3"):
            return ""
        if self._network is not None:
            client = connection.client
            chosen = bool(client) and address_of(client) in self._network
            return f"the client is {client}" if chosen else ""
        if self._account:
            name = connection.account.lower()
            # Whoever leaves the domain out may mean any that is the default one.
            chosen = name == self._account or (
                bool(name) and "@" not in name and self._account.startswith(name + "@"))
            return f"{name} logs in" if chosen else ""
        return next((f"mail for {each}"
                     for each in ([recipient] if recipient else connection.recipients)
                     if self._recipient in (each.lower(), _without_detail(each.lower()))), "")


def _without_detail(address: str) -> str:
    """``bob+lists@example.org`` as ``bob@example.org``."""
    local_part, at, domain = address.rpartition("@")
    return local_part.partition("+")[0] + at + domain


class Watches:
    """The watches of one process.

    :param connections: those that can be watched.
    """

    def __init__(self, connections: Iterable[Connections]) -> None:
        self._connections = list(connections)
        self._watches: list[Watch] = []
        self._taps: dict[Any, _Tap] = {}

    def begin(self, watch: Watch) -> None:
        """Tell *watch* from now on; of connections that there are already, :meth:`look` says.

        :raises ValueError: there are too many.
        """
        if len(self._watches) >= WATCHES:
            raise ValueError(f"{WATCHES} watches go on already; let one of them end first")
        self._watches.append(watch)
        for each in self._connections:
            each.look = self.look

    def end(self, watch: Watch) -> None:
        """Tell it no more.  Harmless when it has ended already."""
        if watch in self._watches:
            self._watches.remove(watch)
            for tap in list(self._taps.values()):
                self.leave(tap, watch)
        if not self._watches:
            for each in self._connections:
                each.look = None

    def look(self, connection: Any, recipient: str = "", *, begun: bool = True) -> None:
        """Something is known of *connection*: see who wants to watch it.

        :param begun: whether something may have been said on it.
        """
        tap = self._taps.get(connection)
        for watch in self._watches:
            if tap is not None and watch in tap.transcripts:
                continue
            why = watch.why(connection, recipient)
            if not why:
                continue
            if watch.count >= CONNECTIONS:
                watch.tell(connection.id, "*", f"not shown, though {why}: {CONNECTIONS} "
                                               "connections are watched already")
                continue
            if tap is None:
                tap = self._taps[connection] = _Tap(connection, self)
            watch.count += 1
            tap.add(watch, why, begun)

    def leave(self, tap: _Tap, watch: Watch | None = None) -> None:
        """Tell *watch*, or else nobody, of a connection any more."""
        for each in [watch] if watch is not None else list(tap.transcripts):
            if tap.transcripts.pop(each, None) is not None:
                each.count -= 1
        if not tap.transcripts and self._taps.pop(tap.connection, None) is not None:
            tap.close()


class _Tap:
    """Hears what passes between a conversation and its transport."""

    def __init__(self, connection: Watchable, watches: Watches) -> None:
        self.connection = connection
        self.transcripts: dict[Watch, Transcript] = {}
        self._watches = watches
        self._transport = connection.transport
        self._received, self._lost = connection.dataReceived, connection.connectionLost
        # Of this one object: its class, and with it all others, stays as it was.
        connection.dataReceived, connection.connectionLost = self._receive, self._lose
        connection.transport = _Tapped(self._transport, self._send)

    def close(self) -> None:
        """Let all be as it was."""
        del self.connection.dataReceived, self.connection.connectionLost
        self.connection.transport = self._transport

    def add(self, watch: Watch, why: str, begun: bool) -> None:
        """Tell *watch* from now on, for the reason *why*."""
        connection = self.connection
        kind = POP3Transcript if connection.factory.login_protocol == "pop3" else SMTPTranscript
        watch.tell(connection.id, "*", f"{connection.factory.protocol_name}, client "
                                       f"{connection.client or 'on this machine'}: {why}")
        self.transcripts[watch] = kind(
            lambda whose, line: watch.tell(connection.id, whose, line), text=watch.text,
            begun=begun)

    def _receive(self, data: bytes) -> None:
        at_rest = self.connection.at_rest
        self._hear(lambda transcript: transcript.received(data, at_rest=at_rest))
        self._received(data)
        if self.connection.turned:
            self._note("the roles have turned (ATRN); what follows is not shown")
            self._watches.leave(self)

    def _send(self, data: bytes) -> None:
        self._hear(lambda transcript: transcript.sent(data))

    def _lose(self, reason: Failure = connectionDone) -> None:
        self._lost(reason)
        self._hear(Transcript.ended)
        self._note("closed")
        self._watches.leave(self)

    def _note(self, text: str) -> None:
        for watch in list(self.transcripts):
            watch.tell(self.connection.id, "*", text)

    def _hear(self, tell: Callable[[Transcript], None]) -> None:
        try:
            for transcript in list(self.transcripts.values()):
                tell(transcript)
        except Exception:
            # The conversation is not to suffer from who listens.
            _log.failure("{connection} cannot be watched any more", connection=self.connection.id)
            self._watches.leave(self)


class _Tapped:
    """A transport that tells what is written to it."""

    def __init__(self, transport: Any, told: Callable[[bytes], None]) -> None:
        self._transport, self._told = transport, told

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        self._told(data)
        self._transport.write(data)

    def writeSequence(self, blocks: Iterable[bytes]) -> None:
        self.write(b"".join(blocks))
