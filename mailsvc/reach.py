"""Where others reach the service: ports that mail programs connect to, addresses of this machine.

Told from the listeners of a configuration alone.  A Unix socket and an endpoint on loopback are for
nobody elsewhere.  The port of a ``systemd:`` or ``fd:`` endpoint is not to be seen; it is taken for
the usual one.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass, fields

from mailsvc.config import ListenerSettings


@dataclass(frozen=True, slots=True)
class Service:
    """One service that mail programs ask for.

    :ivar label: its name in SRV records.
    :ivar element: its element in the XML of ``mailsvc autoconfig``, and what that is for.
    :ivar tls: whether TLS begins with the first octet.
    :ivar port: the usual one.
    """

    label: str
    element: tuple[str, str]
    kind: str
    tls: bool
    port: int
    sentence: str


IN, OUT = ("incomingServer", "pop3"), ("outgoingServer", "smtp")

#: In the order in which programs shall prefer them: RFC 8314 §3 has TLS from the first octet first.
SERVICES = (
    Service("_pop3s", IN, "pop3s", True, 995, "fetching mail with TLS from the first octet"),
    Service("_pop3", IN, "pop3", False, 110, "fetching mail with TLS by STLS"),
    Service("_submissions", OUT, "submissions", True, 465,
            "sending mail with TLS from the first octet"),
    Service("_submission", OUT, "submission", False, 587, "sending mail with TLS by STARTTLS"),
)

#: Where ``etc/mailsvc.service`` listens, whatever the configuration says: on what
#: ``etc/mailsvc.socket`` opens.
UNITS = ListenerSettings(smtp=["tcp:25"], pop3=["tcp:110"], submissions=["tcp:465"],
                         submission=["tcp:587"], pop3s=["tcp:995"])


def bound(found: Iterable[tuple[str, str]]) -> ListenerSettings:
    """The listeners that are bound, as endpoints: by the systemd units, say.

    :param found: the kind of each, and its address: ``127.0.0.1:25``, ``[::]:25`` or a path.
    """
    endpoints: dict[str, list[str]] = {each.name: [] for each in fields(ListenerSettings)}
    for kind, address in found:
        interface, _, port = address.rpartition(":")
        if address.startswith("/"):
            endpoints[kind].append(f"unix:{address}")
        else:
            escaped = interface.strip("[]").replace(":", "\\:")
            endpoints[kind].append(f"tcp:{port}:interface={escaped}")
    return ListenerSettings(**endpoints)


def ports(listeners: ListenerSettings) -> dict[str, list[int]]:
    """The ports that can be reached from elsewhere, by the label of the service."""
    found: dict[str, list[int]] = {service.label: [] for service in SERVICES}
    for service in SERVICES:
        for endpoint in getattr(listeners, service.kind):
            # An ssl: endpoint on the plain listener is the other service.
            secured = service.tls or "ssl:" in endpoint[:12]
            label = next(each.label for each in SERVICES
                         if each.tls == secured and each.element == service.element)
            port = _port(endpoint, service.port)
            if port is not None and port not in found[label]:
                found[label].append(port)
    return found


def receives(listeners: ListenerSettings) -> bool:
    """Whether other servers reach us at port 25, which is where they deliver."""
    return any(_port(endpoint, 25) == 25 for endpoint in listeners.smtp)


def _port(endpoint: str, usual: int) -> int | None:
    """The port of *endpoint*, or None when nobody reaches it from elsewhere."""
    kind, _, rest = endpoint.removeprefix("haproxy:").partition(":")
    if kind == "unix":
        return None
    interface = re.search(r"(?:^|:)interface=((?:\\.|[^:\\])*)", rest)
    if interface is not None and _is_loopback(re.sub(r"\\(.)", r"\1", interface[1])):
        return None
    number = re.match(r"(?:port=)?([0-9]+)(?::|$)|.*:port=([0-9]+)(?::|$)", rest)
    if kind in ("tcp", "tcp4", "tcp6", "ssl") and number is not None:
        return int(number[1] or number[2])
    return usual


def _is_loopback(interface: str) -> bool:
    try:
        return ipaddress.ip_address(interface).is_loopback
    except ValueError:
        return interface == "localhost"


#: Addresses for documentation (RFC 5737, RFC 3849), which lead out by the default route.
_ELSEWHERE = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))


def own_addresses() -> list[str]:
    """The addresses that this machine connects from, IPv4 first; none it has no way out by.

    Behind a router that translates addresses they are not those that others see.
    """
    found = []
    for family, elsewhere in _ELSEWHERE:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as trial:
                trial.connect((elsewhere, 9))  # nothing is sent
                found.append(str(trial.getsockname()[0]))
        except OSError:
            continue
    return found


def is_public(address: str) -> bool:
    """Whether others can connect to *address*."""
    return ipaddress.ip_address(address).is_global
