"""Logging in: the ``twisted.cred`` realm and checker over the directory, and the SCRAM keyring.

A POP3 login is ``portal.login(credentials, None, IMaildrop)``: :class:`DirectoryChecker` finds who
it is, :class:`MailRealm` opens that account's maildrop, which is the avatar: locked while the
session lasts, released by the logout callable.  A login to submit mail asks for ``ISubmitter``.
Any other ``ICredentialsChecker`` (those of ``twisted.cred.strcred``, say) serves as well: the realm
takes its avatar id, ``str`` or ``bytes``, as a login name and looks the account up.

**Login names** are ``local-part@domain``, folded as the directory folds them.  Without a domain
they are of the default domain, or of the only domain there is.  Aliases and subaddresses cannot
log in.

**Passwords.**  An account has a main password and app passwords (:mod:`mailsvc.logins`), of which
those count that are good for the attempt's protocol, its client's address, and now.  Credentials
that know no attempt, as those of ``twisted.cred``, are of no protocol and from nowhere.  Who logs
in by a password has it hashed anew, soon, where it was hashed with other parameters, and SCRAM keys
derived where there are none.  When each was last used is noted, in batches and at most once a
minute.

**Roles.**  An account that only receives cannot submit, one that only sends has no maildrop: to
either it is as if the password were wrong.

**Promises.**  Whatever is wrong (no such account, no password, another password, one that has
expired or is for another protocol or network, the account's role), the answer is the same text
after the same work: one slow hash and one quick one, or for APOP and CRAM-MD5 a digest.

**Limits.**  The time does differ for verifiers that still have other parameters; by some 4 µs for
each app password of an account, which is lost beside a slow hash of 20 ms unless there are dozens;
by a digest for each readable password beyond the first; and by a few µs for names that exist, which
shows when the slow hash is set to take less than a millisecond.  What was noted of the last ten
seconds' logins is lost when the process is killed.  Which password a SCRAM client proved is not
known when the account has several with keys; then no use is noted.
"""

from __future__ import annotations

import dataclasses
import hmac
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernameHashedPassword, IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.cred.portal import IRealm
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from zope.interface import Interface, implementer

from mailsvc.credentials import Attempt, IProvenName, ScramKeys
from mailsvc.errors import MaildropInUse
from mailsvc.interfaces import (
    IAccountHolder,
    IDirectory,
    IKeyring,
    IMailboxStore,
    IMaildrop,
    ISubmitter,
)
from mailsvc.logindelay import LoginDelay
from mailsvc.logins import Credentials, StoredPassword
from mailsvc.mail import Account
from mailsvc.names import fold_domain, fold_local_part
from mailsvc.passwords import (
    PasswordHasher,
    app_verifier,
    as_app_password,
    prepare_password,
    read_scram,
    scram_salt,
)

#: A password's use is noted when it was not for this long, together with those of the next seconds.
USE_SECONDS = 60
BATCH_SECONDS = 10

#: What SCRAM clients are told to do for names without keys, when none are kept at all (RFC 7677).
LEAST_ITERATIONS = 4096


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


def same_account(directory: IDirectory, name: str | bytes, other: str | bytes,
                 default_domain: str = "") -> bool:
    """Whether two login names mean one account, be there one or not.

    For SASL's authorization identity *other*, beside the *name* that was authenticated: nobody may
    act for anybody else, and an empty one is the same (RFC 4422 §3.4.1).
    """
    def folded(each: str | bytes) -> tuple[str, str]:
        local_part, _, domain = login_name(directory, each, default_domain).rpartition("@")
        return fold_local_part(local_part), fold_domain(domain)

    return not other or folded(name) == folded(other)


def _may(account: Account, protocol: str) -> bool:
    return {"pop3": account.receives, "submission": account.sends}.get(protocol, True)


#: How often, and how many seconds apart, a maildrop is asked for that another session has.
_TRIES = 11
_BETWEEN_TRIES = 0.1
#: Who is checked when there is no such account: somebody whose password nothing is.
_NOBODY = Credentials(Account("", ""), (StoredPassword(),))


def _usable(found: Credentials, attempt: Attempt | None, now: float) -> list[StoredPassword]:
    """The passwords of an account that are good for *attempt*."""
    protocol, client = (attempt.protocol, attempt.client) if attempt else ("", "")
    if not _may(found.account, protocol):
        return []
    return [each for each in found.passwords if each.admits(protocol, client, now)]


