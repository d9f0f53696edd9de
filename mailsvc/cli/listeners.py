"""Where the listeners of ``mailsvc dev`` listen: an option for each kind of them."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import click

#: Where each kind of listener listens without its flag; None for nowhere.
PORTS = {"smtp": 2525, "submission": 2587, "submissions": 2465, "lmtp": 2024, "odmr": None,
         "pop3": 2110, "pop3s": 2995, "http": 2080, "console": 8025, "api": None}

_HELP = {
    "smtp": "Where SMTP listens; port 0 for any.",
    "submission": "Where users log in and send, with STARTTLS.",
    "submissions": "The same with TLS from the first octet.",
    "lmtp": "Where LMTP listens.",
    "odmr": "Where the mail of routing.atrn_domains is fetched (ODMR).",
    "pop3": "Where POP3 listens; port 0 for any.",
    "pop3s": "The same with TLS from the first octet.",
    "http": "Where figures for Prometheus are shown, liveness and readiness.",
    "console": "Where the pages for users and administrators are, and the API.",
    "api": "Where the API is alone; on a Unix socket root and this user need not log in.",
}


class Place(NamedTuple):
    """Where a listener listens: an IP address and a port."""

    address: str
    port: int

    @property
    def endpoint(self) -> str:
        """As a Twisted endpoint string."""
        kind = "tcp6" if ":" in self.address else "tcp"
        escaped = self.address.replace(":", "\\:")
        return f"{kind}:{self.port}:interface={escaped}:backlog=1024"


class UnixPlace(NamedTuple):
    """Where a listener listens: a Unix socket that every user of this machine may connect to."""

    path: str

    @property
    def endpoint(self) -> str:
        """As a Twisted endpoint string."""
        escaped = self.path.replace("\\", "\\\\").replace(":", "\\:").replace("=", "\\=")
        return f"unix:{escaped}:mode=666"


class _PlaceType(click.ParamType):
    """ADDRESS:PORT, PORT, unix:PATH or off."""

    name = "place"

    def convert(self, value: Any, param: click.Parameter | None,
                ctx: click.Context | None) -> Place | UnixPlace | None:
        if value is None or isinstance(value, Place | UnixPlace) or value == "off":
            return value if isinstance(value, Place | UnixPlace) else None
        if value.startswith("unix:/") and value.isprintable():
            return UnixPlace(value.removeprefix("unix:"))
        address, _, port = value.rpartition(":")
        if address.startswith("[") and address.endswith("]"):
            address = address[1:-1]
        if address in {"", "localhost"}:
            address = "127.0.0.1"
        try:
            if not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65_535:
                raise ValueError("no port")
            return Place(str(ipaddress.ip_address(address)), int(port))
        except ValueError:
            self.fail(f"{value!r} is not a place to listen; expected PORT, ADDRESS:PORT such as "
                      "127.0.0.1:2525 or [::1]:2525, unix:/PATH, or off", param, ctx)


PLACE = _PlaceType()


def listener_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give *command* an option for each kind of listener."""
    for kind, port in reversed(PORTS.items()):
        command = click.option(
            f"--{kind}", type=PLACE, default=f"127.0.0.1:{port}" if port else "off",
            show_default=True,
            metavar="[ADDRESS:]PORT|unix:/PATH|off", help=_HELP[kind])(command)
    return command
