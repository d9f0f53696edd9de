"""Connecting to whichever of a host's addresses answers first (RFC 8305, "happy eyeballs").

The addresses are tried in order, each a moment after the one before, or at once when that has
failed.  The first connection is taken and the rest are given up: a family that leads nowhere costs
a quarter of a second and not a time-out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IDelayedCall,
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
)
from twisted.python.failure import Failure
from zope.interface import implementer

#: How long an address has a start on the next one, seconds (RFC 8305 §5).
START = 0.25


@implementer(IStreamClientEndpoint)
class Race:
    """An endpoint for one of *addresses*; once connected it stays with that one.

    :param endpoint: makes the endpoint of an address.
    :ivar winner: the address that was connected to, or None.
    """

    def __init__(self, addresses: Sequence[str], endpoint: Callable[[str], IStreamClientEndpoint],
                 clock: Any) -> None:
        self.winner: str | None = None
        self._addresses = addresses
        self._endpoint = endpoint
        self._clock = clock

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """As ``IStreamClientEndpoint``; fails as the last address did."""
        running = _Run(self._addresses if self.winner is None else [self.winner],
                       lambda address: self._endpoint(address).connect(factory), self._clock)
        running.done.addCallback(self._won, running)
        running.start()
        return running.done

    def _won(self, protocol: IProtocol, run: _Run) -> IProtocol:
        self.winner = run.winner
        return protocol


class _Run:
    """One race."""

    def __init__(self, addresses: Sequence[str], connect: Callable[[str], Deferred[IProtocol]],
                 clock: Any) -> None:
        self.winner: str | None = None
        self.done: Deferred[IProtocol] = Deferred(lambda _: self._give_up())
        self._waiting = deque(addresses)
        self._connect = connect
        self._clock = clock
        self._running: list[Deferred[IProtocol]] = []
        self._next: IDelayedCall | None = None

    def start(self) -> None:
        """Let the next address run."""
        address = self._waiting.popleft()
        if self._waiting:
            self._next = self._clock.callLater(START, self.start)
        connecting = self._connect(address)
        self._running.append(connecting)
        connecting.addCallbacks(self._won, self._failed, callbackArgs=(address, connecting),
                                errbackArgs=(connecting,))

    def _won(self, protocol: Any, address: str, connecting: Deferred[IProtocol]) -> None:
        self._running.remove(connecting)
        if self.done.called or self.winner is not None:
            protocol.transport.abortConnection()
            return
        self.winner = address
        self._give_up()
        self.done.callback(protocol)

    def _failed(self, failure: Failure, connecting: Deferred[IProtocol]) -> None:
        self._running.remove(connecting)
        if self.done.called or self.winner is not None:
            return
        if self._waiting:
            if self._next is not None and self._next.active():
                self._next.cancel()
            self.start()
        elif not self._running:
            self.done.errback(failure)

    def _give_up(self) -> None:
        self._waiting.clear()
        if self._next is not None and self._next.active():
            self._next.cancel()
        for each in tuple(self._running):
            each.cancel()
