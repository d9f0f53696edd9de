"""What the DNS has to say of a domain (:mod:`~mailsvc.zone`), as the settings of a service have it.

It reads keys and certificates: it blocks.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509

from mailsvc.certificates import certificate_at
from mailsvc.config import Settings
from mailsvc.dkim import Keys
from mailsvc.names import DirectoryError
from mailsvc.ownership import remedy_for
from mailsvc.queue.routes import parse_route
from mailsvc.reach import UNITS, is_public, own_addresses, ports, receives
from mailsvc.zone import Zone


def zone_of(found: Settings, domain: str, *, addresses: Sequence[str] = (), hostname: str = "",
            systemd: bool = False, enforced: bool = False, tlsa: bool = False) -> Zone:
    """What the DNS has to say of *domain* by these settings.

    :param addresses: of this host as others see them; empty for those that can be told from here.
    :param systemd: whether the ports of the systemd units count in the place of ``[listeners]``.
    :raises DirectoryError: keys cannot be read.
    :raises CertificateProblem: certificates cannot be read.
    """
    listeners = UNITS if systemd else found.listeners
    root = Path(found.service.data) / "dkim"
    try:
        keys = Keys(root).of(domain)
        certificates = [] if not tlsa else [chain[0] for chain in chains(found)]
    except OSError as error:
        place = Path(error.filename or root)
        remedy = remedy_for(place) if isinstance(error, PermissionError) else "see to it first"
        raise DirectoryError(f"{place} cannot be used: {error.strerror}", remedy) from error
    return Zone(
        domain, hostname or found.service.hostname,
        addresses=addresses or [each for each in own_addresses() if is_public(each)],
        receives=receives(listeners), reachable=ports(listeners), keys=keys,
        senders=found.relay.bind, enforced=enforced, certificates=certificates,
        smarthost=parse_route(found.relay.smarthost).host if found.relay.smarthost else "")


def chains(found: Settings) -> list[tuple[x509.Certificate, ...]]:
    """The certificates that the service shows, each with its issuers.

    :raises CertificateProblem: one cannot be read.
    """
    places = found.tls.certificates or [
        os.path.join(found.service.data, "tls", "self-signed.pem")]
    return [certificate_at(place).load().chain for place in places]
