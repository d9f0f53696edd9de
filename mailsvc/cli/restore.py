"""``mailsvc restore``: everything, or some mail, out of a snapshot."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import click

from mailsvc.backup import restore as restoring
from mailsvc.backup import snapshot
from mailsvc.backup.former import Former
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
@click.option("--with-accounts", is_flag=True,
              help="Make accounts that are gone again, as they were.")
@click.option("--dry-run", is_flag=True, help="Compare checksums and tell; change nothing.")
@json_option
@place_options
def restore(place: Path, everything: bool, accounts: tuple[Address, ...],
            domains: tuple[str, ...], messages: tuple[str, ...], with_accounts: bool,
            dry_run: bool, as_json: bool) -> None:
    """Put back what a snapshot holds; SNAPSHOT is one, or a directory of which the newest is taken.

    With --account or --domain, mail is added to a service that may be running: what a mailbox has
    stays, what it lacks comes back, with the unique-ids of old, so that mail programs download
    nothing twice.  Accounts must be there, or --with-accounts makes them again, with their
    passwords, roles and quotas; not with aliases, nor as administrators.  With --everything, the
    service of --dir or --config must have no data yet, and be started afterwards.  Checksums are
    compared before anything is put anywhere.

    --json prints an array of objects with account, made (whether it was made again), restored,
    there (what the mailbox had), octets and unique_ids; with --everything, an object with data and
    configuration (files that are left to you).

    \b
    Example:
      mailsvc restore /backup/mail --account alice@example.org
      mailsvc restore /backup/mail --account alice@example.org --message '<1@example.net>'
      mailsvc --dir /var/lib/mailsvc restore /backup/mail/20261127T215000Z --everything
    """
    if everything == bool(accounts or domains):
        raise click.UsageError("Give either --everything, or --account or --domain.")
    if with_accounts and everything:
        raise click.UsageError("--everything brings all accounts back; leave out --with-accounts.")
    if messages and not accounts:
        raise click.UsageError("--message needs --account: whose message is it?")
    path = snapshot.latest(place)
    if path is None:
        raise click.ClickException(f"there is no whole snapshot in {place}")
    try:
        with explained(path):
            if everything:
                _everything(path, dry_run, as_json)
            else:
                _mail(path, accounts, domains, messages, with_accounts, dry_run, as_json)
    except (Damaged, Refused) as problem:
        raise click.ClickException(str(problem)) from problem


def _mail(path: Path, accounts: tuple[Address, ...], domains: tuple[str, ...],
          messages: tuple[str, ...], with_accounts: bool, dry_run: bool, as_json: bool) -> None:
    chosen, absent = _accounts(path, accounts, domains)
    made = []
    if absent and not with_accounts:
        _refuse(absent)
    if absent:
        made = _made(path, absent, dry_run)
        chosen += made
    with progress("octets") as tell:
        results = restoring.mail(path, mail_root(), settings().service.hostname, chosen,
                                 wanted=messages, dry_run=dry_run, progress=tell)
    if as_json:
        names = {account.name for account in made}
        print_json([{"account": each.account, "made": each.account in names,
                     "restored": each.restored, "there": each.there, "octets": each.octets,
                     "unique_ids": each.unique_ids} for each in results])
        return
    print_rows(["account", "would restore" if dry_run else "restored", "were there", "octets"],
               [_row(each) for each in results])


def _row(each: Restored) -> list[str]:
    return [each.account, str(each.restored), str(each.there), str(each.octets)]


def _accounts(path: Path, accounts: tuple[Address, ...], domains: tuple[str, ...]
              ) -> tuple[list[Account], list[Address]]:
    """Those meant that are there, and those that are not."""
    meant = list(accounts)
    if domains:
        found = [Address(local_part, domain)
                 for (domain, local_part), _ in restoring.mailboxes(path) if domain in domains]
        if not found and not accounts:
            raise Refused(f"{path} has no mail of {', '.join(domains)}")
        meant += found
    with open_directory() as directory:
        there: dict[str, Account] = {}
        absent: dict[str, Address] = {}
        for address in meant:
            account = directory.account(address.local_part, address.domain)
            if account is None:
                absent[str(address)] = address
            else:
                there[account.name] = account
    return list(there.values()), list(absent.values())


def _made(path: Path, absent: list[Address], dry_run: bool) -> list[Account]:
    """Accounts made again as *path* has them, which says so."""
    made = []
    with Former(path) as former, open_directory() as directory:
        for address in absent:
            account = former.account(address)
            if account is None:
                raise Refused(f"there is no account {address}, and {path} has none; first add it "
                              f"with: mailsvc account add {address}")
            made.append(account)
        for account in made if not dry_run else ():
            lost = former.make(account, directory)
            click.echo(f"Made {account.name} again, with its password."
                       + (f" These app passwords are of another accounts file, and have to be made "
                          f"anew: {', '.join(lost)}." if lost else ""), err=True)
    return made


def _refuse(absent: list[Address]) -> NoReturn:
    names = ", ".join(map(str, absent[:5])) + (
        f" and {len(absent) - 5} more" if len(absent) > 5 else "")
    raise Refused(f"these accounts are not there: {names}; make them again as they were with "
                  f"--with-accounts, or first add each with: mailsvc account add {absent[0]}")


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
