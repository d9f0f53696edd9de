"""GSSAPI (RFC 4752): Kerberos 5, by the package gssapi over MIT's or Heimdal's library.

The server's keys are in a keytab, for ``smtp/HOST`` and ``pop/HOST``; one for another service is
not taken.  Who logs in is a principal of one component, ``alice@EXAMPLE.ORG``, of a realm that the
operator listed, and means the account alice in the domain that is listed with it.  No security
layer is offered: TLS is that.

**Limits.**  A ticket must fit in a line of the exchange, some 9,000 octets.  The library keeps
record of what was shown already (``KRB5RCACHENAME``) in a file, which it locks while it looks.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from mailsvc.credentials import ProvenName
from mailsvc.sasl.context import Context
from mailsvc.sasl.grammar import text
from mailsvc.sasl.steps import Challenge, Conversation, Kind, Refused, log_in, opening

# RFC 4752 §3.3: one octet of security layers, of which "none" is 1, and three of a size, which has
# to be 0 without a layer.
_NO_LAYER = b"\1\0\0\0"


def possible(context: Context) -> bool:
    """Whether there is a keytab, a realm, and the package."""
    settings = context.settings
    return (bool(settings.gssapi_keytab) and bool(settings.gssapi_realms)
            and find_spec("gssapi") is not None)


def gssapi(context: Context, first: bytes | None) -> Conversation:
    """GSSAPI, the server's side (RFC 4752 §3.1)."""
    import gssapi  # noqa: PLC0415 - an extra

    token = yield from opening(first)
    try:
        security = gssapi.SecurityContext(usage="accept", creds=gssapi.Credentials(
            usage="accept", mechs=[gssapi.MechType.kerberos],
            store={"keytab": context.settings.gssapi_keytab}))
        while True:
            answer = security.step(token)
            if security.complete and not answer:
                break
            token = yield Challenge(answer or b"")
            if security.complete:
                if token:
                    raise Refused(Kind.MALFORMED, "a token too many")
                break
        shown = yield Challenge(security.wrap(_NO_LAYER, False).message)
        chosen: bytes = security.unwrap(shown).message
        principal, service = str(security.initiator_name), str(security.target_name)
    except gssapi.exceptions.GSSError as error:
        raise Refused(Kind.WRONG, f"GSSAPI: {_first_line(error)}") from None
    if not service.startswith(context.service + "/"):
        raise Refused(Kind.WRONG, f"GSSAPI: a ticket for {service}")
    if chosen[:4] != _NO_LAYER:
        raise Refused(Kind.MALFORMED, "a security layer that was not offered")
    authorize_as = chosen[4:]
    if authorize_as:
        text(authorize_as)
    name = _login_name(context, principal)
    yield from log_in(ProvenName(name, context.attempt("GSSAPI")), authorize_as)


def _login_name(context: Context, principal: str) -> bytes:
    name, _, realm = principal.rpartition("@")
    domain = context.settings.gssapi_realms.get(realm)
    # A backslash quotes what would otherwise part components, or name and realm.
    if domain is None or not name or set(name) & set("/@\\"):
        raise Refused(Kind.WRONG, f"GSSAPI: {principal!r} is nobody here")
    return text(f"{name}@{domain}".encode())


def _first_line(error: Any) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
