"""Whom a client trusts: the TLS of outgoing connections.  (Skeleton.)"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cryptography import x509


@dataclass(frozen=True, slots=True)
class Trust:
    """What a server's certificate has to prove.

    :ivar names: the server must be one of these (RFC 9525: subjectAltName only); DNS names or IP
        addresses.  Empty: the name that was dialled.
    :ivar authorities: a PEM file of those who may vouch for it; empty for the system's.
    :ivar verify: False for none of this: encryption alone (opportunistic, RFC 7435).
    :ivar check: in the place of names and authorities, such as DANE (RFC 7672): gets the chain that
        the server showed, its own certificate first, and answers None or what is wrong with it.
    :ivar certificate: ours, for AUTH EXTERNAL: a PEM file with chain and key.
    :ivar minimum: the least version of TLS, "TLSv1.2" or "TLSv1.3".
    """

    names: tuple[str, ...] = ()
    authorities: str = ""
    verify: bool = True
    check: Callable[[Sequence[x509.Certificate]], str | None] | None = None
    certificate: str = ""
    minimum: str = "TLSv1.2"


#: Encryption without proof of who is there.
UNVERIFIED = Trust(verify=False)
