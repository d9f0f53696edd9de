"""The mechanisms: a table, and those of them that are short.

A mechanism is a row in :data:`MECHANISMS`: a generator function (``mailsvc.sasl.steps`` says what
it yields) and what it needs of the connection.  It is offered where the operator lists it, the
owner can answer its questions, and the connection has what it needs and is private.  That holds for
SCRAM and CRAM-MD5 as well, although they send no password: whoever listens can try passwords on
what was said, at leisure.

Names and passwords are UTF-8, at least one octet long, without NUL, whatever the mechanism; so says
RFC 4616 §2 of PLAIN, and so it is safe to hand them on.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from mailsvc.credentials import Digest, Password, ProvenName
from mailsvc.sasl import gssapi, oauth, scram
from mailsvc.sasl.context import Context
from mailsvc.sasl.grammar import text
from mailsvc.sasl.steps import Challenge, Conversation, Kind, Refused, log_in, opening

# RFC 2195 §2.
_CRAM_RESPONSE = re.compile(rb"(?P<name>.+) (?P<digest>[0-9a-f]{32})", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Mechanism:
    """A row of the table.

    :ivar converse: given the context and the client's first message, or None if it sent none yet.
    :ivar possible: whether the connection has what the mechanism needs.
    """

    converse: Callable[[Context, bytes | None], Conversation]
    possible: Callable[[Context], bool] = lambda context: True


def plain(context: Context, first: bytes | None) -> Conversation:
    """PLAIN (RFC 4616)."""
    parts = (yield from opening(first)).split(b"\0")
    if len(parts) != 3:
        raise Refused(Kind.MALFORMED, "not three parts")
    authorize_as, username, password = parts
    if authorize_as:
        text(authorize_as)
    credentials = Password(text(username), text(password), context.attempt("PLAIN"))
    yield from log_in(credentials, authorize_as)


def login(context: Context, first: bytes | None) -> Conversation:
    """LOGIN (draft-murchison-sasl-login): obsolete, and all that some printers know.

    An initial response is the name.
    """
    username = text(first if first is not None else (yield Challenge(b"Username:")))
    password = text((yield Challenge(b"Password:")))
    yield from log_in(Password(username, password, context.attempt("LOGIN")))


def cram_md5(context: Context, first: bytes | None) -> Conversation:
    """CRAM-MD5 (RFC 2195), for accounts whose secret can be recovered."""
    if first is not None:
        raise Refused(Kind.MALFORMED, "an initial response where the server begins")
    challenge = _new_message_id(context.hostname)
    match = _CRAM_RESPONSE.fullmatch((yield Challenge(challenge)))
    if match is None:
        raise Refused(Kind.MALFORMED, "not a name and a digest")

    def digest_of(secret: bytes) -> bytes:
        return hmac.new(secret, challenge, "md5").hexdigest().encode()

    attempt = context.attempt("CRAM-MD5")
    yield from log_in(Digest(text(match["name"]), match["digest"], digest_of, attempt))


def external(context: Context, first: bytes | None) -> Conversation:
    """EXTERNAL (RFC 4422, Appendix A): whom the client's certificate names.

    Where it names several, the one that the client asks for, or else the first.
    """
    wanted = yield from opening(first)
    if wanted:
        text(wanted)
    names = [name.encode() for name in context.certificate_names]
    # Any of them is proven, so upper or lower case may not matter in choosing.
    name = next((name for name in names if name.lower() == wanted.lower()), None)
    if name is not None:
        wanted = b""
    yield from log_in(ProvenName(name or names[0], context.attempt("EXTERNAL")), wanted)


def scram_sha_256(context: Context, first: bytes | None) -> Conversation:
    """SCRAM-SHA-256 (RFC 7677)."""
    return scram.converse(context, first, scram.NAME, plus=scram.PLUS in offered(context))


def scram_sha_256_plus(context: Context, first: bytes | None) -> Conversation:
    """SCRAM-SHA-256-PLUS: bound to the TLS channel."""
    return scram.converse(context, first, scram.PLUS, plus=True)


MECHANISMS = {
    "PLAIN": Mechanism(plain),
    "LOGIN": Mechanism(login),
    scram.NAME: Mechanism(scram_sha_256),
    scram.PLUS: Mechanism(scram_sha_256_plus, lambda context: bool(context.channel_bindings)),
    "EXTERNAL": Mechanism(external, lambda context: bool(context.certificate_names)),
    "GSSAPI": Mechanism(gssapi.gssapi, gssapi.possible),
    "OAUTHBEARER": Mechanism(oauth.oauthbearer),
    "XOAUTH2": Mechanism(oauth.xoauth2),
    "CRAM-MD5": Mechanism(cram_md5),
}


def offered(context: Context) -> list[str]:
    """What EHLO's AUTH and CAPA's SASL list, in the operator's order; nothing in the clear."""
    if not context.private:
        return []
    return [name for name in enabled(context) if MECHANISMS[name].possible(context)]


def enabled(context: Context) -> list[str]:
    """What would be offered if the connection were private and had all that is needed."""
    return [name for name in context.settings.mechanisms if name in context.usable]


def _new_message_id(hostname: str) -> bytes:
    """A challenge in the form of RFC 2195 §2; random enough to need no time of day."""
    return f"<{secrets.token_hex(16)}@{hostname}>".encode()
