"""``--auth postgresql:``: verifiers that a PostgreSQL database keeps.

A SELECT of the operator's returns the verifier of a login name, which it gets as its parameter:
Argon2 (``$argon2id$``), bcrypt (``$2b$``) or SCRAM-SHA-256 keys, such as PostgreSQL's own in
``pg_authid``.  A second column, if there is one, is the name of the account.

**Promises.**  The name is a parameter of the statement, never part of its text; the transaction is
read-only.  The look-up and the hash run in a few threads, each with a connection of its own, made
when it is needed and made anew when the server was restarted.  A name that has no row is checked
against a verifier of nobody's, as costly as the last that there was.  A login that succeeded is not
hashed again for a minute; its verifier is looked up all the same, so a change counts at once.

**Limits.**  Where verifiers differ in kind or cost, the time tells which a name has.

The connections are as many as the threads, so a deque of them is the pool; psycopg_pool would add
threads of its own, and let logins wait while the server is down instead of saying so.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from zope.interface import implementer

from mailsvc.checkers.arguments import BadArguments, read, require
from mailsvc.checkers.bounds import Threads
from mailsvc.checkers.successes import Successes
from mailsvc.checkers.verifiers import UnknownVerifier, decoy, matches
from mailsvc.errors import TemporaryFailure
from mailsvc.settings import at_least, setting

HELP = """\
Verifiers that a PostgreSQL database keeps: $argon2id$, $2b$ (bcrypt) or SCRAM-SHA-256$.
Example: postgresql:conninfo=service=mail:query=SELECT verifier FROM login WHERE name = %s
"""


def _query(value: str) -> str | None:
    return None if value.replace("%%", "").count("%s") == 1 and value.replace(
        "%%", "").count("%") == 1 else ("a SELECT of one verifier, with one %s for the login name "
                                        "(and %% for any other per cent sign)")


@dataclass(frozen=True, slots=True)
class Settings:
    """What may stand behind ``postgresql:``."""

    query: str = setting(
        "", "A SELECT whose one row is the verifier of the login name %s, or that and the name of "
        "the account.", check=_query)
    conninfo: str = setting(
        "", "The database, as libpq has it: host=HOST dbname=NAME user=USER passfile=PATH, or "
        "service=NAME; "
        "empty for libpq's defaults.")
    timeout: float = setting(10, "How long a login may take.", unit="seconds", check=at_least(1))
    threads: int = setting(4, "Look-ups at a time; each has a connection.", check=at_least(1))
    waiting: int = setting(100, "Logins that may wait for one.", check=at_least(0))
    cache_seconds: float = setting(
        60, "How long a login that succeeded is not hashed again.", unit="seconds",
        check=at_least(0))


def checker(arguments: str) -> ICredentialsChecker:
    """The checker that *arguments* describe.

    :raises BadArguments: they cannot be used.
    """
    require("psycopg", "postgresql")
    settings = read(Settings, arguments)
    import psycopg  # noqa: PLC0415

    try:
        psycopg.conninfo.conninfo_to_dict(settings.conninfo)
    except psycopg.ProgrammingError as error:
        raise BadArguments(f"conninfo: expected what libpq takes, such as host=/run/postgresql "
                           f"dbname=mail ({str(error).strip()})") from error
    return PostgreSQLChecker(settings)


@implementer(ICredentialsChecker)
class PostgreSQLChecker:
    """Asks a PostgreSQL database; see the module."""

    credentialInterfaces = (IUsernamePassword,)
    log = Logger()

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._threads = Threads("postgresql", settings.threads, settings.waiting,
                                settings.timeout, self._close)
        #: Connections that no thread uses; taking and giving back are atomic.
        self._idle: deque[Any] = deque()
        self._successes = Successes(settings.cache_seconds)
        self._decoy = decoy()

    def requestAvatarId(self, credentials: Any) -> Deferred[bytes | tuple[()]]:
        name, password = credentials.username, credentials.password
        try:
            text = name.decode()
        except UnicodeDecodeError:
            text = ""
        # PostgreSQL's text holds no NUL.
        if not text or "\0" in text or not password:
            return fail(UnauthorizedLogin("Authentication failed"))
        return Deferred.fromCoroutine(self._check(text, password))

    async def _check(self, name: str, password: bytes) -> bytes:
        row = await self._threads.run(self._look_up, name)
        verifier, account = row or ("", "")
        shown = name.encode(), verifier.encode(), password
        if row is not None and self._successes.find(time.monotonic(), *shown) is not None:
            return account.encode()
        if not await self._threads.run(self._matches, verifier, password, name):
            raise UnauthorizedLogin("Authentication failed")
        self._successes.add(time.monotonic(), account.encode(), *shown)
        return account.encode()

    def _matches(self, verifier: str, password: bytes, name: str) -> bool:
        if verifier:
            try:
                right = matches(verifier, password)
            except UnknownVerifier as error:
                self.log.error("PostgreSQL: the verifier of {user} cannot be used: {error}",
                               user=name, error=error)
            else:
                self._decoy = decoy(verifier)
                return right
        matches(self._decoy, password)
        return False

    def _look_up(self, name: str) -> tuple[str, str] | None:
        """The verifier and account of *name*, or None."""
        import psycopg  # noqa: PLC0415

        try:
            try:
                row = self._ask(self._idle.pop(), name)
            except IndexError:
                row = self._ask(self._connect(), name)
            except psycopg.OperationalError:
                # It may have been closed while it was idle, by a restart of the server, say.
                row = self._ask(self._connect(), name)
        except psycopg.Error as error:
            self.log.error("PostgreSQL: {error}", error=str(error).strip())
            raise TemporaryFailure("Logins cannot be checked now; try again later") from error
        if row is None or row[0] is None:
            return None
        verifier, account = (*row, None)[:2]
        return str(verifier), name if account is None else str(account)

    def _connect(self) -> Any:
        import psycopg  # noqa: PLC0415

        seconds = max(2, int(self._settings.timeout))
        connection = psycopg.connect(
            self._settings.conninfo, autocommit=True, connect_timeout=seconds,
            tcp_user_timeout=1000 * seconds, application_name="mailsvc")
        connection.read_only = True
        connection.execute(f"SET statement_timeout = {1000 * seconds}")
        return connection

    def _ask(self, connection: Any, name: str) -> tuple[Any, ...] | None:
        try:
            # Outside a transaction block read_only has no effect.
            with connection.transaction():
                rows = connection.execute(self._settings.query, [name]).fetchmany(2)
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)
        if len(rows) > 1:
            self.log.error("PostgreSQL: more than one row for {user}", user=name)
            return None
        return rows[0] if rows else None

    def _close(self) -> None:
        while self._idle:
            self._idle.pop().close()
