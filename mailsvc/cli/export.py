"""``mailsvc export``: a mailbox written to files."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from mailsvc.cli.arguments import MAILBOX
from mailsvc.cli.listing import json_option, print_json
from mailsvc.cli.place import explained, mail_root, open_directory, place_options
from mailsvc.cli.progress import progress
from mailsvc.export import Target
from mailsvc.mail import Address


@click.command()
@click.argument("account", type=MAILBOX, metavar="NAME@DOMAIN")
@click.argument("target", metavar="TARGET")
@json_option
@place_options
def export(account: Address, target: str, as_json: bool) -> None:
    """Write the mail of an account to TARGET.

    TARGET is mbox:FILE, maildir:DIR, tar:FILE, or tar:- for standard output; it must not be
    there yet.  A maildir, and the
    one in a tar archive, keeps dates, flags, folders, and the unique-ids for `mailsvc import`; an
    mbox keeps the dates.  Nothing changes in the mailbox, and the service may be running.

    --json prints an object with messages and octets.

    \b
    Example:
      mailsvc export bob@example.org mbox:bob.mbox
      mailsvc export bob@example.org tar:- | gzip >bob.tar.gz
    """
    scheme, _, place = target.partition(":")
    if scheme not in ("mbox", "maildir", "tar") or not place:
        raise click.UsageError(f"{target!r} is no target; expected mbox:FILE, maildir:DIR or "
                               "tar:FILE")
    if place == "-" and (scheme != "tar" or as_json):
        raise click.UsageError("only tar:- goes to standard output, and nothing beside it; "
                               "name a file, or leave out --json")
    with open_directory() as directory:
        found = directory.account(account.local_part, account.domain)
    if found is None:
        raise click.ClickException(f"there is no account {account}; see `mailsvc account list`")
    home = os.fsencode(mail_root() / found.domain / found.local_part)
    with explained(Path(place)), progress("messages") as tell:
        writing = Target(home, tell)
        if place == "-":
            writing.tar_to(sys.stdout.buffer)
        elif scheme == "tar":
            writing.tar(Path(place))
        elif scheme == "mbox":
            writing.mbox(Path(place))
        else:
            writing.maildir(Path(place))
    if as_json:
        print_json({"messages": writing.messages, "octets": writing.octets})
    else:
        click.echo(f"{writing.messages} messages, {writing.octets} octets, to {target}",
                   err=place == "-")
