"""``mailsvc domain``: the domains whose mail is ours."""

from __future__ import annotations

import os
from pathlib import Path

import click

from mailsvc import plain
from mailsvc.cli.arguments import DOMAIN, MAILBOX
from mailsvc.cli.listing import json_option, print_json, print_rows
from mailsvc.cli.place import open_directory, place_options, settings
from mailsvc.cli.records import records
from mailsvc.mail import Address


@click.group()
def domain() -> None:
    """Add, list and remove domains; print their DNS records.

    Mail for any other domain is refused.  A domain may have an account that gets mail for unknown
    names.
    """


domain.add_command(records)


@domain.command()
@click.argument("name", type=DOMAIN, metavar="DOMAIN")
@click.option("--separators", metavar="CHARACTERS",
              help="Characters that each begin a subaddress, such as + in bob+sales; empty for "
              "none [the setting routing.separators].")
@place_options
def add(name: str, separators: str | None) -> None:
    """Take on the mail of a domain.  The first one makes the file of accounts.

    \b
    Example:
      mailsvc domain add example.org
    """
    home = Path(settings().accounts.database).parent
    made_home = not home.exists()
    with open_directory(create=True) as directory:
        made = directory.add_domain(name, separators=separators)
        click.echo(f"Added domain {made.name}; make an account in it with: "
                   f"mailsvc account add NAME@{made.name}")
        if made_home and os.geteuid() == 0:
            click.echo(f"Note: made {home}, which belongs to {home.owner()} as yet; give it to the "
                       f"user that will run the service: chown -R USER {home}", err=True)


@domain.command(name="list")
@json_option
@place_options
def list_(as_json: bool) -> None:
    """List the domains.

    The keys in JSON are name, catch_all (an address or null) and separators (null for the setting
    routing.separators).

    \b
    Example:
      mailsvc domain list
    """
    with open_directory() as directory:
        domains = list(directory.domains())
    if as_json:
        print_json(list(map(plain.domain, domains)))
        return
    default = settings().routing.separators
    print_rows(["name", "catch-all", "separators"],
               [[each.name, str(each.catch_all or "-"),
                 (each.separators or "none") if each.separators is not None
                 else f"{default or 'none'} (default)"]
                for each in domains])


@domain.command()
@click.argument("name", type=DOMAIN, metavar="DOMAIN")
@place_options
def remove(name: str) -> None:
    """Give up a domain that has no accounts and aliases left.

    \b
    Example:
      mailsvc domain remove example.org
    """
    with open_directory() as directory:
        removed = directory.remove_domain(name)
        click.echo(f"Removed domain {removed.name}; mail for it is refused now")


@domain.command(name="catch-all")
@click.argument("name", type=DOMAIN, metavar="DOMAIN")
@click.argument("target", type=MAILBOX, required=False, metavar="[TARGET]")
@click.option("--none", "refuse", is_flag=True, help="Refuse mail for unknown names again.")
@place_options
def catch_all(name: str, target: Address | None, refuse: bool) -> None:
    """Give mail for all unknown names of a domain to TARGET.

    TARGET is an account or alias here.

    \b
    Example:
      mailsvc domain catch-all example.org alice@example.org
      mailsvc domain catch-all example.org --none
    """
    if (target is None) != refuse:
        raise click.UsageError("Give either TARGET or --none.")
    with open_directory() as directory:
        changed = directory.set_catch_all(name, target)
        click.echo(f"Mail for unknown names of {changed.name} "
                   + (f"goes to {changed.catch_all}" if changed.catch_all else "is refused"))
