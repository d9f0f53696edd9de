"""Which way mail leaves: by the exchangers of its domain, or by a host that was named for it.

A route is written as a URL, or shorter:

* ``smtp://host:25`` (or ``host:25``, ``host``): STARTTLS where it is offered, unverified, unless
  the host publishes more (:mod:`mailsvc.queue.security.terms`);
* ``smtp+starttls://name:password@host:587``: STARTTLS or nothing, the certificate verified;
* ``smtps://name:password@host:465``: TLS from the first octet, verified;
* ``smtp+plain://host:25``: never TLS;
* ``lmtp://host:24``, ``lmtp:/run/other/lmtp``: LMTP (RFC 2033), to a host or a Unix socket;
* ``pipe:/usr/bin/program {recipient}``: a program (:mod:`mailsvc.queue.pipe`), its words as a
  shell would cut them, though no shell sees them;
* ``mx``: by the exchangers of the domain after all.

The key of a route says for what: ``example.org`` and ``.example.org`` (and all below it) for
destinations, ``from:alice@example.com`` and ``from:example.com`` for senders,
``account:alice@example.com`` for who submitted it, ``*`` for all the rest.  The account goes before
the sender, the sender before the destination, and the longer name before the shorter.
"""

from __future__ import annotations

import functools
import ipaddress
import re
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from urllib.parse import unquote, urlsplit

from mailsvc.mail import NULL_PATH, Address
from mailsvc.names import fold_domain, fold_local_part
from mailsvc.queue.message import QueuedMessage
from mailsvc.settings import OneOf, at_least, setting

#: scheme -> how TLS is used, as ``mailsvc.client.TLS``, and the port.
_SCHEMES = {"smtp": ("opportunistic", 25), "smtp+starttls": ("starttls", 587),
            "smtps": ("implicit", 465), "smtp+plain": ("no", 25), "lmtp": ("no", 24)}

#: What is filled in in the arguments of a program.
_PLACE = re.compile(r"\{(recipient|local_part|domain|sender|id)\}")


@dataclass(frozen=True, slots=True)
class Hop:
    """Where mail is handed to next.

    :ivar host: a name, an IP address, or the path of a Unix socket; for exchangers, the domain.
    :ivar exchangers: whether *host* is a domain whose exchangers are to be found.
    :ivar port: 0 for exchangers: that of [relay].
    :ivar tls: as ``mailsvc.client.TLS``.
    :ivar command: the program, with its arguments, that gets the mail; there is no host then.
    :ivar user: whom to log in as, or empty; *password* likewise.
    :ivar kept: whether mail for the domain *host* goes nowhere until it is fetched (ATRN).
    :ivar wish: what messages ask of TLS, which have connections of their own: "require"
        (REQUIRETLS), "ignore" (TLS-Required: No, RFC 8689 §3), or empty.
    """

    host: str
    exchangers: bool = False
    port: int = 0
    tls: str = "opportunistic"
    user: str = ""
    password: str = ""
    lmtp: bool = False
    command: tuple[str, ...] = ()
    wish: str = ""
    kept: bool = False

    def __str__(self) -> str:
        """For people, without the password."""
        if self.exchangers or self.kept:
            return self.host
        if self.command:
            return f"pipe:{self.command[0]}"
        protocol = "lmtp:" if self.lmtp else ""
        login = f"{self.user}@" if self.user else ""
        return f"{protocol}{login}{self.host}" + (f":{self.port}" if self.port else "")

    @property
    def named(self) -> bool:
        """Whether *host* is a name of the DNS, and not an address, a socket or one of here."""
        if self.exchangers:
            return not self.host.startswith("[")
        return "." in self.host and "/" not in self.host and not _is_address(self.host)

    def words(self, values: Mapping[str, str]) -> list[str]:
        """The words of *command* with *values* in their places."""
        return [_PLACE.sub(lambda match: values[match[1]], word) for word in self.command]


#: The route ``mx``: filled with the domain of each recipient.
EXCHANGERS = Hop("", exchangers=True)


