"""``--auth ldap:``: passwords that an LDAP server keeps, checked by binding with them (RFC 4513).

For each login a connection is made; with the service's own bind, or none, the entry of the login
name is searched for, and then the connection bound as that entry with the password.

**Promises.**  The login name is put into the parsed filter as a value, never into its text, so no
name can mean more than itself.  An empty password is refused here: to a server it would be an
unauthenticated bind, which succeeds (RFC 4513 §5.1.2).  A name without an entry is followed by a
bind all the same, as an entry that does not exist: the answer has the same words and takes as many
round trips.  TLS is verified against the host's name, and nothing that came before it is taken for
an answer within it.

**Limits.**  Referrals are not followed.  A server's own cost of checking a password, which it does
not pay for entries that do not exist, shows in the time.

ldaptor's protocol works in the reactor, without threads, and leaves TLS to Twisted; ldap3, which
would take threads, is as old and matches certificates by code of its own.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Any

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from zope.interface import implementer

from mailsvc.checkers.arguments import BadArguments, read, require, secret
from mailsvc.checkers.bounds import Turns
from mailsvc.checkers.trust import authorities
from mailsvc.errors import TemporaryFailure
from mailsvc.settings import OneOf, at_least, setting

HELP = """\
Passwords of an LDAP server, checked by binding as the entry of the login name.
Example: ldap:host=ldap.example.org:base=ou=people,dc=example,dc=org:filter=(mail=%s)
"""

# RFC 4511, Appendix A.
_SUCCESS, _INAPPROPRIATE_AUTHENTICATION, _INVALID_CREDENTIALS = 0, 48, 49
_SIZE_LIMIT_EXCEEDED = 4

_PLACEHOLDER = re.compile(rb"%[sud]")


def _given(what: str) -> Any:
    return lambda value: None if value else what


@dataclass(frozen=True, slots=True)
class Settings:
    """What may stand behind ``ldap:``."""

    host: str = setting("", "The server's name, which its certificate has to be for.",
                        check=_given("the name of the LDAP server"))
    base: str = setting("", "The DN below which people's entries are.",
                        check=_given("a DN such as ou=people,dc=example,dc=org"))
    filter: str = setting(
        "(mail=%s)", "Which entry is the login name's: %s is the whole name, %u what is before "
        "its @, %d what is behind it.")
    account: str = setting(
        "", "The attribute that holds the name of the account; empty for the login name itself.")
    tls: str = setting("starttls", "starttls, ldaps, or none.",
                       check=OneOf("starttls", "ldaps", "none"))
    ca: str = setting("", "A PEM file of the authorities to trust; empty for the system's.")
    port: int = setting(0, "The port; 0 for 389, or 636 with ldaps.", check=at_least(0))
    bind_dn: str = setting("", "The DN to search as; empty to search without a bind.")
    password_file: str = setting("", "A file that holds the password of bind_dn, in one line.")
    timeout: float = setting(10, "How long a login may take.", unit="seconds", check=at_least(0.1))
    connections: int = setting(8, "Connections at a time.", check=at_least(1))
    waiting: int = setting(100, "Logins that may wait for one.", check=at_least(0))


def checker(arguments: str) -> ICredentialsChecker:
    """The checker that *arguments* describe.

    :raises BadArguments: they cannot be used.
    """
    require("ldaptor", "ldap")
    return LDAPChecker(read(Settings, arguments))


@implementer(ICredentialsChecker)
class LDAPChecker:
    """Asks an LDAP server; see the module."""

    credentialInterfaces = (IUsernamePassword,)
    log = Logger()

    def __init__(self, settings: Settings) -> None:
        if bool(settings.bind_dn) != bool(settings.password_file):
            raise BadArguments("bind_dn and password_file: expected both or neither")
        self._settings = settings
        self._password = (secret("password_file", settings.password_file).encode()
                          if settings.password_file else b"")
        self._filter = _parsed(settings.filter)
        self._authorities = authorities("ca", settings.ca)
        self._turns = Turns(settings.connections, settings.waiting, settings.timeout)

    def requestAvatarId(self, credentials: Any) -> Deferred[bytes | tuple[()]]:
        return Deferred.fromCoroutine(self._check(credentials.username, credentials.password))

    async def _check(self, name: bytes, password: bytes) -> bytes:
        # RFC 4511 has names in UTF-8; NUL would end a string for some servers.
        if not name or not password or b"\0" in name + password or not _is_utf8(name):
            raise UnauthorizedLogin("Authentication failed")
        try:
            return await self._turns.run(lambda: self._ask(name, password))
        except TemporaryFailure:
            self.log.warn("LDAP: no answer from {host} in time", host=self._settings.host)
            raise
        except UnauthorizedLogin:
            raise
        except Exception as error:
            self.log.error("LDAP: {host}: {error}", host=self._settings.host,
                           error=str(error) or type(error).__name__)
            raise TemporaryFailure("Logins cannot be checked now; try again later") from error

    async def _ask(self, name: bytes, password: bytes) -> bytes:
        client = await self._connect()
        try:
            if self._settings.bind_dn:
                code = await self._bind(client, self._settings.bind_dn.encode(), self._password)
                if code != _SUCCESS:
                    raise ConnectionError(f"the bind as {self._settings.bind_dn} was refused with "
                                          f"result code {code}")
            found = await self._search(client, name)
            # The entry that does not exist makes the round trip that any other does.
            nobody = f"cn={secrets.token_hex(8)},{self._settings.base}".encode()
            entry, account = found or (nobody, b"")
            code = await self._bind(client, entry, password)
            if code not in {_SUCCESS, _INVALID_CREDENTIALS, _INAPPROPRIATE_AUTHENTICATION}:
                if found is None:
                    code = _INVALID_CREDENTIALS
                else:
                    raise ConnectionError(f"a bind as an entry gave result code {code}")
            if code != _SUCCESS or found is None:
                raise UnauthorizedLogin("Authentication failed")
            return account
        finally:
            client.transport.abortConnection()

    async def _connect(self) -> Any:
        from ldaptor.protocols import pureldap  # noqa: PLC0415
        from ldaptor.protocols.ldap.ldapclient import LDAPClient  # noqa: PLC0415
        from twisted.internet import reactor  # noqa: PLC0415
        from twisted.internet.endpoints import (  # noqa: PLC0415
            HostnameEndpoint,
            connectProtocol,
            wrapClientTLS,
        )
        from twisted.internet.ssl import optionsForClientTLS  # noqa: PLC0415

        settings = self._settings
        options = optionsForClientTLS(settings.host, self._authorities)
        endpoint: Any = HostnameEndpoint(
            reactor, settings.host, settings.port or (636 if settings.tls == "ldaps" else 389),
            timeout=settings.timeout)
        if settings.tls == "ldaps":
            endpoint = wrapClientTLS(options, endpoint)
        client = await connectProtocol(endpoint, LDAPClient())
        if settings.tls == "starttls":
            answer = await client.send(pureldap.LDAPStartTLSRequest())
            # What came along in the clear could be made an answer of, inside.
            if answer.resultCode != _SUCCESS or client.buffer:
                client.transport.abortConnection()
                raise ConnectionError(f"StartTLS gave result code {answer.resultCode}")
            client.transport.startTLS(options)
        return client

    async def _bind(self, client: Any, name: bytes, password: bytes) -> int:
        from ldaptor.protocols import pureldap  # noqa: PLC0415

        assert password
        answer = await client.send(pureldap.LDAPBindRequest(dn=name, auth=password))
        return answer.resultCode

    async def _search(self, client: Any, name: bytes) -> tuple[bytes, bytes] | None:
        """The DN and the account of the one entry that *name* has, or None."""
        from ldaptor.protocols import pureldap  # noqa: PLC0415

        settings = self._settings
        entries: list[Any] = []

        def take(answer: Any) -> bool:
            if isinstance(answer, pureldap.LDAPSearchResultEntry):
                entries.append(answer)
            done = isinstance(answer, pureldap.LDAPSearchResultDone)
            if done:
                finished.callback(answer.resultCode)
            return done

        request = pureldap.LDAPSearchRequest(
            baseObject=settings.base, sizeLimit=2, timeLimit=max(1, int(settings.timeout)),
            filter=_filled(self._filter, name), attributes=[settings.account or "1.1"])
        finished: Deferred[int] = client.send_multiResponse(request, take)
        code = await finished
        if code not in {_SUCCESS, _SIZE_LIMIT_EXCEEDED}:
            raise ConnectionError(f"the search in {settings.base} gave result code {code}")
        if len(entries) > 1:
            self.log.error("LDAP: more than one entry fits the filter {filter} for {user}",
                           filter=settings.filter, user=name.decode())
        if len(entries) != 1:
            return None
        [entry] = entries
        if not settings.account:
            return entry.objectName, name
        values = [value for _, values in entry.attributes for value in values]
        if len(values) != 1:
            self.log.error("LDAP: expected one value of {attribute} in the entry {entry}",
                           attribute=settings.account, entry=entry.objectName.decode())
            return None
        return entry.objectName, values[0]


def _parsed(text: str) -> Any:
    from ldaptor.ldapfilter import InvalidLDAPFilter, parseFilter  # noqa: PLC0415

    expected = ("expected a filter of RFC 4515 in which %s, %u or %d is the value, or part of the "
                "value, of a comparison: (&(objectClass=person)(mail=%s))")
    try:
        parsed = parseFilter(text)
    except InvalidLDAPFilter as error:
        raise BadArguments(f"filter={text}: {expected} ({error.msg} at {error.loc})") from error
    values = list(_values(parsed))
    if not values or len(values) != len(_PLACEHOLDER.findall(text.encode())):
        raise BadArguments(f"filter={text}: {expected}")
    return parsed


def _values(node: Any) -> list[bytes]:
    """The placeholders that :func:`_filled` fills in."""
    found: list[bytes] = []

    def note(match: re.Match[bytes]) -> bytes:
        found.append(match[0])
        return match[0]

    _walk(node, note)
    return found


def _filled(node: Any, name: bytes) -> Any:
    """The filter with the login name in the places of its placeholders."""
    local_part, _, domain = name.rpartition(b"@") if b"@" in name else (name, b"", b"")
    parts = {b"%s": name, b"%u": local_part, b"%d": domain}
    return _walk(node, lambda match: parts[match[0]])


def _walk(node: Any, replace: Any) -> Any:
    from ldaptor.protocols import pureldap  # noqa: PLC0415

    match node:
        case pureldap.LDAPFilterSet():
            return type(node)([_walk(each, replace) for each in node])
        case pureldap.LDAPFilter_not():
            return type(node)(value=_walk(node.value, replace))
        case pureldap.LDAPAttributeValueAssertion():
            value = _PLACEHOLDER.sub(replace, node.assertionValue.value.encode())
            return type(node)(attributeDesc=node.attributeDesc,
                              assertionValue=pureldap.LDAPAssertionValue(value))
    return node


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True
