"""``mailsvc undelete``: deleted mail that was kept for a time."""

from __future__ import annotations

import datetime
import os
import re
from dataclasses import dataclass
from email import policy
from email.parser import BytesHeaderParser
from pathlib import Path
from typing import Any

import click

from mailsvc.cli.arguments import MAILBOX
from mailsvc.cli.listing import json_option, print_json, print_rows
from mailsvc.cli.place import explained, mail_root, open_directory, place_options, settings
from mailsvc.mail import Account, Address
from mailsvc.ownership import acting_as_owner_of
from mailsvc.store import deleted, filenames
from mailsvc.store.deposit import Deposit

_HEAD = 65_536
_BLOCK = 256 * 1024
_INFO = re.compile(rb"2,([A-Za-z]*)")


@dataclass(frozen=True, slots=True)
class _Message:
    """A message that can be had back; *day* in ISO 8601."""

    day: str
    path: bytes
    name: bytes
    unique_id: str
    octets: int
    sender: str
    subject: str
    message_id: str


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
    deposit = Deposit(root, found, settings().service.hostname)
    with explained(root):
        with acting_as_owner_of(root):
            messages = _messages(root, found, deposit, since, set(wanted))
        if wanted and not messages:
            raise click.ClickException(f"no message {', '.join(wanted)} is kept; see `mailsvc "
                                       f"undelete {found.name} --list`")
        if not only_list:
            _put_back(root, deposit, messages)
    if as_json:
        print_json([_described(each) for each in messages])
    elif only_list:
        print_rows(["deleted", "unique-id", "octets", "from", "subject"],
                   [[each.day, each.unique_id, str(each.octets), each.sender, each.subject]
                    for each in messages])
    else:
        click.echo(f"{len(messages)} messages are back")
    if not messages and not settings().maildir.keep_deleted_days:
        click.echo("Note: deleted mail is not kept; maildir.keep_deleted_days is 0", err=True)


def _messages(root: Path, account: Account, deposit: Deposit, since: datetime.datetime | None,
              wanted: set[str]) -> list[_Message]:
    """What is kept and is not in the mailbox, each once, the newest first."""
    seen = {id.decode("ascii") for id in deposit.unique_ids()}
    messages = []
    names = {text.strip("<>") for text in wanted}
    home = os.fsencode(root / account.domain / account.local_part)
    for kept in deleted.kept(home):
        if since is not None and kept.day < since.strftime("%Y%m%d"):
            break
        unique_id = filenames.unique_id(kept.name).decode("ascii")
        if unique_id in seen:
            continue
        message = _read(kept, unique_id)
        if message is not None and (
                not wanted or unique_id in wanted or message.message_id in names):
            seen.add(unique_id)
            messages.append(message)
    return messages


def _read(kept: deleted.Kept, unique_id: str) -> _Message | None:
    try:
        with open(kept.path, "rb") as file:
            octets, head = os.fstat(file.fileno()).st_size, file.read(_HEAD)
    except FileNotFoundError:
        return None  # swept
    fields = BytesHeaderParser(policy=policy.compat32).parsebytes(head)
    sender, subject, message_id = (
        " ".join("".join(c if c.isprintable() else " " for c in str(fields.get(name, ""))).split())
        for name in ("From", "Subject", "Message-ID"))
    day = f"{kept.day[:4]}-{kept.day[4:6]}-{kept.day[6:]}"
    return _Message(day, kept.path, kept.name, unique_id, octets, sender, subject,
                    message_id.strip("<>"))


def _put_back(root: Path, deposit: Deposit, messages: list[_Message]) -> None:
    back = []
    try:
        for each in messages:
            info = _INFO.fullmatch(each.name.partition(b":")[2])
            with acting_as_owner_of(root):
                file = open(each.path, "rb")  # noqa: SIM115 - the next line closes it
            with file:
                deposit.put(
                    iter(lambda: file.read(_BLOCK), b""),  # noqa: B023 - read before the next
                    when=os.fstat(file.fileno()).st_mtime, seconds=filenames.seconds(each.name),
                    unique_id=each.unique_id.encode("ascii"),
                    flags=info[1].decode("ascii") if info else "")
            back.append(each.path)
    finally:
        deposit.settle()
        with acting_as_owner_of(root):
            for path in back:
                os.unlink(path)


def _described(each: _Message) -> dict[str, Any]:
    return {"deleted": each.day, "unique_id": each.unique_id, "octets": each.octets,
            "from": each.sender, "subject": each.subject, "message_id": each.message_id}