def parse_route(text: str) -> Hop:
    """The route that *text* describes.

    :raises ValueError: it describes none; the text says what was expected.
    """
    if text == "mx":
        return EXCHANGERS
    if text.startswith("lmtp:/") and not text.startswith("lmtp://"):
        return Hop(text.removeprefix("lmtp:"), tls="no", lmtp=True)
    if text.startswith("pipe:"):
        command = tuple(shlex.split(text.removeprefix("pipe:")))
        _check_command(command)
        return Hop("", tls="no", command=command)
    parts = urlsplit(text if "://" in text else f"smtp://{text}")
    if parts.scheme not in _SCHEMES:
        raise ValueError("a scheme out of " + ", ".join(_SCHEMES))
    if not parts.hostname or parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError("a host, perhaps with a port: smtp://host:25")
    host = parts.hostname.removesuffix(".")
    if not _is_host(host):
        raise ValueError(f"a host name or an IP address, not {host!r}")
    tls, port = _SCHEMES[parts.scheme]
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if not (user + password).isprintable():
        raise ValueError("a name and a password without control characters")
    # urlsplit itself refuses what is no port.
    return Hop(host, port=parts.port or port, tls=tls, user=user, password=password,
               lmtp=parts.scheme == "lmtp")


def _check_command(command: tuple[str, ...]) -> None:
    if not command or not command[0].startswith("/"):
        raise ValueError("a program by its whole path: pipe:/usr/bin/program {recipient}")
    for word in command:
        if re.search(r"[{}\0]", _PLACE.sub("", word)):
            raise ValueError("{recipient}, {local_part}, {domain}, {sender} or {id} in the "
                             f"arguments, not {word!r}")


_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"


