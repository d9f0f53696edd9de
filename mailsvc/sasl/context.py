"""What a mechanism may know of the connection it works on, and the [auth] section."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mailsvc.credentials import Attempt
from mailsvc.settings import setting

#: The mechanisms that there are; :mod:`mailsvc.sasl.mechanisms` has what each does.
NAMES = ("PLAIN", "LOGIN", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS", "EXTERNAL", "GSSAPI",
         "OAUTHBEARER", "XOAUTH2", "CRAM-MD5")


def _known(values: list[str]) -> str | None:
    if set(values) <= set(NAMES) and len(set(values)) == len(values):
        return None
    return "each once, of " + ", ".join(NAMES)


def _https(value: str) -> str | None:
    return None if not value or value.startswith("https://") else "an https:// URL, or nothing"


@dataclass(frozen=True, slots=True)
class AuthSettings:
    """``[auth]``."""

    mechanisms: list[str] = setting(
        [
            "SCRAM-SHA-256-PLUS",
            "SCRAM-SHA-256",
            "PLAIN",
            "LOGIN",
            "EXTERNAL",
            "GSSAPI",
            "OAUTHBEARER",
            "XOAUTH2",
        ],
        "SASL mechanisms to offer, in this order, where they can work: EXTERNAL needs a client "
        "certificate, GSSAPI a keytab, OAUTHBEARER and XOAUTH2 a token checker, CRAM-MD5 "
        "recoverable secrets.",
        check=_known,
    )
    openid_configuration: str = setting(
        "",
        "Where clients whose token was refused find the issuer: the URL of its "
        ".well-known/openid-configuration.",
        check=_https,
    )
    gssapi_keytab: str = setting(
        "", "The keytab with the keys of smtp/HOST and pop/HOST, for Kerberos (GSSAPI); empty for "
        "no Kerberos.  Needs mailsvc[gssapi].")
    gssapi_realms: dict[str, str] = setting(
        {}, "The Kerberos realms that users may be of, each with the domain of their accounts: "
        '{"EXAMPLE.ORG" = "example.org"}.')
    oauth_scope: str = setting("", "The scope that such clients are told to ask for.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One connection at the time of AUTH.

    :ivar protocol: "submission" or "pop3".
    :ivar hostname: what the server calls itself.
    :ivar usable: the mechanisms whose questions the owner can answer: it has a checker for their
        credentials.
    :ivar client: the peer's IP address, or "" on a Unix socket.
    :ivar cleartext_allowed: whether this client may authenticate without TLS.
    :ivar channel_bindings: the channel's data by type: "tls-exporter" (RFC 9266),
        "tls-server-end-point" (RFC 5929), "tls-unique" (RFC 5929, before TLS 1.3 only).
    :ivar certificate_names: login names in the client's certificate, which has been verified.
    """

    protocol: str
    hostname: str
    settings: AuthSettings
    usable: frozenset[str]
    client: str = ""
    tls_active: bool = False
    cleartext_allowed: bool = False
    channel_bindings: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    certificate_names: tuple[str, ...] = ()

    @property
    def service(self) -> str:
        """The GSSAPI service name: RFC 4954 §4, RFC 5034 §3."""
        return "pop" if self.protocol == "pop3" else "smtp"

    @property
    def private(self) -> bool:
        """Whether anybody may authenticate: nobody listens, or the operator does not mind."""
        return self.tls_active or self.cleartext_allowed

    def attempt(self, mechanism: str) -> Attempt:
        """What credentials carry."""
        return Attempt(self.protocol, self.client, mechanism)
