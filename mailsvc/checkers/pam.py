"""``--auth pam:``: passwords of system users, or whatever else a PAM service asks (pam(7)).

The service is a file in ``/etc/pam.d``; its ``auth`` and ``account`` lines decide.  It is told the
client's address (PAM_RHOST), and opens no session.  Each conversation runs in a thread of its own
among so many, because modules block: pam_unix waits two seconds after a wrong password.

**Limits.**  Modules run in this process, as its user: pam_unix then checks the password of that
user only, unless it is root or in the group ``shadow``.  A module that never answers keeps its
thread.

The package pamela is a thin layer of ctypes over libpam, and lets the conversation be made step by
step; python-pam, which cannot, reports an unknown service as a wrong password.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from zope.interface import implementer

from mailsvc.checkers.arguments import BadArguments, contents, read, require
from mailsvc.checkers.bounds import Threads
from mailsvc.errors import TemporaryFailure
from mailsvc.settings import at_least, setting

HELP = """\
Passwords that a PAM service checks, such as those of system users.
Example: pam:mailsvc:domain=example.org, with /etc/pam.d/mailsvc holding
    auth    required  pam_unix.so
    account required  pam_unix.so
"""

# What _pam_types.h calls PERM_DENIED, AUTH_ERR, CRED_INSUFFICIENT, USER_UNKNOWN, MAXTRIES,
# NEW_AUTHTOK_REQD, ACCT_EXPIRED, CRED_EXPIRED and AUTHTOK_EXPIRED: an answer, and it is no.
_REFUSALS = {6, 7, 8, 10, 11, 12, 13, 16, 27}


def _service(value: str) -> str | None:
    # libpam takes it for the name of a file.
    return None if value and "/" not in value and "\0" not in value and value[0] != "." else (
        "the name of a file in /etc/pam.d")


@dataclass(frozen=True, slots=True)
class Settings:
    """What may stand behind ``pam:``."""

    service: str = setting("", "The PAM service: the name of a file in /etc/pam.d; may stand "
                           "without its key.", check=_service)
    domain: str = setting(
        "", "The domain that PAM's users are of: a login is asked about without it, and one of "
        "another domain refused.  Empty to ask about login names as they are.")
    timeout: float = setting(30, "How long a login may take.", unit="seconds", check=at_least(0.1))
    threads: int = setting(4, "Conversations at a time.", check=at_least(1))
    waiting: int = setting(100, "Logins that may wait for a thread.", check=at_least(0))


def checker(arguments: str) -> ICredentialsChecker:
    """The checker that *arguments* describe.

    :raises BadArguments: they cannot be used.
    """
    require("pamela", "pam")
    settings = read(Settings, arguments, first="service")
    # libpam would use the service "other" instead, and refuse everybody.
    _readable(settings.service)
    return PAMChecker(settings)


def _readable(service: str) -> None:
    problems = []
    for directory in "/etc/pam.d", "/usr/lib/pam.d":
        try:
            contents("service", f"{directory}/{service}")
            return
        except BadArguments as error:
            problems.append(error)
    raise problems[0]


@implementer(ICredentialsChecker)
class PAMChecker:
    """Asks PAM; see the module."""

    credentialInterfaces = (IUsernamePassword,)
    log = Logger()

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._threads = Threads("pam", settings.threads, settings.waiting, settings.timeout)

    def requestAvatarId(self, credentials: Any) -> Deferred[bytes | tuple[()]]:
        name, password = credentials.username, credentials.password
        user = self._user(name)
        # Empty passwords are what "nullok" lets pass; NUL would end a string for libpam.
        if not user or not password or b"\0" in user + password:
            return fail(UnauthorizedLogin("Authentication failed"))
        attempt = getattr(credentials, "attempt", None)
        client = attempt.client if attempt else ""
        return self._threads.run(self._converse, user, password, client).addCallback(
            lambda _: name)

    def _user(self, name: bytes) -> bytes:
        """Whom PAM is asked about, or b"" for nobody."""
        if not self._settings.domain:
            return name
        user, at, domain = name.rpartition(b"@")
        if not at:
            return name
        return user if domain.lower() == self._settings.domain.lower().encode() else b""

    def _converse(self, user: bytes, password: bytes, client: str) -> None:
        import pamela  # noqa: PLC0415

        answer = pamela.new_simple_password_conv((password,), None)  # kept while libpam calls it
        try:
            handle = pamela.pam_start(self._settings.service, user, conv_func=answer)
            if client:
                handle.set_item(pamela.PAM_RHOST, client)
            code = pamela.PAM_AUTHENTICATE(handle, 0) or pamela.PAM_ACCT_MGMT(handle, 0)
            pamela.PAM_END(handle, code)
        except pamela.PAMError as error:
            code = error.errno
        if code in _REFUSALS:
            raise UnauthorizedLogin("Authentication failed")
        if code != 0:
            self.log.error("PAM: the service {service} answered {code}: {text}", code=code,
                           service=self._settings.service,
                           text=pamela.pam_strerror(pamela.PamHandle(), code))
            raise TemporaryFailure("Logins cannot be checked now; try again later")
