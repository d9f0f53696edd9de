"""How passwords are hashed, checked and made.

**Main passwords** are compared as RFC 8265's OpaqueString, in UTF-8: NFC, any space as U+0020,
nothing folded or trimmed.  Octets that are not UTF-8 are compared as they are.  They are kept as
Argon2id (RFC 9106) with the least cost that OWASP's Password Storage Cheat Sheet recommends.
Verifiers made with other parameters, and bcrypt's (``$2b$``, with the package bcrypt), can be
checked.

**App passwords** are made here: 24 letters, more than 108 random bits.  No guessing gets at so
many, so they need no slow hash: their verifier is an HMAC-SHA-256 under the directory's own key,
worked out once for whatever was sent and compared with those of the account.  Where the password
itself is sent, its hyphens may be left out, and its case does not matter.

**SCRAM-SHA-256 keys** (RFC 5802, RFC 7677) are derived by PBKDF2 and written as PostgreSQL writes
them.  The salt is the directory's HMAC of the account's name: all passwords of an account share it,
so that SCRAM, which tells the salt before it knows the password, can be done with any of them; and
names that do not exist have one as well.

**Promises.**  Hashing runs in threads of its own, never in the reactor's; more logins than may wait
get a temporary failure.  A login that succeeded is good for a minute, as an HMAC under a key of
this process over account, verifier and password: so a change of the password counts at once, and
nothing that is kept can be turned back into it.  After that minute it is hashed again, but before
all that never succeeded, and there is room for it where there is none for those: who knows the
password does not queue behind those who guess.

**Limits.**  What is remembered is of one process.  Whoever steals the accounts file will guess by
the cheaper of Argon2id and PBKDF2.  bcrypt sees 72 octets of a password, and a wrong password for
such a verifier takes as long as bcrypt takes.  SCRAM's clients prepare passwords by RFC 4013, which
differs from OpaqueString for a few characters beyond ASCII.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import os
import re
import secrets
import threading
import unicodedata
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import argon2
from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError
from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool

from mailsvc.credentials import ScramKeys
from mailsvc.errors import TemporaryFailure
from mailsvc.interfaces import IDirectory
from mailsvc.names import DirectoryError, fold_domain, fold_local_part
from mailsvc.sasl.scram import decode_keys, encode_keys, scram_keys
from mailsvc.settings import at_least, setting

#: The most octets of a new password: a PASS command of 255 octets holds it (RFC 2449 §4).
PASSWORD_OCTETS = 248

#: How far behind others the threads that hash stand (nice(1); on Linux each thread has its own).
_NICE = 10

#: Of how many verifiers it is remembered whether they are outdated.
_KNOWN_VERIFIERS = 4096

#: What app passwords are made of: no letter that another looks like.  24 of them are 108 bits.
_LETTERS = "abcdefghjkmnpqrstuvwxyz"
_APP_PASSWORD = re.compile(f"[{_LETTERS}]{{24}}".encode())


#: Version, cost, salt and digest, as OpenBSD, PHP and others write them.
_BCRYPT = re.compile(r"\$2[aby]\$(0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{53}")


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
    # Whoever steals the accounts tries passwords against their cheapest verifier, which are these
    # keys and not Argon2id; so as many as can be.  But the client works them out at each login, a
    # phone in some tenth of a second, and Cyrus SASL's refuses more than 65,536.
    scram_iterations: int = setting(
        65_536, "Iterations of PBKDF2 that the keys for SCRAM-SHA-256 are derived with, by each "
        "client at each login: at least 4096 (RFC 7677), or 0 to keep no such keys.",
        check=lambda value: None if value == 0 or 4096 <= value < 1 << 31
        else "0, or 4096 to 2147483647")
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
    if password.isascii():
        return password.encode()
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


def new_app_password() -> str:
    """A password for a program: ``abcd-efgh-jkmn-pqrs-tuvw-xyza``."""
    return _grouped("".join(secrets.choice(_LETTERS) for _ in range(24)))


def _grouped(letters: str) -> str:
    return "-".join(letters[start:start + 4] for start in range(0, 24, 4))


def as_app_password(password: bytes) -> bytes:
    """What *password* is if it is an app password, however typed, as it was made; else b""."""
    letters = password.replace(b"-", b"").replace(b" ", b"").lower()
    return _grouped(letters.decode()).encode() if _APP_PASSWORD.fullmatch(letters) else b""


def app_verifier(directory: IDirectory, password: bytes) -> str:
    """The verifier of an app password as it was made; the same work for whatever else."""
    return "$hmac-sha256$" + directory.keyed("app password", password).hex()


def scram_salt(directory: IDirectory, name: str) -> bytes:
    """The salt of all SCRAM keys of the account *name*, be there one or not."""
    local_part, _, domain = name.rpartition("@")
    folded = f"{fold_local_part(local_part)}@{fold_domain(domain)}"
    return directory.keyed("SCRAM salt", folded.encode("utf-8", "surrogatepass"))[:16]


def derive_scram(password: bytes, salt: bytes, iterations: int) -> str:
    """The SCRAM-SHA-256 keys of a password; takes its time in the calling thread."""
    return encode_keys(scram_keys(password, iterations, salt))


def read_scram(text: str | None) -> ScramKeys | None:
    """The keys that :func:`derive_scram` or PostgreSQL wrote, or None if it is anything else."""
    try:
        return decode_keys(text or "")
    except ValueError:
        return None


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
        # Asked at every login, which finds the same verifier every minute.
        self._needs_rehash = lru_cache(_KNOWN_VERIFIERS)(self._argon2.check_needs_rehash)
        # The verifier of no password: checking it costs what checking any other does.
        salt, digest = (base64.b64encode(secrets.token_bytes(octets)).rstrip(b"=").decode()
                        for octets in (self._argon2.salt_len, self._argon2.hash_len))
        self._nobody = (f"$argon2id$v=19$m={settings.memory_kib},t={settings.passes},"
                        f"p={settings.lanes}${salt}${digest}")
        self._pool: ThreadPool | None = None
        #: Logins being hashed and waiting, and other jobs.
        self._jobs = 0
        #: What waits for a thread: logins that succeeded before, and the rest.
        self._known: deque[Callable[[], None]] = deque()
        self._strange: deque[Callable[[], None]] = deque()
        self._key = secrets.token_bytes(32)
        #: Marks of logins that succeeded, and until when they are good; the oldest first.
        self._successes: OrderedDict[bytes, float] = OrderedDict()
        #: What :meth:`after` waits with.
        self._later: dict[Callable[[], None], IDelayedCall] = {}

    def startService(self) -> None:
        super().startService()
        self._pool = ThreadPool(0, self._settings.threads, "passwords")
        self._pool.start()

    def stopService(self) -> Deferred[None]:
        super().stopService()
        pool, self._pool = self._pool, None
        if pool is None:
            return succeed(None)
        for job, call in self._later.items():
            call.cancel()
            pool.callInThread(self._attempt, job)
        self._later.clear()
        for begin in (*self._known, *self._strange):
            begin()
        self._known.clear()
        self._strange.clear()
        # Joining the threads waits for the hashes under way.
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), pool.stop)

    def hash(self, password: bytes) -> str:
        """A new verifier of a prepared password.  Takes its time in the calling thread."""
        return self._argon2.hash(password)

    def derive_scram(self, password: bytes, salt: bytes) -> str | None:
        """SCRAM keys of a prepared password, or None when none are to be kept.  Takes its time."""
        iterations = self._settings.scram_iterations
        return derive_scram(password, salt, iterations) if iterations else None

    def is_outdated(self, verifier: str) -> bool:
        """Whether *verifier* was made with other parameters than those set."""
        try:
            return self._needs_rehash(verifier)
        except InvalidHashError:
            return True

    def is_scram_outdated(self, scram: str | None, salt: bytes) -> bool:
        """Whether :meth:`derive_scram` would make other keys out of the same password."""
        if not self._settings.scram_iterations:
            return scram is not None
        keys = read_scram(scram)
        return keys is None or (keys.iterations, keys.salt) != (self._settings.scram_iterations,
                                                                salt)

    def remembers(self, name: str, verifier: str | None, password: bytes) -> bool:
        """Whether *password*, prepared, was found to be that of *verifier* a moment ago."""
        return self._is_good(self._mark(name, verifier, password))

    def verify(self, name: str, verifier: str | None, password: bytes) -> Deferred[bool]:
        """Whether *password*, prepared, is that of *verifier*; always false when that is None.

        Fails with :class:`TemporaryFailure` when too many wait.  *name* is the account's.
        """
        mark = self._mark(name, verifier, password)
        if self._is_good(mark):
            return succeed(True)

        def remember(right: bool) -> bool:
            if right:
                self._remember(mark)
            return right

        return self._in_thread(
            self._verify, verifier, password, known=mark in self._successes).addCallback(remember)

    def soon(self, job: Callable[[], None]) -> Deferred[None]:
        """Run *job* in a thread, unless logins need them all now; then it is not done.

        :returns: fires when that is over; never fails, for a job that fails is logged.
        """
        if self._jobs >= self._settings.threads:
            return succeed(None)
        return self._in_thread(self._attempt, job).addErrback(lambda _: None)

    def after(self, seconds: float, job: Callable[[], None]) -> None:
        """Run *job* in a thread in so many seconds, or when the service stops if that is sooner."""
        def begin() -> None:
            del self._later[job]
            if self._pool is not None:
                self._pool.callInThread(self._attempt, job)

        if self._pool is not None and job not in self._later:
            self._later[job] = self._reactor.callLater(seconds, begin)

    def _attempt(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception:
            self.log.failure("Nothing could be changed in the directory of accounts; it will be "
                             "tried again at later logins")

    def _in_thread(self, job: Callable[..., Any], *arguments: Any,
                   known: bool = False) -> Deferred[Any]:
        pool, queue = self._pool, self._known if known else self._strange
        if pool is None or len(queue) >= self._settings.waiting:
            return fail(TemporaryFailure("Too many logins at once; try again later"))
        self._jobs += 1
        outcome: Deferred[Any] = Deferred()

        def begin() -> None:
            deferToThreadPool(self._reactor, pool, _in_the_background, job,
                              *arguments).addBoth(done).chainDeferred(outcome)

        def done(result: Any) -> Any:
            self._jobs -= 1
            waiting = self._known or self._strange
            if waiting:
                waiting.popleft()()
            return result

        if self._jobs > self._settings.threads:
            queue.append(begin)
        else:
            begin()
        return outcome

    def _verify(self, verifier: str | None, password: bytes) -> bool:
        try:
            if verifier and _BCRYPT.fullmatch(verifier):
                return _is_bcrypt(verifier, password)
            self._argon2.verify(verifier or self._nobody, password)
        except VerifyMismatchError:
            return False
        except ImportError:
            self.log.error("An account's verifier is bcrypt's, which takes the package bcrypt to "
                           "check: pip install mailsvc[bcrypt]")
            return self._verify(None, password)
        except (ValueError, VerificationError) as error:  # no hash at all; bcrypt's bad salt
            self.log.error("An account's verifier cannot be read: {error}", error=error)
            return self._verify(None, password)
        return True

    def _mark(self, name: str, verifier: str | None, password: bytes) -> bytes:
        parts = name.encode("utf-8", "surrogatepass"), (verifier or "").encode(), password
        shown = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
        return hmac.digest(self._key, shown, "sha256")

    def _is_good(self, mark: bytes) -> bool:
        until = self._successes.get(mark)
        return until is not None and until > self._reactor.seconds()

    def _remember(self, mark: bytes) -> None:
        if not self._settings.cache_seconds:
            return
        self._successes[mark] = self._reactor.seconds() + self._settings.cache_seconds
        self._successes.move_to_end(mark)
        if len(self._successes) > self._settings.cache_entries:
            self._successes.popitem(last=False)


def _in_the_background(job: Callable[..., Any], *arguments: Any) -> Any:
    """Do *job* with what processor time the others leave: guesses must not slow down mail."""
    thread = threading.get_native_id()
    with contextlib.suppress(OSError):
        if os.getpriority(os.PRIO_PROCESS, thread) < _NICE:
            os.setpriority(os.PRIO_PROCESS, thread, _NICE)
    return job(*arguments)


def _is_bcrypt(verifier: str, password: bytes) -> bool:
    import bcrypt  # noqa: PLC0415 - an extra, for accounts that came from elsewhere

    # Octets beyond these never counted; the package refuses them.
    return bcrypt.checkpw(password[:72], verifier.encode())
