"""Logging in, for every listener: between a session's AUTH and the cred portal.

An :class:`Authenticator` makes clients that guess wait (:mod:`mailsvc.brakes`), asks the portal,
tells the brakes how it went, and logs each failure as fail2ban can read it.  What a client may not
know, it does not find out here: a name that nobody has and a wrong password are one answer.
"""

from __future__ import annotations

import functools
import ipaddress
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from twisted.cred.credentials import IUsernameHashedPassword, IUsernamePassword
from twisted.cred.error import LoginFailed, UnauthorizedLogin, UnhandledCredentials
from twisted.cred.portal import Portal
from twisted.logger import Logger
from zope.interface import Interface

from mailsvc import figures
from mailsvc.accounts import login_name, same_account
from mailsvc.brakes import Brakes, log_failed_login
from mailsvc.credentials import Attempt, IProvenName, IToken, ProvenName, ScramKeys
from mailsvc.errors import EnhancedStatus, MailFailure, PermanentFailure
from mailsvc.figures import Share
from mailsvc.interfaces import IDirectory, IKeyring
from mailsvc.sasl import scram
from mailsvc.sasl.context import AuthSettings, Context

#: Of how many clients it is remembered where they are: each is asked about several times.
_KNOWN_CLIENTS = 1024

#: Which credentials a mechanism ends in.
_NEEDS: dict[str, type[Interface]] = {
    "PLAIN": IUsernamePassword, "LOGIN": IUsernamePassword, scram.NAME: IProvenName,
    scram.PLUS: IProvenName, "EXTERNAL": IProvenName,
    "GSSAPI": IProvenName, "CRAM-MD5": IUsernameHashedPassword,
    "OAUTHBEARER": IToken, "XOAUTH2": IToken,
}


@dataclass(frozen=True, slots=True)
class Who:
    """A client, for the log.

    :ivar connection: the connection's id.
    :ivar log: where failures are told.
    """

    connection: str
    log: Logger


