"""``mailsvc restore``: everything, or some mail, out of a snapshot."""

from __future__ import annotations

from pathlib import Path

import click

from mailsvc.backup import restore as restoring
from mailsvc.backup import snapshot
from mailsvc.backup.manifest import Damaged
from mailsvc.backup.restore import Refused, Restored
from mailsvc.cli.arguments import DOMAIN, MAILBOX
from mailsvc.cli.listing import json_option, print_json, print_rows
from mailsvc.cli.place import (
    explained,
    mail_root,
    open_directory,
    place_options,
    settings,
)
from mailsvc.cli.progress import progress
from mailsvc.mail import Account, Address


@click.command()
@click.argument("place", metavar="SNAPSHOT", type=click.Path(path_type=Path, exists=True))
@click.option("--everything", is_flag=True,
              help="Make a whole service in an empty data directory.")
@click.option("--account", "accounts", metavar="NAME@DOMAIN", type=MAILBOX, multiple=True,
              help="Add the mail of this account; may be given several times.")
@click.option("--domain", "domains", type=DOMAIN, multiple=True,
              help="Add the mail of all accounts of this domain.")
@click.option("--message", "messages", metavar="UIDL|MESSAGE-ID", multiple=True,
              help="With --account: only this message.")
@click.option("--dry-run", is_flag=True, help="Compare checksums and tell; change nothing.")
@json_option
@place_options
def restore(place: Path, everything: bool, accounts: tuple[Address, ...],
            domains: tuple[str, ...], messages: tuple[str, ...], dry_run: bool,
            as_json: bool) -> None:
    """Put back what a snapshot holds.

    SNAPSHOT is one, or a directory of which the newest is taken.

    With --account or --domain, mail is added to a service that may be running: what a mailbox has
    stays, what it lacks comes back, with the unique-ids of old, so that mail programs download
    nothing twice.  Accounts must be there.  With --everything, the service of --dir or --config
    must have no data yet, and be started afterwards.  Checksums are compared before anything is
    put anywhere.

    --json prints an array of objects with account, restored, there (what the mailbox had), octets
    and unique_ids; with --everything, an object with data and configuration (files that are left
    to you).

    \b
    Example:
      mailsvc restore /backup/mail --account alice@example.org
      mailsvc restore /backup/mail --account alice@example.org \\
          --message '<1@example.net>'
      mailsvc restore /backup/mail/20261127T215000Z --everything
    """
    if everything == bool(accounts or domains):
        raise click.UsageError("Give either --everything, or --account or --domain.")
    if messages and not accounts:
        raise click.UsageError("--message needs --account: whose message is it?")
    path = snapshot.latest(place)
    if path is None:
        raise click.ClickException(f"there is no whole snapshot in {place}; name where "
                                   "`mailsvc backup make` puts them")
    try:
        with explained(path):
            if everything:
                _everything(path, dry_run, as_json)
            else:
                _mail(path, accounts, domains, messages, dry_run, as_json)
    except (Damaged, Refused) as problem:
        raise click.ClickException(str(problem)) from problem


def _mail(path: Path, accounts: tuple[Address, ...], domains: tuple[str, ...],
          messages: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    chosen = _accounts(path, accounts, domains)
    with progress("octets") as tell:
        results = restoring.mail(path, mail_root(), settings().service.hostname, chosen,
                                 wanted=messages, dry_run=dry_run, progress=tell)
    if as_json:
        print_json([{"account": each.account, "restored": each.restored, "there": each.there,
                     "octets": each.octets, "unique_ids": each.unique_ids} for each in results])
        return
    print_rows(["account", "would restore" if dry_run else "restored", "were there", "octets"],
               [_row(each) for each in results])


def _row(each: Restored) -> list[str]:
    return [each.account, str(each.restored), str(each.there), str(each.octets)]


def _accounts(path: Path, accounts: tuple[Address, ...], domains: tuple[str, ...]
              ) -> list[Account]:
    """Those meant that are there; one that is in the snapshot and not there is refused."""
    with open_directory() as directory:
        chosen: dict[str, Account] = {}
        for address in accounts:
            account = directory.account(address.local_part, address.domain)
            if account is None:
                raise Refused(f"there is no account {address}; first add it with: mailsvc account "
                              f"add {address}")
            chosen[account.name] = account
        absent = []
        if domains:
            for (domain, local_part), _ in restoring.mailboxes(path):
                if domain in domains:
                    account = directory.account(local_part, domain)
                    if account is None:
                        absent.append(f"{local_part}@{domain}")
                    else:
                        chosen[account.name] = account
        if absent:
            raise Refused("the snapshot has mail of accounts that are not there: "
                          + ", ".join(absent[:5])
                          + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")
                          + "; first add each with: mailsvc account add NAME, or name those that "
                          "are there with --account")
        if not chosen:
            raise Refused(f"{path} has no mail of {', '.join(domains)}; look in another: "
                          "mailsvc backup list")
    return list(chosen.values())


def _everything(path: Path, dry_run: bool, as_json: bool) -> None:
    meant = settings()
    data = Path(meant.service.data)
    with progress("octets") as tell:
        configuration = restoring.everything(
            path, data, mail_root(), Path(meant.accounts.database), dry_run=dry_run, progress=tell)
    if as_json:
        print_json({"data": str(data), "configuration": [str(each) for each in configuration]})
        return
    click.echo(f"{path} is whole and can be restored into {data}" if dry_run else
               f"{path} restored into {data}, which belongs to user {data.stat().st_uid}; "
               "give it to the user that runs mailsvc if that is another")
    for each in configuration:
        click.echo(f"left to you: {each}")
