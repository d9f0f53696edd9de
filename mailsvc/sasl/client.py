"""One SASL exchange, seen from the client: challenges in, responses out; no I/O (RFC 4422).

The counterpart of :mod:`mailsvc.sasl.exchange`, for SMTP AUTH (RFC 4954) and POP3 AUTH (RFC 5034).
:func:`choose` picks the best mechanism of those that a server offers; a :class:`ClientExchange`
carries it out.

**What is best.**  The one that gives away least: SCRAM-SHA-256-PLUS proves the password, has the
server prove that it knows it, and binds both to this TLS channel; SCRAM-SHA-256 lacks the last;
CRAM-MD5 hides the password; PLAIN and LOGIN send it, OAUTHBEARER and XOAUTH2 a token, and all four
of them only where the caller says that the channel is private.  EXTERNAL has no secret and is
chosen only when there is none to give.

**Promises.**  A server that claims success before SCRAM has shown that it knows the password is not
believed (RFC 5802 §5).  A challenge that asks for more than 1,000,000 iterations, or fewer than
the 4,096 of RFC 7677 §4, ends the exchange.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field

from mailsvc.sasl.scram import NAME as SCRAM
from mailsvc.sasl.scram import PLUS, saslprep

_ITERATIONS = range(4_096, 1_000_001)
_SERVER_FIRST = re.compile(rb"r=(?P<nonce>[!-+\--~]+),s=(?P<salt>[^,\0]+),i=(?P<i>[1-9][0-9]{0,8})"
                           rb"(?:,[A-Za-z]=[^,\0]+)*")


class Abandoned(Exception):
    """The exchange cannot go on; the text says why, without secrets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """What a client can log in with.

    :ivar authorize_as: whom to act as, if that is another.
    :ivar host: and *port*, where the connection leads; OAUTHBEARER tells them (RFC 7628 §3.1).
    :ivar channel_bindings: the channel's data by type, as in :class:`mailsvc.sasl.context.Context`.
    """

    name: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    authorize_as: str = ""
    host: str = ""
    port: int = 0
    channel_bindings: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for text in (self.name, self.password, self.token, self.authorize_as):
            if "\0" in text:
                raise ValueError("a name or secret holds NUL; leave it out")


#: Yields responses, None for "you begin"; is sent challenges, and None when the server is content.
Responses = Generator[bytes | None, bytes | None, None]


def _plain(login: Login, offered: frozenset[str]) -> Responses:
    """RFC 4616."""
    yield from _nothing_more((yield "\0".join(
        (login.authorize_as, login.name, login.password)).encode()))


def _login(login: Login, offered: frozenset[str]) -> Responses:
    """draft-murchison-sasl-login: what the prompts say differs, and does not matter."""
    yield None
    yield login.name.encode()
    yield from _nothing_more((yield login.password.encode()))


def _cram_md5(login: Login, offered: frozenset[str]) -> Responses:
    """RFC 2195."""
    challenge = yield None
    if not challenge:
        raise Abandoned("CRAM-MD5 without a challenge")
    digest = hmac.new(login.password.encode(), challenge, "md5").hexdigest()
    yield from _nothing_more((yield f"{login.name} {digest}".encode()))


def _external(login: Login, offered: frozenset[str]) -> Responses:
    """RFC 4422, appendix A: the name is whom to act as, if any."""
    yield from _nothing_more((yield (login.authorize_as or login.name).encode()))


def _xoauth2(login: Login, offered: frozenset[str]) -> Responses:
    error = yield f"user={login.name}\x01auth=Bearer {login.token}\x01\x01".encode()
    if error is not None:
        # What is wrong, in JSON.  An empty response, and then the refusal follows.
        yield from _nothing_more((yield b""))


def _oauthbearer(login: Login, offered: frozenset[str]) -> Responses:
    """RFC 7628 §3.1, §3.2.3."""
    # The name is told as the identity to act as: without it many servers know nobody.
    error = yield (f"n,{_authzid(login.authorize_as or login.name)},\x01host={login.host}"
                   f"\x01port={login.port}\x01auth=Bearer {login.token}\x01\x01").encode()
    if error is not None:
        yield from _nothing_more((yield b"\x01"))


def _scram(login: Login, offered: frozenset[str]) -> Responses:
    """RFC 5802, without channel binding."""
    # "y" tells the server that we could bind and it did not offer to, so that nobody can have cut
    # -PLUS out of its list (§6).
    able = bool(login.channel_bindings) and PLUS not in offered
    return _scram_exchange(login, "y" if able else "n", b"")


def _scram_plus(login: Login, offered: frozenset[str]) -> Responses:
    """With channel binding: RFC 9266 in TLS 1.3, tls-unique before (RFC 5929)."""
    kind = next(kind for kind in ("tls-exporter", "tls-unique", "tls-server-end-point")
                if login.channel_bindings.get(kind))
    return _scram_exchange(login, f"p={kind}", login.channel_bindings[kind])