@implementer(ICredentialsChecker)
class DirectoryChecker:
    """Checks passwords, digests of recoverable ones, and proven names against the directory.

    The avatar id is the account's name.

    :param now: Unix time.
    """

    credentialInterfaces = (IProvenName, IUsernamePassword, IUsernameHashedPassword)

    def __init__(self, directory: IDirectory, hasher: PasswordHasher, default_domain: str = "", *,
                 now: Callable[[], float] = time.time) -> None:
        self._directory = directory
        self._hasher = hasher
        self._default_domain = default_domain
        self._now = now
        #: The passwords that are being hashed anew.
        self._renewed: set[int] = set()
        #: Uses not yet noted: id of the password, time, address.
        self._uses: dict[int, tuple[int, int, str]] = {}

    def requestAvatarId(self, credentials: Any) -> Deferred[bytes | tuple[()]]:
        return Deferred.fromCoroutine(self._check(credentials))

    async def _check(self, credentials: Any) -> bytes:
        attempt: Attempt | None = getattr(credentials, "attempt", None)
        name = login_name(self._directory, credentials.username, self._default_domain)
        found = self._directory.credentials(name)
        checked = found or _NOBODY
        usable = _usable(checked, attempt, self._now())
        if IProvenName.providedBy(credentials):
            return self._proven(found, usable, credentials.attempt)
        if IUsernamePassword.providedBy(credentials):
            shown = prepare_password(credentials.password)
            main = next((each for each in usable if not each.label), None)
            if self._hasher.remembers(
                    checked.account.name, main.verifier if main else None, shown):
                # When it was hashed was also the time to renew it.
                password, shown = main, b""
            else:
                password = await self._matching(checked.account.name, usable, main, shown)
        else:
            shown = b""
            password = await _digested(credentials, usable)
        if found is None or password is None:
            raise UnauthorizedLogin("Authentication failed")
        self._note_use(password, attempt)
        if shown:
            self._renew(found.account, password, shown)
        return found.account.name.encode()

    def _proven(self, found: Credentials | None, usable: list[StoredPassword],
                attempt: Attempt) -> bytes:
        if found is None or not _may(found.account, attempt.protocol):
            raise UnauthorizedLogin("Authentication failed")
        keyed = [each for each in usable if each.scram]
        if attempt.mechanism.startswith("SCRAM-") and len(keyed) == 1:
            self._note_use(keyed[0], attempt)
        return found.account.name.encode()

    async def _matching(self, name: str, usable: list[StoredPassword],
                        main: StoredPassword | None, shown: bytes) -> StoredPassword | None:
        verifier = app_verifier(self._directory, as_app_password(shown)).encode()
        for password in usable:
            if password.label and hmac.compare_digest((password.verifier or "").encode(), verifier):
                return password
        right = await self._hasher.verify(name, main.verifier if main else None, shown)
        return main if right else None

    def _note_use(self, password: StoredPassword, attempt: Attempt | None) -> None:
        now = int(self._now())
        if password.id in self._uses or (password.used or 0) > now - USE_SECONDS:
            return
        self._uses[password.id] = password.id, now, attempt.client if attempt else ""
        self._hasher.after(BATCH_SECONDS, self._record_uses)

    def _record_uses(self) -> None:
        # In a thread, while others are noted: each step is one that cannot be cut in two.
        uses = []
        while self._uses:
            uses.append(self._uses.popitem()[1])
        if uses:
            self._directory.record_uses(uses)

    def _renew(self, account: Account, password: StoredPassword, shown: bytes) -> None:
        if password.label:
            shown = as_app_password(shown)
        hasher, salt, verifier = (
            self._hasher, scram_salt(self._directory, account.name), password.verifier or "")
        verifier_too = not password.label and hasher.is_outdated(verifier)
        if password.id in self._renewed or not (
                verifier_too or hasher.is_scram_outdated(password.scram, salt)):
            return

        def job() -> None:
            self._directory.renew_password(
                password, hasher.hash(shown) if verifier_too else verifier,
                hasher.derive_scram(shown, salt))

        def done(_: None) -> None:
            self._renewed.discard(password.id)

        self._renewed.add(password.id)
        hasher.soon(job).addCallback(done)


async def _digested(credentials: Any, usable: Iterable[StoredPassword]) -> StoredPassword | None:
    """The password that a digest was made with."""
    readable = [each for each in usable if each.secret is not None]
    # Without any, one that nobody knows: the same digest is worked out.
    for each in readable or [StoredPassword(secret=secrets.token_hex(16))]:
        right = await maybeDeferred(credentials.checkPassword, (each.secret or "").encode())
        if right and readable:
            return each
    return None


