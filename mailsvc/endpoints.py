"""Endpoint strings, and the places at which they would listen; nothing is opened here."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: The highest port there is.
_HIGHEST = 65_535
#: Whether sockets of IPv6 leave IPv4 alone, unless they are told otherwise (ipv6(7)).
_V6ONLY = Path("/proc/sys/net/ipv6/bindv6only")


@dataclass(frozen=True, slots=True)
class Place:
    """Where one endpoint listens.

    :ivar host: an address; a name, if the endpoint has one; or the path of a Unix socket.
    :ivar port: None for a Unix socket; 0 for any port that is free.
    """

    host: ipaddress.IPv4Address | ipaddress.IPv6Address | str
    port: int | None = None

    def collides(self, other: Place) -> bool:
        """Whether the kernel would not let us listen at both."""
        if self.port != other.port or self.port == 0:
            return False
        if self.host == other.host:
            return True
        return self.port is not None and (self._covers(other.host) or other._covers(self.host))

    def _covers(self, host: ipaddress.IPv4Address | ipaddress.IPv6Address | str) -> bool:
        match self.host:
            case ipaddress.IPv4Address(is_unspecified=True):
                return not isinstance(host, ipaddress.IPv6Address)
            case ipaddress.IPv6Address(is_unspecified=True):
                return isinstance(host, ipaddress.IPv6Address) or not _is_v6only()
        return False


def _is_v6only() -> bool:
    with suppress(OSError):
        return _V6ONLY.read_text().strip() == "1"
    return False


def places(description: str) -> list[Place]:
    """Where the endpoint *description* would listen; nowhere, if only systemd knows.

    :raises ValueError: it is no Twisted endpoint string, or its port is none; or whatever else an
        endpoint of that kind fails with.
    """
    # Not at the top: this is all that needs Twisted to read a configuration.
    from twisted.internet.endpoints import serverFromString  # noqa: PLC0415
    from twisted.internet.protocol import Factory  # noqa: PLC0415

    if description.startswith("systemd:"):
        return []  # whether systemd passed the socket is not known before the service starts
    recorder = _Recorder()
    with suppress(PermissionError):  # a key that is for root, or for the service's user
        serverFromString(recorder, description).listen(Factory()).addErrback(lambda _: None)
    for place in recorder.places:
        if place.port is not None and not 0 <= place.port <= _HIGHEST:
            raise ValueError(f"there is no port {place.port}; they end with {_HIGHEST}")
    return recorder.places


class _Recorder:
    """In the place of a reactor: notes where it is to listen."""

    def __init__(self) -> None:
        self.places: list[Place] = []

    def listenTCP(self, port: int, factory: object, backlog: int = 50,
                  interface: str = "") -> None:
        host: Any = interface or "0.0.0.0"
        with suppress(ValueError):
            host = ipaddress.ip_address(host)
        self.places.append(Place(getattr(host, "ipv4_mapped", None) or host, port))

    def listenSSL(self, port: int, factory: object, context: object, backlog: int = 50,
                  interface: str = "") -> None:
        self.listenTCP(port, factory, backlog, interface)

    def listenUNIX(self, address: str, *_: object, **__: object) -> None:
        self.places.append(Place(os.path.abspath(address)))


def check(values: list[str]) -> str | None:
    """A check for settings (:mod:`mailsvc.settings`): endpoint strings."""
    problems = []
    for value in values:
        try:
            places(value)
        except OSError as error:
            problems.append(f"{value!r}: {error.filename}: {error.strerror}")
        except Exception as error:
            problems.append(f"{value!r}: {error}")
    return (f'Twisted endpoint strings such as "tcp:2525" or "tcp6:2525" ({"; ".join(problems)})'
            if problems else None)


def collisions(endpoints: Iterable[tuple[str, str]]) -> Iterator[
        tuple[tuple[str, str], tuple[str, str]]]:
    """Of pairs of a key and an endpoint, each one that cannot be bound beside one before, and that.
    """
    taken: list[tuple[Place, tuple[str, str]]] = []
    for pair in endpoints:
        for place in places(pair[1]):
            other = next((first for each, first in taken if each.collides(place)), None)
            if other is not None:
                yield pair, other
            taken.append((place, pair))
