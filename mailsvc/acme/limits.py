"""``[acme]``: certificates that the service gets by itself."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from mailsvc.settings import OneOf, setting

_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
#: Both challenges show a single name to be ours (RFC 8555 §8.3, RFC 8737 §3), so no "*".
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})+")

#: How names are shown to be ours, and the port that the authority looks on.
CHALLENGES = {"http-01": 80, "tls-alpn-01": 443}

LETS_ENCRYPT = "https://acme-v02.api.letsencrypt.org/directory"


def _names(values: list[str]) -> str | None:
    if all(len(value) <= 253 and _NAME.fullmatch(value) for value in values):
        return None
    return 'full host names in ASCII such as "mail.example.org", without *'


def _url(value: str) -> str | None:
    parts = urlsplit(value)
    return None if parts.scheme == "https" and parts.hostname else "a URL that begins with https://"


@dataclass(frozen=True, slots=True)
class ACMESettings:
    """``[acme]``."""

    names: list[str] = setting(
        [], "The host names that one certificate is got for, and renewed, from an authority that "
        "speaks ACME, such as Let's Encrypt; [] for none.  Each has to lead here, on the port that "
        "acme.challenge looks on.", check=_names)
    challenge: str = setting(
        "http-01", "How the authority sees that the names lead here: http-01, on port 80, which "
        "leads to listeners.acme; or tls-alpn-01, on port 443, which leads to listeners.acme, or "
        "to listeners.console or listeners.api with TLS.",
        check=OneOf(*CHALLENGES))
    agreed: bool = setting(
        False, "Whether you agree to the authority's terms of service, without which it gives "
        "none.")
    email: str = setting("", "Where the authority may write to; empty for nowhere.")
    directory: str = setting(
        LETS_ENCRYPT, "The authority: the URL of its directory (RFC 8555 §7.1.1).", check=_url)
    authorities: str = setting(
        "", "A PEM file of the certificates that vouch for the authority's own web server, for one "
        "of your own; empty for those that requests brings.")
    keep_key: bool = setting(
        True, "Whether a renewed certificate has the key of the one before, so that TLSA records "
        "(3 1 1) need not change.")
