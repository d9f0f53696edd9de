"""``mailsvc domain records``: what has to be published in the DNS for a domain, to paste."""

from __future__ import annotations

import ipaddress
from typing import Any

import click

from mailsvc import plain, zone
from mailsvc.certificates import CertificateProblem
from mailsvc.cli.arguments import DOMAIN
from mailsvc.cli.listing import json_option, print_json
from mailsvc.cli.place import place_options, settings
from mailsvc.names import DirectoryError
from mailsvc.records import zone_of
from mailsvc.zone import Zone


class _IPAddress(click.ParamType):
    name = "ADDRESS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return str(ipaddress.ip_address(value))
        except ValueError:
            self.fail(f"{value!r} is no IP address; expected one such as 192.0.2.7 or 2001:db8::7",
                      param, ctx)


IP_ADDRESS = _IPAddress()


def text_of(found: Zone) -> str:
    """The records and the policy, as a file that people read and a name server takes."""
    notes = []
    if not found.addresses:
        notes.append("; The address of this host as others see it cannot be told from here: give "
                     "--address, or\n; add its A and AAAA records, and the name that the address "
                     "leads back to (PTR), yourself.")
    if not found.receives:
        notes.append("; listeners.smtp is not on port 25 where others reach it: nobody can deliver "
                     "here,\n; so there is no MX record.")
    if not found.keys:
        notes.append("; There are no keys that sign what is sent: mailsvc dkim add "
                     + found.domain)
    policy = "".join(f";     {line}\n" for line in found.policy.splitlines())
    return "\n".join([
        f"; The records of {found.domain} and {found.hostname}, each below what it is for.",
        "; A name server takes them as they are; those behind a semicolon belong into other zones.",
        "; Where a form asks for the text of a TXT record, join its strings without quotes.",
        *notes, zone.text(found.records(), found.domain), *([
            f"; The file {found.policy_url}:\n{policy}"
            "; Change its mode to enforce (--enforce) when the certificate is one that everybody "
            "trusts."] if found.receives else [])]) + "\n"


@click.command()
@click.argument("domain", type=DOMAIN)
@click.option("--address", "addresses", type=IP_ADDRESS, multiple=True,
              help="An address of this host, as others see it; may be repeated [told from here].")
@click.option("--hostname", type=DOMAIN, help="What this host is called [service.hostname].")
@click.option("--systemd", is_flag=True,
              help="The service runs by the systemd units of etc/, whose ports count instead of "
                   "[listeners].")
@click.option("--enforce", is_flag=True,
              help="Let the MTA-STS policy be one that is enforced, no test any more.")
@click.option("--tlsa", is_flag=True,
              help="Print TLSA records for the certificates too (DANE); for signed zones.")
@json_option
@place_options
def records(domain: str, addresses: tuple[str, ...], hostname: str | None, systemd: bool,
            enforce: bool, tlsa: bool, as_json: bool) -> None:
    """Print what to publish in the DNS for DOMAIN.

    That is MX, SPF, DKIM, DMARC, MTA-STS and the rest: lines of a zone file, each below a sentence
    that says what it is for.  `mailsvc doctor` tells which of them are there.

    The keys in JSON are records, each with name, type, value (of TXT the whole text) and meaning;
    and policy, null or an object with url and text.

    \b
    Example:
      mailsvc domain records example.org --address 192.0.2.7
      mailsvc domain records example.org --json |
          jq -r '.records[] | select(.type == "TXT").value'
    """
    try:
        found = zone_of(settings(), domain, addresses=addresses, hostname=hostname or "",
                        systemd=systemd, enforced=enforce, tlsa=tlsa)
    except (DirectoryError, CertificateProblem) as problem:
        raise click.ClickException(str(problem)) from problem
    if as_json:
        print_json(plain.zone(found))
    else:
        click.echo(text_of(found), nl=False)
    if "." not in found.hostname:
        click.echo(f"Note: other machines do not find {found.hostname}; give --hostname, or set "
                   "service.hostname", err=True)