def _is_host(name: str) -> bool:
    return _is_address(name) or (
        re.fullmatch(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*", name) is not None)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _routes(table: Mapping[str, str]) -> str | None:
    for key, value in table.items():
        if not re.fullmatch(r"\*|(from:|account:)[^\s@]*@?[^\s@]+|\.?[^\s@:]+", key):
            return ("a domain, .domain, from:ADDRESS, from:DOMAIN, account:NAME or * for each key, "
                    f"not {key!r}")
        try:
            parse_route(value)
        except ValueError as error:
            return f"for {key!r}: {error}"
    return None


def _route(value: str) -> str | None:
    return _routes({"*": value}) if value else None


def _servers(values: list[str]) -> str | None:
    try:
        for value in values:
            server(value)
    except ValueError:
        return 'IP addresses, each perhaps with a port: "192.0.2.53", "127.0.0.1:5353"'
    return None


def server(text: str) -> tuple[str, int]:
    """The name server that *text* names: address and port."""
    match = re.fullmatch(r"\[(?P<v6>[^\]]+)\](?::(?P<p6>\d{1,5}))?|(?P<v4>[0-9.]+)"
                         r"(?::(?P<p4>\d{1,5}))?|(?P<bare>[0-9A-Fa-f:]+)", text)
    if match is None:
        raise ValueError(text)
    address = str(ipaddress.ip_address(match["v6"] or match["v4"] or match["bare"]))
    port = int(match["p6"] or match["p4"] or 53)
    if not 0 < port < 65_536:
        raise ValueError(text)
    return address, port


def _address(value: str) -> str | None:
    return None if not value or re.fullmatch(rf"[!-~]+@{_LABEL}(\.{_LABEL})+", value) else (
        "an address such as tls-reports@example.org, in ASCII")


def _place(value: str) -> str | None:
    return None if not value or value.startswith("/") else "an absolute path"


def _addresses(values: list[str]) -> str | None:
    try:
        for value in values:
            ipaddress.ip_address(value)
    except ValueError:
        return "IP addresses of this host"
    return None


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """``[relay]``."""

    smarthost: str = setting(
        "", "The host that takes all mail for other hosts, such as smtp.example.net or "
        "smtp+starttls://name:password@smtp.example.net:587; empty to send it to the exchangers "
        "(MX) of each domain.", check=_route)
    routes: dict[str, str] = setting(
        {}, "Hosts for some of it: a domain, .domain (with all below it), from:ADDRESS, "
        "from:DOMAIN, account:NAME or * leads to a host as above, to lmtp://host:24 or "
        "lmtp:/socket, to pipe:/usr/bin/program {recipient}, or to mx.", check=_routes)
    port: int = setting(25, "The port of exchangers.", check=at_least(1))
    dns: list[str] = setting(
        [], "The name servers to ask, such as 127.0.0.1 or 127.0.0.1:5353; none for those of "
        "/etc/resolv.conf.", check=_servers)
    hello: str = setting("", "What we call ourselves to other hosts; empty for the host name.")
    bind: list[str] = setting(
        [], "The addresses of this host to connect from: one IPv4, one IPv6, or both.",
        check=_addresses)
    protocols: str = setting(
        "both", "Which addresses of other hosts are used: both, ipv4 or ipv6.",
        check=OneOf("both", "ipv4", "ipv6"))
    loopback: bool = setting(
        False, "Whether exchangers may be at loopback addresses, as in a test.  Otherwise a domain "
        "that points there is refused, for it would lead to ourselves.")
    dane: str = setting(
        "auto", "Whether TLSA records are obeyed (DANE, RFC 7672): on if the name servers validate "
        "(DNSSEC) and they and the way to them can be trusted; auto for on if all of them are at "
        "loopback addresses; off.", check=OneOf("auto", "on", "off"))
    mta_sts: bool = setting(
        True, "Whether the policies are obeyed by which domains say that their exchangers have TLS "
        "and prove their names (MTA-STS, RFC 8461).")
    policy_port: int = setting(443, "The port of the hosts that have such policies.",
                               check=at_least(1))
    authorities: str = setting(
        "", "PEM file of the authorities that may vouch for exchangers, other hosts and policies; "
        "empty for those of the system.", check=_place)
    tls_reports: str = setting(
        "", "The address that reports come from, once a day, about TLS with the exchangers of "
        "domains that ask for them (RFC 8460); empty to send none.", check=_address)
    remember_tls: bool = setting(
        True, "Whether a domain that was reached by TLS once is not sent to in the clear later; "
        "`mailsvc queue tls` lists them.")
    connect_seconds: float = setting(
        30, "How long one address may take to answer a connection.", unit="seconds",
        check=at_least(0.1))
    reply_seconds: float = setting(
        300, "How long another host may take for a reply (RFC 5321 §4.5.3.2 asks for 300 seconds; "
        "twice that after the message).", unit="seconds", check=at_least(0.1))
    pipe_seconds: float = setting(
        600, "How long a program of a pipe: route may take for a message, before it is killed.",
        unit="seconds", check=at_least(0.1))


class Routes:
    """The routes of [relay].

    :param kept: the domains whose mail is kept until it is fetched, whatever [relay] says.
    """

    def __init__(self, settings: RelaySettings, kept: Collection[str] = ()) -> None:
        self._kept = kept
        self._table = {_folded(key): parse_route(value)
                       for key, value in settings.routes.items()}
        if settings.smarthost:
            self._table.setdefault("*", parse_route(settings.smarthost))

        self._remembered = functools.lru_cache(4096)(self._find)

    def hop(self, message: QueuedMessage, recipient: Address) -> Hop:
        """Where *message* goes next for *recipient*."""
        if self._kept and not message.route and fold_domain(recipient.domain) in self._kept:
            return Hop(fold_domain(recipient.domain), kept=True)
        hop = parse_route(message.route) if message.route else self._remembered(
            message.account, message.reverse_path, recipient.domain)
        if hop is EXCHANGERS:
            hop = Hop(fold_domain(recipient.domain) or recipient.domain, exchangers=True)
        wish = ""
        if message.requiretls:
            # RFC 8689 §4.2.1, §5: a report goes all the same.
            wish = "require" if message.reverse_path != NULL_PATH else ""
        elif message.tls_optional:
            wish = "ignore"
        return replace(hop, wish=wish) if wish else hop

    def key(self, account: str, sender: Address, domain: str) -> str | None:
        """The key whose route is taken, "*" for the smarthost's too; None where none is."""
        return next((key for key in _keys(account, sender, domain) if key in self._table), None)

    def _find(self, account: str, sender: Address, domain: str) -> Hop:
        key = self.key(account, sender, domain)
        return EXCHANGERS if key is None else self._table[key]


def _keys(account: str, sender: Address, domain: str) -> list[str]:
    """What a message can be found by in the table, the most particular first."""
    keys = [f"account:{_folded_address(account)}"] if account else []
    if sender != NULL_PATH:
        keys += [f"from:{_folded_address(str(sender))}", f"from:{fold_domain(sender.domain)}"]
    labels = fold_domain(domain).split(".")
    keys.append(".".join(labels))
    keys += ["." + ".".join(labels[start:]) for start in range(len(labels))]
    return [*keys, "*"]


def _folded(key: str) -> str:
    kind, colon, name = key.partition(":")
    if colon:
        return f"{kind}:{_folded_address(name)}"
    return "." + fold_domain(key[1:]) if key.startswith(".") else fold_domain(key) or key


def _folded_address(name: str) -> str:
    local_part, at, domain = name.rpartition("@")
    return f"{fold_local_part(local_part)}{at}{fold_domain(domain)}"
