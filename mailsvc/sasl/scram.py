"""SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, 7677), and the keys they are checked with.

The server keeps no password, the network carries none, and with -PLUS the proof holds for this TLS
channel alone: who sits between two channels cannot pass it on.

**Keys** are made once, when a password is set or shown by PLAIN, by :func:`scram_keys`; 65,536
iterations take some 30 ms, so not in the reactor's thread.  :func:`encode_keys` writes them as
PostgreSQL does.  The password is prepared as RFC 5802 §2.2 asks, by SASLprep (RFC 4013), because
that is what clients do before they compute theirs.  RFC 8265's OpaqueString, which replaced it and
which the slow hash is made of, folds fewer characters together, so either form of a password gives
the same keys.  What SASLprep prohibits (an emoji: Unicode 3.2 has none) is taken as it is, as
PostgreSQL takes it.

**Channel binding**: tls-exporter (RFC 9266), tls-server-end-point and tls-unique (RFC 5929),
whichever of them the context holds.  A client that could have used -PLUS and says that it was not
offered one when it was ("y") is refused: somebody cut it out of the list (RFC 5802 §6).

**Several passwords** of one name are tried in turn, where their keys share salt and iterations.

**Leniency**: none.  Errors end the exchange by the
protocol's reply, without the optional server-final-message ``e=`` (RFC 5802 §5.1).

Written here because scramp 1.5 asks for keys by a callback that cannot wait, knows one type of
channel binding at a time and not tls-exporter, and refuses authorization identities.  It is the
client in our tests.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import stringprep
import unicodedata

from mailsvc.credentials import ProvenName, ScramKeys
from mailsvc.sasl.context import Context
from mailsvc.sasl.grammar import decode_base64, saslname
from mailsvc.sasl.steps import Challenge, Conversation, Kind, Lookup, Refused, log_in, opening

NAME = "SCRAM-SHA-256"
PLUS = "SCRAM-SHA-256-PLUS"

_SALT_OCTETS = 16
_KEY_OCTETS = 32

# RFC 5802 §7.  A mandatory extension ("m=") fits neither, as it should.
_CLIENT_FIRST = re.compile(
    rb"(?P<header>(?P<flag>n|y|p=(?P<type>[A-Za-z0-9.-]+)),(?:a=(?P<authzid>[^,\0]+))?,)"
    rb"(?P<bare>n=(?P<name>[^,\0]+),r=(?P<nonce>[!-+\--~]+)(?:,[A-Za-z]=[^,\0]+)*)"
)
_CLIENT_FINAL = re.compile(
    rb"(?P<bare>c=(?P<binding>[^,\0]+),r=(?P<nonce>[!-+\--~]+)(?:,[A-Za-z]=[^,\0]+)*)"
    rb",p=(?P<proof>[^,\0]+)"
)
_KEYS = re.compile(r"SCRAM-SHA-256\$([1-9][0-9]{0,8}):([^$:]+)\$([^$:]+):([^$:]+)")

_PROHIBITED = (
    stringprep.in_table_a1,
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)


# ---- keys ----


def scram_keys(password: bytes, iterations: int, salt: bytes | None = None) -> ScramKeys:
    """The keys of *password*, with a new salt unless one is given.  Takes its time."""
    if salt is None:
        salt = secrets.token_bytes(_SALT_OCTETS)
    salted = hashlib.pbkdf2_hmac("sha256", saslprep(password), salt, iterations)
    stored_key = hashlib.sha256(_hmac(salted, b"Client Key")).digest()
    return ScramKeys(iterations, salt, stored_key, _hmac(salted, b"Server Key"))


def decoy_keys(name: str, secret: bytes, iterations: int) -> ScramKeys:
    """Keys for a *name* that has none: always the same salt, and no password fits.

    :param name: folded as account names are, or else its spellings give the decoy away.
    :param secret: of the service, 16 octets or more; kept over restarts and by all processes.
    """
    salt = _hmac(secret, name.encode("utf-8", "surrogatepass"))[:_SALT_OCTETS]
    stored_key, server_key = (secrets.token_bytes(_KEY_OCTETS) for _ in range(2))
    return ScramKeys(iterations, salt, stored_key, server_key)


def encode_keys(keys: ScramKeys) -> str:
    """*keys* as PostgreSQL writes them: ``SCRAM-SHA-256$iterations:salt$stored:server``."""
    salt, stored_key, server_key = (
        base64.b64encode(part).decode() for part in (keys.salt, keys.stored_key, keys.server_key)
    )
    return f"SCRAM-SHA-256${keys.iterations}:{salt}${stored_key}:{server_key}"


def decode_keys(text: str) -> ScramKeys:
    """The keys that :func:`encode_keys` or PostgreSQL wrote.

    :raises ValueError: it is something else, which is not quoted.
    """
    match = _KEYS.fullmatch(text)
    try:
        if match is None:
            raise Refused(Kind.MALFORMED, "of another form")
        salt, stored_key, server_key = (
            decode_base64(part.encode()) for part in match.groups()[1:]
        )
    except Refused:
        raise ValueError("not SCRAM-SHA-256 keys") from None
    if len(stored_key) != _KEY_OCTETS or len(server_key) != _KEY_OCTETS:
        raise ValueError("not SCRAM-SHA-256 keys: they are of another length")
    return ScramKeys(int(match[1]), salt, stored_key, server_key)


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")


def saslprep(password: bytes) -> bytes:
    """*password* by RFC 4013 as a stored string, or as it is when that prohibits it."""
    try:
        text = password.decode()
    except UnicodeDecodeError:
        return password
    # §2.1, §2.2.  U+200B is in both tables; a space is what other implementations make of it.
    mapped = (
        " " if stringprep.in_table_c12(character) else character
        for character in text
        if stringprep.in_table_c12(character) or not stringprep.in_table_b1(character)
    )
    prepared = unicodedata.ucd_3_2_0.normalize("NFKC", "".join(mapped))
    # §2.3, §2.5.
    if any(table(character) for table in _PROHIBITED for character in prepared):
        return password
    # §2.4: RFC 3454 §6.
    right_to_left = [stringprep.in_table_d1(character) for character in prepared]
    if any(right_to_left) and (
        any(map(stringprep.in_table_d2, prepared)) or not (right_to_left[0] and right_to_left[-1])
    ):
        return password
    return prepared.encode() or password


# ---- the mechanisms ----


def converse(context: Context, first: bytes | None, name: str, *, plus: bool) -> Conversation:
    """The mechanism *name*.

    :param plus: whether -PLUS is offered on this connection.
    """
    opened = _CLIENT_FIRST.fullmatch((yield from opening(first)))
    if opened is None:
        raise Refused(Kind.MALFORMED, "not a client-first-message")
    username = saslname(opened["name"])
    authorize_as = saslname(opened["authzid"]) if opened["authzid"] else b""
    binding = opened["header"] + _channel(context, opened, name, plus)

    keys: ScramKeys = yield Lookup(username)
    nonce = opened["nonce"] + _new_nonce()
    salt = base64.b64encode(keys.salt)
    server_first = b"r=%s,s=%s,i=%d" % (nonce, salt, keys.iterations)

    final = _CLIENT_FINAL.fullmatch((yield Challenge(server_first)))
    if final is None or final["nonce"] != nonce:
        raise Refused(Kind.MALFORMED, "not a client-final-message of this exchange")
    proof = decode_base64(final["proof"])
    if len(proof) != _KEY_OCTETS:
        raise Refused(Kind.MALFORMED, "a proof of another length")
    if not hmac.compare_digest(decode_base64(final["binding"]), binding):
        raise Refused(Kind.WRONG, "channel bindings do not match")

    # RFC 5802 §3: whoever knows the key that the stored one is the hash of knew the password.
    auth_message = b",".join((opened["bare"], server_first, final["bare"]))
    proven = [each for each in (keys, *keys.others) if _proves(proof, each, auth_message)]
    if not proven:
        raise Refused(Kind.WRONG, "wrong proof", username)

    # Neither protocol has room for data in its positive reply, hence one more empty response.
    verifier = base64.b64encode(_hmac(proven[0].server_key, auth_message))
    if (yield Challenge(b"v=" + verifier)):
        raise Refused(Kind.MALFORMED, "a response to the server-final-message")
    yield from log_in(ProvenName(username, context.attempt(name)), authorize_as)


def _proves(proof: bytes, keys: ScramKeys, auth_message: bytes) -> bool:
    """Whether *proof* is of the password that *keys* were made of."""
    signature = _hmac(keys.stored_key, auth_message)
    client_key = bytes(a ^ b for a, b in zip(proof, signature, strict=True))
    return hmac.compare_digest(hashlib.sha256(client_key).digest(), keys.stored_key)


def _channel(context: Context, opened: re.Match[bytes], name: str, plus: bool) -> bytes:
    """What the channel adds to the header that is to be proven (RFC 5802 §6)."""
    if (opened["type"] is not None) != (name == PLUS):
        raise Refused(Kind.MALFORMED, "channel binding without -PLUS, or -PLUS without it")
    if opened["flag"] == b"y" and plus:
        raise Refused(Kind.WRONG, "downgrade: the client did not see that -PLUS is offered")
    if opened["type"] is None:
        return b""
    data = context.channel_bindings.get(opened["type"].decode())
    if not data:
        raise Refused(Kind.WRONG, "channel binding of another type")
    return data


def _new_nonce() -> bytes:
    """Our part of the nonce: 144 random bits."""
    return secrets.token_urlsafe(18).encode()