@implementer(IKeyring)
class Keyring:
    """The SCRAM keys in the directory, and made-up ones for all other names.

    :param iterations: of the made-up ones, as set for those that are derived; 0 for no others.
    :param default_domain: as for :class:`DirectoryChecker`.
    """

    def __init__(self, directory: IDirectory, iterations: int, default_domain: str = "", *,
                 now: Callable[[], float] = time.time) -> None:
        self._directory = directory
        self._iterations = iterations
        self._default_domain = default_domain
        self._now = now

    def scram_keys(self, name: bytes, attempt: Attempt) -> ScramKeys:
        """As the interface says; the main password's first, with the others that have its salt."""
        directory = self._directory
        login = login_name(directory, name, self._default_domain)
        salt = scram_salt(directory, login)
        made_up = ScramKeys(self._iterations or LEAST_ITERATIONS, salt,
                            directory.keyed("SCRAM stored key", salt),
                            directory.keyed("SCRAM server key", salt))
        usable = _usable(directory.credentials(login) or _NOBODY, attempt, self._now())
        keys = [found for each in sorted(usable, key=lambda each: bool(each.label))
                if self._iterations and (found := read_scram(each.scram))]
        if not keys:
            return made_up
        first, *others = keys
        return dataclasses.replace(first, others=tuple(
            other for other in others
            if (other.iterations, other.salt) == (first.iterations, first.salt)))


@implementer(ISubmitter)
@dataclass(frozen=True, slots=True)
class Submitter:
    """See :class:`mailsvc.interfaces.ISubmitter`."""

    account: Account


@implementer(IAccountHolder)
@dataclass(frozen=True, slots=True)
class AccountHolder:
    """See :class:`mailsvc.interfaces.IAccountHolder`."""

    account: Account


@implementer(IRealm)
class MailRealm:
    """Opens the maildrop of whoever was authenticated, or lets them submit mail.

    :param login_delay: what must pass between two POP3 logins to one account, if anything.
    :param default_domain: as for :class:`DirectoryChecker`, for avatar ids of other checkers.
    :param clock: to wait on for a maildrop that another session has; without, none waits.
    """

    def __init__(self, store: IMailboxStore, directory: IDirectory,
                 login_delay: LoginDelay | None = None, *, default_domain: str = "",
                 clock: IReactorTime | None = None) -> None:
        self._store = store
        self._directory = directory
        self._login_delay = login_delay
        self._default_domain = default_domain
        self._clock = clock

    def requestAvatar(self, avatarId: str | bytes | tuple[()], mind: object,
                      *interfaces: type[Interface]) -> Deferred[Any]:
        """(IMaildrop, the maildrop, its release), or (ISubmitter, the submitter, nothing to do),
        or (IAccountHolder, the holder, nothing to do).

        Fails with ``UnauthorizedLogin`` when there is no such account or its role is another,
        ``LoginTooSoon``, or as :meth:`IMailboxStore.open_maildrop`.
        """
        return Deferred.fromCoroutine(self._avatar(avatarId, interfaces))

    async def _avatar(self, avatar_id: str | bytes | tuple[()],
                      interfaces: tuple[type[Interface], ...]) -> tuple[Any, Any, Any]:
        wanted = next((each for each in interfaces
                       if each in (IMaildrop, ISubmitter, IAccountHolder)), None)
        if wanted is None:
            raise TypeError("a mail account has no other avatar than IMaildrop, ISubmitter and "
                            "IAccountHolder")
        # Anonymous logins have () for their avatar id.
        name = login_name(self._directory, avatar_id or "", self._default_domain)
        local_part, _, domain = name.rpartition("@")
        account = self._directory.account(local_part, domain)
        if (account is None or (wanted is IMaildrop and not account.receives)
                or (wanted is ISubmitter and not account.sends)):
            raise UnauthorizedLogin("Authentication failed")
        if wanted is IAccountHolder:
            return IAccountHolder, AccountHolder(account), lambda: None
        if wanted is ISubmitter:
            return ISubmitter, Submitter(account), lambda: None
        if self._login_delay is not None:
            await self._login_delay.check(account.name)
        maildrop = await self._maildrop(account)
        if self._login_delay is not None:
            try:
                await self._login_delay.note(account.name)
            except BaseException:
                maildrop.release()
                raise
        return IMaildrop, maildrop, maildrop.release

    async def _maildrop(self, account: Account) -> IMaildrop:
        """The maildrop, for which a client waits a moment that comes back after a lost connection:
        the process that had that may not have noticed yet."""
        if self._clock is not None:
            for _ in range(_TRIES - 1):
                try:
                    return await self._store.open_maildrop(account)
                except MaildropInUse:
                    await deferLater(self._clock, _BETWEEN_TRIES)
        return await self._store.open_maildrop(account)
