"""Whose certificates a checker trusts."""

from __future__ import annotations

import re
from typing import Any

from mailsvc.checkers.arguments import BadArguments, contents

_CERTIFICATE = re.compile(
    rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def authorities(key: str, path: str) -> Any:
    """The authorities in the PEM file at *path*, named by *key*; without one, the system's.

    :returns: a trust root of ``twisted.internet.ssl``.
    :raises BadArguments: it cannot be read, or holds none.
    """
    from twisted.internet import ssl  # noqa: PLC0415

    if not path:
        return ssl.platformTrust()
    found = _CERTIFICATE.findall(contents(key, path))
    try:
        certificates = [ssl.Certificate.loadPEM(each) for each in found]
    except Exception as error:
        raise BadArguments(f"{key}={path}: expected certificates in PEM ({error})") from error
    if not certificates:
        raise BadArguments(f"{key}={path}: expected certificates in PEM")
    return ssl.trustRootFromCertificates(certificates)
