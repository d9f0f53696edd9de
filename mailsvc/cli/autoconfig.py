"""``mailsvc autoconfig``: what to publish so that mail programs find a domain's settings.

From the listeners of the configuration, or, where the systemd units of ``etc/`` are used, from the
ports that those open in the place of its listeners: the XML file that Thunderbird, and others after
it, fetch from ``autoconfig.DOMAIN`` or below ``/.well-known/``, and the records of the DNS
(RFC 6186, RFC 8314; :mod:`mailsvc.zone`).

Nothing unencrypted is published: where TLS begins by STARTTLS or STLS, programs are told to insist
on it.  Nor are Unix sockets, and endpoints on loopback (:mod:`mailsvc.reach`), for nobody else can
connect to them.
"""

from __future__ import annotations

from xml.etree import ElementTree

import click

from mailsvc import zone
from mailsvc.cli.arguments import DOMAIN
from mailsvc.cli.place import place_options, settings
from mailsvc.reach import IN, OUT, SERVICES, UNITS, ports, receives
from mailsvc.zone import Zone


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


def records(found: Zone) -> str:
    """The lines for the domain's zone, each record below a sentence."""
    exchanger = zone.text(found.exchanger(), found.domain) or (
        f"; Where other servers deliver mail for {found.domain}.\n"
        "; listeners.smtp is not on port 25 where others reach it: nobody can deliver here.")
    return f"{exchanger}\n{zone.text(found.of_programs(), found.domain)}"


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
    """Print what lets mail programs set themselves up for DOMAIN.

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
            element = IN if direction == "fetch mail" else OUT
            if not any(reachable[each.label] for each in SERVICES if each.element == element):
                message = (f"programs would find no server to {direction}: set listeners."
                           f"{kinds.replace(' or ', ' or listeners.')}; or if the service runs by "
                           "mailsvc.service and mailsvc.socket, whose ports count instead, add "
                           "--systemd")
                if form:
                    raise click.ClickException(message)
                click.echo(f"Note: {message}", err=True)
    lines = records(Zone(domain, host, receives=receives(listeners), reachable=reachable))
    xml = thunderbird(domain, host, reachable)
    if form is not None:
        click.echo(lines if form == "srv" else xml.rstrip("\n"))
        return
    click.echo(f"Into the zone of {domain} in the DNS:\n\n{lines}\n\n"
               f"On the web, as https://autoconfig.{domain}/mail/config-v1.1.xml, or as\n"
               f"https://{domain}/.well-known/autoconfig/mail/config-v1.1.xml, of the type\n"
               f"text/xml and for everybody to read:\n\n{xml}", nl=False)
