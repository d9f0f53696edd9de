"""``mailsvc autoconfig``: what to publish so that mail programs find a domain's settings.

From the listeners of the configuration, or, where the systemd units of ``etc/`` are used, from the
ports that those open in the place of its listeners: the XML file that Thunderbird, and others after
it, fetch from ``autoconfig.DOMAIN`` or below ``/.well-known/``, and the records of the DNS
(RFC 6186, RFC 8314).  TLS from the first octet comes first, as RFC 8314 §3 has it.

Nothing unencrypted is published: where TLS begins by STARTTLS or STLS, programs are told to insist
on it.  Nor are Unix sockets, and endpoints on loopback, for nobody else can connect to them.  The
port of a ``systemd:`` or ``fd:`` endpoint is not to be seen from here; it is taken for the usual
one.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree

import click

from mailsvc.cli.arguments import DOMAIN
from mailsvc.cli.place import place_options, settings
from mailsvc.config import ListenerSettings


@dataclass(frozen=True, slots=True)
class Service:
    """One service that mail programs ask for.

    :ivar label: its name in SRV records.
    :ivar element: its element in the XML, and what that is for.
    :ivar tls: whether TLS begins with the first octet.
    :ivar port: the usual one.
    """

    label: str
    element: tuple[str, str]
    kind: str
    tls: bool
    port: int
    sentence: str


_IN, _OUT = ("incomingServer", "pop3"), ("outgoingServer", "smtp")

#: In the order in which programs shall prefer them.
SERVICES = (
    Service("_pop3s", _IN, "pop3s", True, 995, "fetching mail with TLS from the first octet"),
    Service("_pop3", _IN, "pop3", False, 110, "fetching mail with TLS by STLS"),
    Service("_submissions", _OUT, "submissions", True, 465,
            "sending mail with TLS from the first octet"),
    Service("_submission", _OUT, "submission", False, 587, "sending mail with TLS by STARTTLS"),
)

#: Where ``etc/mailsvc.service`` listens, whatever the configuration says: on what
#: ``etc/mailsvc.socket`` opens.
UNITS = ListenerSettings(smtp=["tcp:25"], pop3=["tcp:110"], submissions=["tcp:465"],
                         submission=["tcp:587"], pop3s=["tcp:995"])

#: What is not served here at all; RFC 6186 §3.4 lets the records say so.
_ABSENT = ("_imaps", "_imap")


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


def thunderbird(domain: str, hostname: str, reachable: dict[str, list[int]]) -> str:
    """The file config-v1.1.xml."""
    root = ElementTree.Element("clientConfig", version="1.1")
    provider = ElementTree.SubElement(root, "emailProvider", id=domain)
    _add(provider, domain=domain, displayName=domain, displayShortName=domain)
    for service in SERVICES:
        element, kind = service.element
        for port in reachable[service.label]:
            # A login is the whole address; its password may go as it is, for TLS is insisted on.
            _add(ElementTree.SubElement(provider, element, type=kind), hostname=hostname,
                 port=str(port), socketType="SSL" if service.tls else "STARTTLS",
                 username="%EMAILADDRESS%", authentication="password-cleartext")
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _add(parent: ElementTree.Element, **children: str) -> None:
    for name, text in children.items():
        ElementTree.SubElement(parent, name).text = text


def records(domain: str, hostname: str, reachable: dict[str, list[int]], *,
            receives: bool) -> Iterator[str]:
    """The lines for the domain's zone, each record below a sentence.

    :param receives: whether mail from other servers is taken.
    """
    yield f"; Where other servers deliver mail for {domain}."
    if receives:
        yield f"{domain}. IN MX 10 {hostname}."
    else:
        yield "; listeners.smtp is not on port 25 where others reach it: nobody can deliver here."
    priorities = {_IN: 0, _OUT: 0}
    for service in SERVICES:
        name = f"{service.label}._tcp.{domain}."
        yield f"; Where mail programs find the server for {service.sentence}."
        for port in reachable[service.label]:
            yield f"{name} IN SRV {priorities[service.element]} 1 {port} {hostname}."
            priorities[service.element] += 1
        if not reachable[service.label]:
            yield f"; listeners.{service.kind} is off, or cannot be reached from elsewhere."
            yield f"{name} IN SRV 0 0 0 ."
    yield "; There is no IMAP here; programs shall not look for it."
    for label in _ABSENT:
        yield f"{label}._tcp.{domain}. IN SRV 0 0 0 ."


@click.command()
@click.argument("domain", type=DOMAIN)
@click.option("--format", "form", type=click.Choice(["thunderbird", "srv"]),
              help="Print only the XML file, or only the records of the DNS.")
@click.option("--systemd", is_flag=True,
              help="The service runs by the systemd units of etc/, whose ports count instead of "
                   "[listeners].")
@click.option("--hostname", type=DOMAIN,
              help="The name that mail programs connect to [service.hostname].")
@place_options
def autoconfig(domain: str, form: str | None, systemd: bool, hostname: str | None) -> None:
    """Print what to publish for DOMAIN, so that mail programs set themselves up.

    Mail programs ask the web server of the domain for an XML file, or the DNS for SRV records; both
    are made from [listeners] of the configuration, or with --systemd from the ports that
    mailsvc.socket opens.  The certificate must be good for the name that they connect to.

    \b
    Example:
      mailsvc autoconfig example.org --systemd
      mailsvc autoconfig example.org --format thunderbird > config-v1.1.xml
    """
    found = settings()
    host = hostname or found.service.hostname
    listeners = UNITS if systemd else found.listeners
    reachable = ports(listeners)
    if host == "localhost" or "." not in host:
        click.echo(f"Note: other machines do not find {host}; give --hostname, or set "
                   "service.hostname", err=True)
    if form != "srv":
        for direction, kinds in (("fetch mail", "pop3s or pop3"),
                                 ("send mail", "submissions or submission")):
            element = _IN if direction == "fetch mail" else _OUT
            if not any(reachable[each.label] for each in SERVICES if each.element == element):
                message = (f"programs would find no server to {direction}: set listeners."
                           f"{kinds.replace(' or ', ' or listeners.')}; or if the service runs by "
                           "mailsvc.service and mailsvc.socket, whose ports count instead, add "
                           "--systemd")
                if form:
                    raise click.ClickException(message)
                click.echo(f"Note: {message}", err=True)
    smtp = any(_port(endpoint, 25) == 25 for endpoint in listeners.smtp)
    zone = "\n".join(records(domain, host, reachable, receives=smtp))
    xml = thunderbird(domain, host, reachable)
    if form is not None:
        click.echo(zone if form == "srv" else xml.rstrip("\n"))
        return
    click.echo(f"Into the zone of {domain} in the DNS:\n\n{zone}\n\n"
               f"On the web, as https://autoconfig.{domain}/mail/config-v1.1.xml, or as\n"
               f"https://{domain}/.well-known/autoconfig/mail/config-v1.1.xml, of the type\n"
               f"text/xml and for everybody to read:\n\n{xml}", nl=False)