class Authenticator:
    """One for all listeners of a process.

    :param keyring: where SCRAM keys are; None when passwords are kept elsewhere.
    :param brakes: None to let clients guess freely.
    :param share: where logins are counted.
    """

    def __init__(self, portal: Portal, directory: IDirectory, settings: AuthSettings, *,
                 hostname: str, keyring: IKeyring | None = None,
                 brakes: Brakes | None = None, default_domain: str = "",
                 share: Share | None = None) -> None:
        self.portal = portal
        self._directory = directory
        self._settings = settings
        self._hostname = hostname
        self._keyring = keyring
        self._brakes = brakes
        self._default_domain = default_domain
        self._share = share or Share()
        known = portal.listCredentialsInterfaces()
        self._usable = frozenset(
            name for name, needed in _NEEDS.items() if needed in known
            and (keyring is not None or name not in (scram.NAME, scram.PLUS)))

    @property
    def checks_digests(self) -> bool:
        """Whether somebody may log in by a digest of a recoverable secret."""
        return IUsernameHashedPassword in self.portal.listCredentialsInterfaces()

    def context(
        self, protocol: str, client: str, *, tls_active: bool, cleartext: str,
        channel_bindings: Mapping[str, bytes], certificate_names: tuple[str, ...],
    ) -> Context:
        """A connection as SASL sees it.

        :param cleartext: the listener's ``allow_cleartext_auth``.
        """
        return Context(
            protocol=protocol, hostname=self._hostname, settings=self._settings,
            usable=self._usable, client=client, tls_active=tls_active,
            cleartext_allowed=cleartext == "yes" or (cleartext == "loopback" and _is_here(client)),
            channel_bindings=channel_bindings, certificate_names=certificate_names)

    async def keys(self, name: bytes, attempt: Attempt) -> ScramKeys:
        """What a proof is checked against.

        :raises mailsvc.errors.MailFailure: that cannot be found out now.
        """
        assert self._keyring is not None
        try:
            await self.permit(attempt.client, name)
            return self._keyring.scram_keys(name, attempt)
        except MailFailure:
            self._count(attempt, "refused")
            raise

    async def log_in(
        self, credentials: Any, interface: type[Interface], who: Who,
        authorize_as: bytes | None = None,
    ) -> tuple[Any, Callable[[], object]]:
        """The avatar, and what logs it out.

        :param credentials: one of :mod:`mailsvc.credentials`.
        :param authorize_as: whom the client wishes to act as, if that is another name.
        :raises UnauthorizedLogin: they are wrong, or may not be used for this.
        :raises mailsvc.errors.MailFailure: that cannot be found out, or the avatar not be had.
        """
        attempt: Attempt = credentials.attempt
        began = time.monotonic_ns()
        try:
            login = await self._log_in(credentials, interface, who, authorize_as)
        except LoginFailed:
            raise  # it was counted as failed
        except Exception:
            self._count(attempt, "refused")
            raise
        self._share.spread(figures.LOGIN, attempt.protocol).observe(time.monotonic_ns() - began)
        self._count(attempt, "succeeded")
        return login

    async def _log_in(
        self, credentials: Any, interface: type[Interface], who: Who, authorize_as: bytes | None,
    ) -> tuple[Any, Callable[[], object]]:
        name: bytes = credentials.username
        attempt: Attempt = credentials.attempt
        await self.permit(attempt.client, name)
        try:
            if authorize_as is not None and not same_account(
                    self._directory, name, authorize_as, self._default_domain):
                raise UnauthorizedLogin("another account")
            _, avatar, log_out = await self.portal.login(credentials, None, interface)
        except UnhandledCredentials:
            # A fault of the configuration, not of the client.
            raise PermanentFailure("This way of logging in is not set up here",
                                   EnhancedStatus(5, 7, 4)) from None
        except LoginFailed:
            self.failed(name, attempt, who, "wrong name or password")
            raise
        if self._brakes is not None:
            self._brakes.succeeded(attempt.client, self._full(name))
        return avatar, log_out

    async def vouched_for(self, name: bytes, attempt: Attempt,
                          interface: type[Interface]) -> tuple[Any, Callable[[], object]]:
        """The avatar of whom a trusted proxy has logged in, and what logs it out.

        It is no guess if there is nobody of that name, so nothing is counted.

        :raises UnauthorizedLogin: there is nobody of that name, or its role is another.
        :raises mailsvc.errors.MailFailure: that cannot be found out.
        """
        try:
            _, avatar, log_out = await self.portal.login(
                ProvenName(name, attempt), None, interface)
        except Exception as error:
            self._count(attempt, "failed" if isinstance(error, LoginFailed) else "refused")
            raise
        self._count(attempt, "succeeded")
        return avatar, log_out

    def failed(self, name: bytes, attempt: Attempt, who: Who, reason: str) -> None:
        """Somebody guessed wrongly; count and log it."""
        self._count(attempt, "failed")
        if self._brakes is not None:
            self._brakes.failed(attempt.client, self._full(name))
        log_failed_login(
            who.log, connection=who.connection, user=name.decode("utf-8", "replace"),
            client=attempt.client, protocol=attempt.protocol, reason=reason)

    def _count(self, attempt: Attempt, outcome: str) -> None:
        mechanism = "SCRAM" if attempt.mechanism.startswith("SCRAM") else attempt.mechanism
        self._share.count(figures.LOGINS, attempt.protocol, mechanism, outcome).add()

    async def permit(self, client: str, name: bytes) -> None:
        """Make whoever guesses wait.

        :raises mailsvc.errors.TemporaryFailure: it is banned.
        """
        if self._brakes is not None:
            await self._brakes.permit(client, self._full(name))

    def _full(self, name: bytes) -> str:
        # As the same name without its domain would be counted apart.
        return login_name(self._directory, name, self._default_domain)


@functools.lru_cache(_KNOWN_CLIENTS)
def _is_here(client: str) -> bool:
    """Whether *client* is on this machine: nothing that it says crosses a network."""
    return not client or ipaddress.ip_address(client).is_loopback
