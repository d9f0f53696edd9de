"""``mailsvc undelete``: deleted mail that was kept for a time."""

from __future__ import annotations

import datetime
from contextlib import suppress
from pathlib import Path

import click

from mailsvc import plain
from mailsvc.cli.arguments import MAILBOX
from mailsvc.cli.listing import json_option, print_json, print_rows
from mailsvc.cli.place import explained, mail_root, open_directory, place_options, settings
from mailsvc.mail import Address
from mailsvc.ownership import acting_as_owner_of
from mailsvc.plain import Plain
from mailsvc.store.undeletion import Deleted, Undeletion


@click.command()
@click.argument("account", type=MAILBOX, metavar="NAME@DOMAIN")
@click.option("--list", "only_list", is_flag=True, help="List what can be had back; do nothing.")
@click.option("--since", metavar="YYYY-MM-DD", type=click.DateTime(["%Y-%m-%d"]),
              help="Only what was deleted on this day (UTC) or later.")
@click.option("--message", "wanted", metavar="UIDL|MESSAGE-ID", multiple=True,
              help="Only this message; may be given several times.")
@json_option
@place_options
def undelete(account: Address, only_list: bool, since: datetime.datetime | None,
             wanted: tuple[str, ...], as_json: bool) -> None:
    """Put mail that POP3 clients deleted back into the mailbox.

    Deleted mail is kept for maildir.keep_deleted_days, by default not at all.  What comes back has
    its old unique-id: a client that still remembers it does not download it again by itself.  The
    service may be running.

    --json prints an array of objects with deleted (the day), unique_id, octets, from, subject and
    message_id.

    \b
    Example:
      mailsvc undelete bob@example.org --list
      mailsvc undelete bob@example.org --since 2026-11-20
    """
    with open_directory() as directory:
        found = directory.account(account.local_part, account.domain)
    if found is None:
        raise click.ClickException(f"there is no account {account}; see `mailsvc account list`")
    root = mail_root()
    undeletion = Undeletion(root, found, settings().service.hostname)
    with explained(root):
        messages = _messages(root, undeletion, f"{since:%Y-%m-%d}" if since else "", set(wanted))
        if wanted and not messages:
            raise click.ClickException(f"no message {', '.join(wanted)} is kept; see `mailsvc "
                                       f"undelete {found.name} --list`")
        if messages and not only_list:
            undeletion.put_back(each for each, _ in messages)
    if as_json:
        print_json([told for _, told in messages])
    elif only_list:
        print_rows(["deleted", "unique-id", "octets", "from", "subject"], [
            [str(told[key]) for key in ("deleted", "unique_id", "octets", "from", "subject")]
            for _, told in messages])
    else:
        click.echo(f"{len(messages)} messages are back")
    if not messages and not settings().maildir.keep_deleted_days:
        click.echo("Note: deleted mail is not kept; maildir.keep_deleted_days is 0", err=True)


def _messages(root: Path, undeletion: Undeletion, since: str, wanted: set[str]
              ) -> list[tuple[Deleted, Plain]]:
    """What is kept and is meant, the newest first."""
    names = {text.strip("<>") for text in wanted}
    found: list[tuple[Deleted, Plain]] = []
    if not root.exists():  # the service has not run yet
        return found
    for each in undeletion.messages(since):
        with acting_as_owner_of(root), suppress(FileNotFoundError):  # swept
            told = plain.deleted(each)
            if not wanted or each.unique_id in wanted or told["message_id"] in names:
                found.append((each, told))
    return found
