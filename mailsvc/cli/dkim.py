"""``mailsvc dkim``: the keys that sign what is sent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from mailsvc.cli.arguments import DOMAIN
from mailsvc.cli.listing import json_option, print_json, print_rows
from mailsvc.cli.place import data_directory, open_directory, place_options, settings
from mailsvc.dkim import Key, Keys
from mailsvc.names import DirectoryError
from mailsvc.ownership import remedy_for


@contextmanager
def _keys() -> Iterator[Keys]:
    root = data_directory() / "dkim"
    try:
        yield Keys(root)
    except DirectoryError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        place = Path(error.filename or root)
        remedy = remedy_for(place) if isinstance(error, PermissionError) else "see to it first"
        raise click.ClickException(
            f"{place} cannot be used: {error.strerror}; {remedy}") from error


def _is_served(domain: str) -> bool:
    try:
        with open_directory() as directory:
            return directory.domain(domain) is not None
    except click.ClickException:
        # Where there are accounts that cannot be looked at, nothing is known.
        return os.path.exists(settings().accounts.database)


def _print_records(keys: list[Key]) -> None:
    for key in keys:
        click.echo(key.zone_line)


@click.group()
def dkim() -> None:
    """Make and use the keys that sign what users send (DKIM).

    To begin, and again each year: "add" makes new keys and prints the records for the DNS.  When
    these are published, "use" signs with them.  When the mail signed with the old keys has arrived
    everywhere, a week later, "remove" those and take their records out of the DNS.

    \b
    Example:
      mailsvc dkim add example.org
      mailsvc dkim use example.org
    """


@dkim.command()
@click.argument("domain", type=DOMAIN)
@click.option("--algorithm", type=click.Choice(["both", "rsa", "ed25519"]), default="both",
              help="Of which kind; by default one of each, since some hosts know only RSA.")
@click.option("--selector", default="", help="Its name, for one key; by default of the date.")
@click.option("--bits", type=click.IntRange(1024, 4096), default=2048, show_default=True,
              help="The size of an RSA key.")
@click.option("--use", "at_once", is_flag=True, help="Sign with them at once, as in a test.")
@place_options
def add(domain: str, algorithm: str, selector: str, bits: int, at_once: bool) -> None:
    """Make keys for DOMAIN, and print their DNS records.

    \b
    Example:
      mailsvc dkim add example.org
    """
    if selector and algorithm == "both":
        raise click.UsageError("A selector names one key: give --algorithm too.")
    algorithms = ["rsa", "ed25519"] if algorithm == "both" else [algorithm]
    with _keys() as keys:
        made = [keys.add(domain, each, selector, bits=bits) for each in algorithms]
        if at_once:
            keys.use(domain, [key.selector for key in made])
    _print_records(made)
    if not _is_served(domain):
        click.echo(f"Note: {domain} is not served here, so that nobody sends as it; if it shall "
                   f"be: mailsvc domain add {domain}", err=True)
    if not at_once:
        click.echo("Publish these records, then: mailsvc dkim use " + " ".join(
            [domain, *(key.selector for key in made)]), err=True)


@dkim.command(name="list")
@json_option
@place_options
def list_(as_json: bool) -> None:
    """List the keys.

    The keys in JSON are domain, selector, algorithm, active, name and record.

    \b
    Example:
      mailsvc dkim list --json
    """
    with _keys() as keys:
        found = list(keys.all())
    if as_json:
        print_json([{"domain": key.domain, "selector": key.selector, "algorithm": key.algorithm,
                     "active": key.active, "name": key.name, "record": key.record}
                    for key in found])
        return
    print_rows(["domain", "selector", "algorithm", "signs"],
               [[key.domain, key.selector, key.algorithm, "yes" if key.active else "-"]
                for key in found])


@dkim.command()
@click.argument("domain", type=DOMAIN)
@place_options
def records(domain: str) -> None:
    """Print the DNS records of DOMAIN's keys, as lines of a zone file.

    \b
    Example:
      mailsvc dkim records example.org
    """
    with _keys() as keys:
        found = keys.of(domain)
    if not found:
        raise click.ClickException(f"{domain} has no keys; make some: mailsvc dkim add {domain}")
    _print_records(found)


@dkim.command()
@click.argument("domain", type=DOMAIN)
@click.argument("selectors", nargs=-1)
@click.option("--none", is_flag=True, help="Sign with no key any more.")
@place_options
def use(domain: str, selectors: tuple[str, ...], none: bool) -> None:
    """Sign DOMAIN's mail with these keys from now on, and with no others.

    Without SELECTORS it is the newest key of each algorithm.

    \b
    Example:
      mailsvc dkim use example.org r20261126 e20261126
    """
    with _keys() as keys:
        found = keys.of(domain)
        if not found:
            raise click.ClickException(
                f"{domain} has no keys; make some: mailsvc dkim add {domain}")
        newest = {key.algorithm: key.selector for key in found}
        chosen = [] if none else list(selectors) or sorted(newest.values())
        active = keys.use(domain, chosen)
    click.echo(f"Signing {domain} with " + ", ".join(key.selector for key in active)
               if active else f"Not signing {domain}")


@dkim.command()
@click.argument("domain", type=DOMAIN)
@click.argument("selector")
@place_options
def remove(domain: str, selector: str) -> None:
    """Remove a key that does not sign any more.

    \b
    Example:
      mailsvc dkim remove example.org r20251126
    """
    with _keys() as keys:
        removed = keys.remove(domain, selector)
    click.echo(f"Removed {removed.selector}; take {removed.name} out of the DNS")
