"""Several checkers for the same kind of credentials, asked one after the other.

A portal of Twisted's keeps one checker for each interface of credentials, the last it was given.
:func:`in_turn` makes one checker of those that share an interface.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.error import LoginFailed, UnauthorizedLogin
from twisted.internet.defer import Deferred, maybeDeferred
from zope.interface import Interface, implementer

from mailsvc.errors import TemporaryFailure


@implementer(ICredentialsChecker)
class InTurn:
    """Asks *checkers* in their order until one says yes.

    When none does, but one could not be asked, it fails as that one did: it might have said yes.
    """

    def __init__(self, interface: type[Interface], checkers: Iterable[ICredentialsChecker]) -> None:
        self.credentialInterfaces = (interface,)
        self._checkers = tuple(checkers)

    def requestAvatarId(self, credentials: Any) -> Deferred[bytes | tuple[()]]:
        return Deferred.fromCoroutine(self._ask(credentials))

    async def _ask(self, credentials: Any) -> bytes | tuple[()]:
        outage: TemporaryFailure | None = None
        for checker in self._checkers:
            try:
                return await maybeDeferred(checker.requestAvatarId, credentials)
            except LoginFailed:
                pass
            except TemporaryFailure as failure:
                outage = outage or failure
        raise outage or UnauthorizedLogin("Authentication failed")


def in_turn(checkers: Iterable[ICredentialsChecker]) -> list[ICredentialsChecker]:
    """For each interface that some of *checkers* take, one checker that asks all of those."""
    takers: dict[type[Interface], list[ICredentialsChecker]] = {}
    for checker in checkers:
        for interface in checker.credentialInterfaces:
            takers.setdefault(interface, []).append(checker)
    return [InTurn(interface, several) for interface, several in takers.items()]
