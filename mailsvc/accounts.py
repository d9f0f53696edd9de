"""Logging in: the ``twisted.cred`` realm and checker over the directory, and the password hashing.

A POP3 login is ``portal.login(credentials, None, IMaildrop)``.  :class:`DirectoryChecker` finds who
it is, :class:`MailRealm` opens that account's maildrop, which is the avatar: locked while the
session lasts, released by the logout callable.  Any other ``ICredentialsChecker`` (those of
``twisted.cred.strcred``, say) serves as well: the realm takes its avatar id, ``str`` or ``bytes``,
as a login name and looks the account up.

**Login names** are ``local-part@domain``, folded as the directory folds them.  Without a domain
they are of the default domain, or of the only domain there is.  Aliases and subaddresses cannot
log in.

**Passwords** are compared as RFC 8265's OpaqueString, in UTF-8: NFC, any space as U+0020, nothing
folded or trimmed.  Octets that are not UTF-8 are compared as they are.  They are kept as Argon2id
(RFC 9106) with the least cost that OWASP's Password Storage Cheat Sheet recommends.  A verifier
made with other parameters is made anew at the next login.

**Promises.**  Hashing runs in threads of its own, never in the reactor's; more logins than may wait
get a temporary failure.  Whatever is wrong (no such account, no password, another password), the
answer is the same text after the same work: one hash, or for APOP one digest.  The time differs
only for verifiers that still have other parameters.  A login that succeeded is remembered for a
minute, as an HMAC under a key of this process over account, verifier and password: so a change of
the password counts at once, and nothing that is kept can be turned back into it.

**Limits.**  What is remembered, and LOGIN-DELAY, are of one process each.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import unicodedata
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import argon2
from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError
from twisted.application.service import Service
from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernameHashedPassword, IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.cred.portal import IRealm
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool
from zope.interface import Interface, implementer

from mailsvc.directory import Credentials
from mailsvc.errors import LoginTooSoon, TemporaryFailure
from mailsvc.interfaces import IDirectory, IMailboxStore, IMaildrop
from mailsvc.names import DirectoryError
from mailsvc.settings import at_least, setting

#: The most octets of a new password: a PASS command of 255 octets holds it (RFC 2449 §4).
PASSWORD_OCTETS = 248


@dataclass(frozen=True, slots=True)
class PasswordSettings:
    """``[passwords]``."""

    memory_kib: int = setting(
        19_456, "Memory that one Argon2id hash takes (OWASP: 19 MiB with 2 passes).", unit="KiB",
        check=at_least(64))
    passes: int = setting(
        2, "Passes over that memory.", check=at_least(1))
    lanes: int = setting(
        1, "Lanes that the memory is divided into; 1 to 8.",
        check=lambda value: None if 1 <= value <= 8 else "1 to 8")
    threads: int = setting(
        2, "Threads that hash passwords.", check=at_least(1))
    waiting: int = setting(
        100, "Logins that may wait for a thread; more are asked to try again later.",
        check=at_least(1))
    cache_seconds: float = setting(
        60, "How long a login that succeeded is not hashed again; 0 for never.", unit="seconds",
        check=at_least(0))
    cache_entries: int = setting(
        10_000, "How many such logins are remembered.", check=at_least(0))


def prepare_password(password: str | bytes) -> bytes:
    """The form that a password is hashed and compared in."""
    if isinstance(password, bytes):
        try:
            return prepare_password(password.decode())
        except UnicodeDecodeError:
            return password
    # RFC 8265 §4.2.2: other spaces become U+0020, then NFC.
    spaced = "".join(" " if unicodedata.category(character) == "Zs" else character
                     for character in password)
    return unicodedata.normalize("NFC", spaced).encode("utf-8", "surrogatepass")


def check_password(password: str) -> bytes:
    """*password*, newly chosen, as it is hashed; :class:`DirectoryError` if it cannot be used."""
    # The message does not quote it.
    if not password:
        raise DirectoryError("the password is empty", "expected at least one character")
    if any(unicodedata.category(character) in {"Cc", "Cs", "Cn"} for character in password):
        raise DirectoryError("the password holds control characters or is not UTF-8",
                             "expected one line of text")  # RFC 8265 §4.2.1
    prepared = prepare_password(password)
    if len(prepared) > PASSWORD_OCTETS:
        raise DirectoryError("the password is too long",
                             f"expected at most {PASSWORD_OCTETS} octets of UTF-8")
    return prepared


class PasswordHasher(Service):
    """Hashes and verifies passwords in a bounded pool of threads, while the service runs.

    :param reactor: for its threads and its clock.
    """

    log = Logger()

    def __init__(self, settings: PasswordSettings, reactor: Any) -> None:
        self._settings = settings
        self._reactor = reactor
        self._argon2 = argon2.PasswordHasher(
            time_cost=settings.passes, memory_cost=settings.memory_kib,
            parallelism=settings.lanes, type=argon2.Type.ID)
        # The verifier of no password: checking it costs what checking any other does.
        salt, digest = (base64.b64encode(secrets.token_bytes(octets)).rstrip(b"=").decode()
                        for octets in (self._argon2.salt_len, self._argon2.hash_len))
        self._nobody = (f"$argon2id$v=19$m={settings.memory_kib},t={settings.passes},"
                        f"p={settings.lanes}${salt}${digest}")
        self._pool: ThreadPool | None = None
        self._jobs = 0
        self._key = secrets.token_bytes(32)
        #: Marks of logins that succeeded, and until when they count; the oldest first.
        self._successes: OrderedDict[bytes, float] = OrderedDict()

    def startService(self) -> None:
        super().startService()
        self._pool = ThreadPool(0, self._settings.threads, "passwords")
        self._pool.start()

    def stopService(self) -> Deferred[None]:
        super().stopService()
        pool, self._pool = self._pool, None
        if pool is None:
            return succeed(None)
        # Joining the threads waits for the hashes under way.
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), pool.stop)

    def hash(self, password: bytes) -> str:
        """A new verifier of a prepared password.  Takes its time in the calling thread."""
        return self._argon2.hash(password)

    def is_outdated(self, verifier: str) -> bool:
        """Whether *verifier* was made with other parameters than those set."""
        return self._argon2.check_needs_rehash(verifier)

    def verify(self, name: str, verifier: str | None, password: bytes) -> Deferred[bool]:
        """Whether *password*, prepared, is that of *verifier*; always false when that is None.

        Fails with :class:`TemporaryFailure` when too many wait.  *name* is the account's.
        """
        mark = self._mark(name, verifier, password)
        if self._successes.get(mark, 0) > self._reactor.seconds():
            return succeed(True)

        def remember(right: bool) -> bool:
            if right:
                self._remember(mark)
            return right

        return self._in_thread(self._verify, verifier, password).addCallback(remember)

    def renew(self, password: bytes, replace: Callable[[str], None]) -> None:
        """Hash *password* anew, soon, and give the verifier to *replace*, both in a thread.

        When that cannot be done now, the next login will try again.
        """
        self._in_thread(lambda: replace(self.hash(password))).addErrback(
            lambda failure: self.log.failure("Verifier not renewed", failure))

    def _in_thread(self, job: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        if self._pool is None or self._jobs >= self._settings.threads + self._settings.waiting:
            return fail(TemporaryFailure("Too many logins at once; try again later"))
        self._jobs += 1

        def done(result: Any) -> Any:
            self._jobs -= 1
            return result

        return deferToThreadPool(self._reactor, self._pool, job, *arguments).addBoth(done)

    def _verify(self, verifier: str | None, password: bytes) -> bool:
        try:
            self._argon2.verify(verifier or self._nobody, password)
        except VerifyMismatchError:
            return False
        except (InvalidHashError, VerificationError) as error:
            self.log.error("An account's verifier cannot be read: {error}", error=error)
            return self._verify(None, password)
        return True

    def _mark(self, name: str, verifier: str | None, password: bytes) -> bytes:
        mark = hmac.new(self._key, digestmod=hashlib.sha256)
        for part in (name.encode("utf-8", "surrogatepass"), (verifier or "").encode(), password):
            mark.update(len(part).to_bytes(8, "big") + part)
        return mark.digest()

    def _remember(self, mark: bytes) -> None:
        now = self._reactor.seconds()
        self._successes.pop(mark, None)
        self._successes[mark] = now + self._settings.cache_seconds
        while self._successes and (len(self._successes) > self._settings.cache_entries
                                   or next(iter(self._successes.values())) <= now):
            self._successes.popitem(last=False)


def login_name(directory: IDirectory, name: str | bytes, default_domain: str = "") -> str:
    """The account name that a login name means; one that exists nowhere when it means none."""
    if isinstance(name, bytes):
        # What is not UTF-8 becomes lone surrogates, which no name holds.
        name = name.decode("utf-8", "surrogateescape")
    if "@" in name:
        return name
    if not default_domain:
        domains = list(directory.domains(2))
        default_domain = domains[0].name if len(domains) == 1 else ""
    return f"{name}@{default_domain}"


@implementer(ICredentialsChecker)
class DirectoryChecker:
    """Checks passwords, and digests of recoverable ones (APOP), against the directory.

    The avatar id is the account's name.
    """

    credentialInterfaces = (IUsernamePassword, IUsernameHashedPassword)

    def __init__(self, directory: IDirectory, hasher: PasswordHasher,
                 default_domain: str = "") -> None:
        self._directory = directory
        self._hasher = hasher
        self._default_domain = default_domain

    def requestAvatarId(self, credentials: Any) -> Deferred[bytes | tuple[()]]:
        return Deferred.fromCoroutine(self._check(credentials))

    async def _check(self, credentials: Any) -> bytes:
        name = login_name(self._directory, credentials.username, self._default_domain)
        found = self._directory.credentials(name)
        if IUsernamePassword.providedBy(credentials):
            right = await self._verify(name, found, prepare_password(credentials.password))
        else:
            # Without a secret, one that nobody knows: the same digest is worked out.
            secret = found.secret if found else None
            right = await maybeDeferred(
                credentials.checkPassword,
                secrets.token_bytes(16) if secret is None else secret.encode())
            right = right and secret is not None
        if found is None or not right:
            raise UnauthorizedLogin("Authentication failed")
        return found.account.name.encode()

    async def _verify(self, name: str, found: Credentials | None, password: bytes) -> bool:
        if found is None or found.verifier is None:
            return await self._hasher.verify(name, None, password)
        account, verifier = found.account, found.verifier
        right = await self._hasher.verify(account.name, verifier, password)
        if right and self._hasher.is_outdated(verifier):
            self._hasher.renew(password, partial(self._directory.replace_verifier, account,
                                                 verifier))
        return right


@implementer(IRealm)
class MailRealm:
    """Opens the maildrop of whoever was authenticated.

    :param login_delay: seconds between two logins to one account; 0 for none (RFC 2449 §6.5).
    :param default_domain: as for :class:`DirectoryChecker`, for avatar ids of other checkers.
    """

    def __init__(self, store: IMailboxStore, directory: IDirectory, login_delay: float = 0, *,
                 default_domain: str = "", clock: Any = None) -> None:
        if clock is None:
            from twisted.internet import reactor as clock  # noqa: PLC0415
        self._store = store
        self._directory = directory
        self._login_delay = login_delay
        self._default_domain = default_domain
        self._clock = clock
        #: When accounts last logged in, the longest ago first.
        self._logins: OrderedDict[str, float] = OrderedDict()

    def requestAvatar(self, avatarId: str | bytes | tuple[()], mind: object,
                      *interfaces: type[Interface]) -> Deferred[Any]:
        """(IMaildrop, the maildrop, its release).

        Fails with ``UnauthorizedLogin`` when there is no such account, ``LoginTooSoon``, or as
        :meth:`IMailboxStore.open_maildrop`.
        """
        return Deferred.fromCoroutine(self._open(avatarId, interfaces))

    async def _open(self, avatar_id: str | bytes | tuple[()],
                    interfaces: tuple[type[Interface], ...]) -> tuple[Any, Any, Any]:
        if IMaildrop not in interfaces:
            raise TypeError("a mail account has no other avatar than its IMaildrop")
        # Anonymous logins have () for their avatar id.
        name = login_name(self._directory, avatar_id or "", self._default_domain)
        found = self._directory.credentials(name)
        if found is None:
            raise UnauthorizedLogin("Authentication failed")
        account = found.account
        self._forget_old_logins()
        if account.name in self._logins:
            raise LoginTooSoon(f"Wait {self._login_delay:g} seconds between logins")
        maildrop = await self._store.open_maildrop(account)
        if self._login_delay:
            self._logins[account.name] = self._clock.seconds()
        return IMaildrop, maildrop, maildrop.release

    def _forget_old_logins(self) -> None:
        since = self._clock.seconds() - self._login_delay
        while self._logins and next(iter(self._logins.values())) <= since:
            self._logins.popitem(last=False)
