"""OAUTHBEARER (RFC 7628) and XOAUTH2 (Google's, which came before it).

The client shows a token that an issuer gave it; whoever answers ``LogIn`` asks that issuer.  A
token that is refused, or missing, is answered by a JSON object that says where to get one; the
client acknowledges it, whatever it sends for that, and is then told that it failed.  These
mechanisms have no channel binding; the token itself crosses the network, inside TLS.
"""

from __future__ import annotations

import json
import re

from mailsvc.credentials import Token
from mailsvc.sasl.context import Context
from mailsvc.sasl.grammar import saslname, text
from mailsvc.sasl.steps import Challenge, Conversation, Kind, LogIn, Refused, opening

# RFC 7628 §3.1.  The flag "y" is true, for there is no -PLUS; "p" cannot be obeyed.
_OAUTHBEARER = re.compile(
    rb"[ny],(?:a=(?P<name>[^,\0\x01]+))?,\x01(?P<pairs>(?:[A-Za-z]+=[\t\n\r -~]*\x01)*)\x01"
)
_XOAUTH2 = re.compile(rb"user=(?P<name>[^\0\x01]+)\x01auth=(?P<auth>[\t -~]*)\x01\x01")
# RFC 6750 §2.1.
_BEARER = re.compile(rb"(?i:bearer) +([A-Za-z0-9._~+/-]+=*)")


def oauthbearer(context: Context, first: bytes | None) -> Conversation:
    """OAUTHBEARER.  Without a name the token alone says who it is."""
    match = _OAUTHBEARER.fullmatch((yield from opening(first)))
    if match is None:
        raise Refused(Kind.MALFORMED, "not an OAUTHBEARER message")
    name = saslname(match["name"]) if match["name"] else b""
    pairs = [pair.partition(b"=")[::2] for pair in match["pairs"].split(b"\x01")[:-1]]
    values = dict(pairs)
    if len(values) < len(pairs):
        raise Refused(Kind.MALFORMED, "a key that comes twice")
    error = {"status": "invalid_token"}  # RFC 7628 §3.2.2
    yield from _show(context, "OAUTHBEARER", name, values.get(b"auth", b""), error)


def xoauth2(context: Context, first: bytes | None) -> Conversation:
    """XOAUTH2."""
    match = _XOAUTH2.fullmatch((yield from opening(first)))
    if match is None:
        raise Refused(Kind.MALFORMED, "not an XOAUTH2 message")
    error = {"status": "401", "schemes": "bearer"}
    yield from _show(context, "XOAUTH2", text(match["name"]), match["auth"], error)


def _show(
    context: Context, mechanism: str, name: bytes, auth: bytes, error: dict[str, str]
) -> Conversation:
    bearer = _BEARER.fullmatch(auth)
    if bearer is not None:
        token = Token(name, bearer[1].decode(), context.attempt(mechanism))
        if (yield LogIn(token)):
            return
    settings = context.settings
    if settings.oauth_scope:
        error["scope"] = settings.oauth_scope
    if settings.openid_configuration:
        error["openid-configuration"] = settings.openid_configuration
    yield Challenge(json.dumps(error, separators=(",", ":")).encode())
    raise Refused(Kind.WRONG, "wrong token" if bearer else "no bearer token")
