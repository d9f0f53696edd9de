"""Signatures of requests, after Standard Webhooks 1.0: HMAC-SHA256 by secrets that both sides know.

A secret is ``whsec_`` and base64 of 24 to 64 octets.  While it is changed there may be several: a
request is signed with each, and the receiver accepts it when it knows one.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import secrets
from collections.abc import Sequence

_PREFIX = "whsec_"
_OCTETS = range(24, 65)
#: More is no file of secrets.
_MOST = 65_536


class SecretUnusable(Exception):
    """There is no secret to sign with; the text says what to do.

    :ivar hidden: whether it may be that only this user does not see it.
    """

    def __init__(self, text: str, *, hidden: bool = False) -> None:
        super().__init__(text)
        self.hidden = hidden


def new_secret() -> str:
    """One that nobody has had."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(32)).decode("ascii")


def secrets_at(place: str) -> list[bytes]:
    """The secrets at *place*, ``file:PATH`` or ``env:NAME``.

    :raises SecretUnusable: there are none; nothing of what is there is in the text.
    """
    scheme, _, name = place.partition(":")
    if scheme == "file":
        try:
            with open(name, "rb") as stream:
                text = stream.read(_MOST).decode("utf-8", "replace")
        except OSError as error:
            raise SecretUnusable(f"{name} cannot be read: {error.strerror}; name a file that "
                                 "the user who runs the service may read",
                                 hidden=isinstance(error, PermissionError)) from error
    elif name in os.environ:
        text = os.environ[name]
    elif place:
        raise SecretUnusable(f"there is no {name} in the environment; set it to what "
                             "`mailsvc webhook secret` prints", hidden=True)
    else:
        raise SecretUnusable("no secret is set: write what `mailsvc webhook secret` prints into a "
                             "file, and name it, as in file:/etc/mailsvc/webhook.secret")
    found = [_secret(line.strip()) for line in text.splitlines()
             if line.strip() and not line.startswith("#")]
    if not found or None in found:
        raise SecretUnusable(
            f"{name}: expected whsec_ and base64 of {_OCTETS[0]} to {_OCTETS[-1]} octets, one a "
            "line, as `mailsvc webhook secret` prints it")
    return [each for each in found if each is not None]


def _secret(text: str) -> bytes | None:
    try:
        secret = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        return None
    return secret if len(secret) in _OCTETS else None


def signature(keys: Sequence[bytes], id: str, timestamp: int, body: bytes) -> str:
    """The value of ``webhook-signature``.

    :param id: that of ``webhook-id``; *timestamp* that of ``webhook-timestamp``.
    """
    signed = f"{id}.{timestamp}.".encode("ascii") + body
    return " ".join("v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode("ascii")
                    for key in keys)
