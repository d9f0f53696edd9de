"""``mailsvc alias``: names whose mail goes to accounts."""

from __future__ import annotations

import click

from mailsvc import plain
from mailsvc.cli.arguments import MAILBOX
from mailsvc.cli.listing import json_option, print_json, print_rows
from mailsvc.cli.place import open_directory, place_options
from mailsvc.mail import Address


@click.group()
def alias() -> None:
    """Make, list and remove aliases.

    An alias NAME@DOMAIN leads mail to accounts and other aliases.  Nobody logs in to it.
    """


@alias.command()
@click.argument("name", type=MAILBOX, metavar="NAME@DOMAIN")
@click.argument("targets", type=MAILBOX, nargs=-1, required=True, metavar="TARGET...")
@click.option("--moved", is_flag=True,
              help="Deliver nothing; tell senders that the mailbox is now TARGET, anywhere.")
@click.option("--replace", is_flag=True, help="Give an alias that exists these targets instead.")
@place_options
def add(name: Address, targets: tuple[Address, ...], moved: bool, replace: bool) -> None:
    """Lead the mail for NAME@DOMAIN to each TARGET.

    A TARGET is an account or an alias here, perhaps with a subaddress (bob+sales@example.org), or
    an address elsewhere, to which the mail is forwarded.  An alias with the name of an account
    takes that account's mail; name the account itself among the targets to keep a copy there.

    \b
    Example:
      mailsvc alias add sales@example.org alice@example.org bob@example.org
      mailsvc alias add --moved carol@example.org carol@example.net
    """
    with open_directory() as directory:
        made = directory.add_alias(name, targets, moved=moved, replace=replace)
        click.echo(f"{made.name} -> {_targets(made.targets)}{' (moved)' if moved else ''}")
        account = directory.account(made.local_part, made.domain)
        if account and all(directory.account(target.local_part, target.domain) != account
                           for target in made.targets):
            click.echo(f"Note: account {account.name} gets no mail now; to keep a copy there, name "
                       "it among the targets", err=True)


def _targets(targets: tuple[Address, ...]) -> str:
    return ", ".join(map(str, targets))


@alias.command(name="list")
@json_option
@place_options
def list_(as_json: bool) -> None:
    """List the aliases.

    The keys in JSON are name, targets (an array) and moved (true or false).

    \b
    Example:
      mailsvc alias list --json
    """
    with open_directory() as directory:
        aliases = list(directory.aliases())
    if as_json:
        print_json(list(map(plain.alias, aliases)))
        return
    print_rows(["name", "targets", "moved"],
               [[each.name, _targets(each.targets), "yes" if each.moved else "-"]
                for each in aliases])


@alias.command()
@click.argument("name", type=MAILBOX, metavar="NAME@DOMAIN")
@place_options
def remove(name: Address) -> None:
    """Remove an alias.

    \b
    Example:
      mailsvc alias remove sales@example.org
    """
    with open_directory() as directory:
        removed = directory.remove_alias(name)
        click.echo(f"Removed alias {removed.name}, which led to {_targets(removed.targets)}")
