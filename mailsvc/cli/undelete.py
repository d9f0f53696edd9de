"""``mailsvc undelete``: deleted mail that was kept for a time."""

from __future__ import annotations

import datetime

import click

from mailsvc.cli.arguments import MAILBOX
from mailsvc.cli.listing import json_option, print_json, print_rows
from mailsvc.cli.place import explained, mail_root, open_directory, place_options, settings
from mailsvc.mail import Address
from mailsvc.store.undelete import DeletedMail


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
    with explained(root):
        mail = DeletedMail(root, found, settings().service.hostname)
        messages = mail.messages(since.strftime("%Y%m%d") if since is not None else "", wanted)
        if wanted and not messages:
            raise click.ClickException(f"no message {', '.join(wanted)} is kept; see `mailsvc "
                                       f"undelete {found.name} --list`")
        if not only_list:
            mail.put_back(messages)
    if as_json:
        print_json([each.plain() for each in messages])
    elif only_list:
        print_rows(["deleted", "unique-id", "octets", "from", "subject"],
                   [[each.day, each.unique_id, str(each.octets), each.sender, each.subject]
                    for each in messages])
    else:
        click.echo(f"{len(messages)} messages are back")
    if not messages and not settings().maildir.keep_deleted_days:
        click.echo("Note: deleted mail is not kept; maildir.keep_deleted_days is 0", err=True)