def _scram_exchange(login: Login, flag: str, binding: bytes) -> Responses:
    header = f"{flag},{_authzid(login.authorize_as)},".encode()
    nonce = secrets.token_urlsafe(18).encode()
    name = saslprep(login.name.encode()).replace(b"=", b"=3D").replace(b",", b"=2C")
    bare = b"n=" + name + b",r=" + nonce
    server_first = yield header + bare
    if server_first is None:
        raise Abandoned("SCRAM: the server did not prove that it knows the password")
    match = _SERVER_FIRST.fullmatch(server_first)
    if match is None or not match["nonce"].startswith(nonce) or match["nonce"] == nonce:
        raise Abandoned("SCRAM: not a server-first-message of this exchange")
    iterations = int(match["i"])
    if iterations not in _ITERATIONS:
        raise Abandoned(f"SCRAM: the server asks for {iterations} iterations; {_ITERATIONS[0]} to "
                        f"{_ITERATIONS[-1]} are taken")
    salted = hashlib.pbkdf2_hmac("sha256", saslprep(login.password.encode()),
                                 _decode(match["salt"]), iterations)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    without_proof = b"c=" + base64.b64encode(header + binding) + b",r=" + match["nonce"]
    auth_message = b",".join((bare, server_first, without_proof))
    signature = hmac.digest(hashlib.sha256(client_key).digest(), auth_message, "sha256")
    proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
    server_final = yield without_proof + b",p=" + base64.b64encode(proof)
    if server_final is None:
        raise Abandoned("SCRAM: the server did not prove that it knows the password")
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    verifier = b"v=" + base64.b64encode(hmac.digest(server_key, auth_message, "sha256"))
    if not hmac.compare_digest(server_final.partition(b",")[0], verifier):
        raise Abandoned("SCRAM: the server does not know the password; it is not who it should be")
    yield from _nothing_more((yield b""))


def _authzid(name: str) -> str:
    return "a=" + name.replace("=", "=3D").replace(",", "=2C") if name else ""


def _nothing_more(challenge: bytes | None) -> Responses:
    """The end, unless the server asks on."""
    if challenge is not None:
        raise Abandoned("the server asks for more than the mechanism has")
    return
    yield


@dataclass(frozen=True, slots=True)
class _Mechanism:
    """A row of the table.

    :ivar private: whether it shows a secret to whoever listens.
    """

    converse: Callable[[Login, frozenset[str]], Responses]
    private: bool
    possible: Callable[[Login], bool]


#: Best first.
MECHANISMS = {
    PLUS: _Mechanism(_scram_plus, False,
                     lambda login: bool(login.password and any(login.channel_bindings.values()))),
    SCRAM: _Mechanism(_scram, False, lambda login: bool(login.password)),
    "CRAM-MD5": _Mechanism(_cram_md5, False,
                           lambda login: bool(login.password) and not login.authorize_as),
    "PLAIN": _Mechanism(_plain, True, lambda login: bool(login.password)),
    "LOGIN": _Mechanism(_login, True,
                        lambda login: bool(login.password) and not login.authorize_as),
    "OAUTHBEARER": _Mechanism(_oauthbearer, True, lambda login: bool(login.token)),
    "XOAUTH2": _Mechanism(_xoauth2, True,
                          lambda login: bool(login.token) and not login.authorize_as),
    "EXTERNAL": _Mechanism(_external, False,
                           lambda login: not login.password and not login.token),
}


def choose(offered: Iterable[str], login: Login, *, private: bool, wanted: str = "") -> str:
    """The mechanism to use.

    :param offered: what the server offers.
    :param private: whether a secret may be sent.
    :param wanted: the one to use, or "" for the best.
    :raises Abandoned: none can be used; the text says why.
    """
    names = frozenset(name.upper() for name in offered)
    wanted = wanted.upper()
    if wanted and wanted not in MECHANISMS:
        raise Abandoned(f"{wanted}: not a mechanism known here; there are {', '.join(MECHANISMS)}")
    if wanted and wanted not in names:
        raise Abandoned(f"the server does not offer {wanted}, but {_listed(names)}")
    fitting = [name for name, row in MECHANISMS.items()
               if name in names and wanted in ("", name) and row.possible(login)]
    if not fitting:
        raise Abandoned(f"the server offers {_listed(names)}; for none of these there is "
                        "what it takes (a password, a token, or a client certificate)")
    usable = [name for name in fitting if private or not MECHANISMS[name].private]
    if not usable:
        raise Abandoned(f"{fitting[0]} would send the secret unencrypted; use TLS")
    return usable[0]


def _listed(names: frozenset[str]) -> str:
    return " ".join(sorted(names)) or "no mechanism"


class ClientExchange:
    """One exchange by *mechanism*.

    :param offered: all that the server offers.
    :ivar initial_response: in base64, "=" if empty; None if the server has to begin.
    :ivar abandoned: why it was called off, or "".
    """

    def __init__(self, mechanism: str, login: Login, offered: Iterable[str] = ()) -> None:
        self.mechanism = mechanism.upper()
        self.abandoned = ""
        self._responses = MECHANISMS[self.mechanism].converse(
            login, frozenset(name.upper() for name in offered))
        first = next(self._responses)
        self.initial_response = None if first is None else _encode(first) or "="
        #: The initial response, if it has to wait for the server's leave.
        self._waiting = first

    def initial_sent(self) -> None:
        """The initial response went out with the command."""
        self._waiting = None

    def respond(self, challenge: str) -> str:
        """The response to a challenge, both in base64.

        :raises Abandoned: the exchange is over: cancel it.
        """
        if self._waiting is not None:
            # RFC 4954 §4: an empty challenge asks for it.
            initial, self._waiting = self._waiting, None
            return _encode(initial)
        try:
            response = self._responses.send(_decode(challenge.strip().encode()))
        except StopIteration:
            raise Abandoned("the server asks for more than the mechanism has") from None
        return _encode(response or b"")

    def succeeded(self) -> None:
        """The server says that we are logged in.

        :raises Abandoned: it cannot say so yet.
        """
        try:
            self._responses.send(None)
        except StopIteration:
            return
        raise Abandoned(f"{self.mechanism}: the server claims success amid the exchange")


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decode(text: bytes) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise Abandoned("a challenge that is not base64") from None
