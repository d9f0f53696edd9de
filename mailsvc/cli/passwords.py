"""``mailsvc account app-password``: the passwords that single programs log in with."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from mailsvc import plain
from mailsvc.cli.arguments import MAILBOX
from mailsvc.cli.listing import json_option, print_json, print_rows
from mailsvc.cli.place import open_directory, place_options, settings
from mailsvc.directory import SqliteDirectory
from mailsvc.logins import PROTOCOLS, Credentials, StoredPassword
from mailsvc.mail import Address
from mailsvc.names import DirectoryError
from mailsvc.passwords import PasswordHasher, app_verifier, new_app_password, scram_salt


class _Expiry(click.ParamType):
    """The last second that a password is good for, Unix time."""

    name = "90d|YYYY-MM-DD"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            if days := re.fullmatch(r"([0-9]{1,5})d", value, re.ASCII):
                expires = int(time.time()) + 86_400 * int(days[1])
            else:
                # The end of that day.
                day = datetime.strptime(value, "%Y-%m-%d").replace(tzinfo=UTC)
                expires = int((day + timedelta(days=1)).timestamp()) - 1
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is no time; expected days such as 90d, or the last day (in UTC) "
                      "such as 2027-01-31", param, ctx)
        if expires <= time.time():
            self.fail(f"{value!r} is over; expected a time to come", param, ctx)
        return expires


def _credentials(directory: SqliteDirectory, name: Address) -> Credentials:
    found = directory.credentials(f"{name.local_part}@{name.domain}")
    if found is None:
        raise DirectoryError(f"there is no account {name}", "see `mailsvc account list`")
    return found


@click.group(name="app-password")
def app_password() -> None:
    """Make, list and remove app passwords.

    An app password is made up here, for one program or device, and is shown once.  It can be held
    to a protocol, to networks and to a time, and be removed without touching any other.
    """


@app_password.command()
@click.argument("name", type=MAILBOX, metavar="NAME@DOMAIN")
@click.argument("label")
@click.option("--protocol", "protocols", type=click.Choice(PROTOCOLS), multiple=True,
              help="What it is for: pop3 to fetch, submission to send; may be repeated [both].")
@click.option("--network", "networks", metavar="CIDR", multiple=True,
              help="Where it may be used from; may be repeated [everywhere].")
@click.option("--expires", type=_Expiry(), metavar="90d|YYYY-MM-DD",
              help="How long it is good for, in days, or its last day in UTC [for ever].")
@click.option("--apop", is_flag=True,
              help="Keep it readable too, in the accounts' file, as APOP and CRAM-MD5 need it.")
@place_options
def add(name: Address, label: str, protocols: tuple[str, ...], networks: tuple[str, ...],
        expires: int | None, apop: bool) -> None:
    """Make an app password and print it, this once.

    LABEL says what it is for.  Only the password goes to standard output.

    \b
    Example:
      mailsvc account app-password add alice@example.org phone --expires 90d
      mailsvc account app-password add alice@example.org "office printer" \\
          --protocol submission --network 192.0.2.0/24
    """
    with open_directory() as directory:
        account = _credentials(directory, name).account
        password = new_app_password()
        prepared = password.encode()
        scram = PasswordHasher(settings().passwords, None).derive_scram(
            prepared, scram_salt(directory, account.name))
        # None is left of which nobody was shown the password.
        with directory.transaction():
            made = directory.passwords.add(account, StoredPassword(
                label, app_verifier(directory, prepared), scram, password if apop else None,
                frozenset(protocols), networks, expires))
            click.echo(password)
        click.echo(f"Made app password {made.label!r} of {account.name}; it is not shown again. "
                   "Log in with the account's name and it.", err=True)


@app_password.command(name="list")
@click.argument("name", type=MAILBOX, metavar="NAME@DOMAIN")
@json_option
@place_options
def list_(name: Address, as_json: bool) -> None:
    """List an account's app passwords; themselves they cannot be shown.

    The keys in JSON are label; protocols and networks (empty for all); expires, made and used
    (in UTC as 2027-01-31T23:59:59Z, or null); used_from (an address, or null); expired and apop
    (true or false).

    \b
    Example:
      mailsvc account app-password list alice@example.org
    """
    with open_directory() as directory:
        passwords = _credentials(directory, name).app_passwords
    if as_json:
        print_json(list(map(plain.app_password, passwords)))
        return
    print_rows(["label", "protocols", "networks", "expires", "last used", "from"], [
        [each.label, ", ".join(sorted(each.protocols)) or "all",
         ", ".join(each.networks) or "all",
         "expired" if plain.is_over(each) else _minute(each.expires), _minute(each.used),
         each.used_from or "-"] for each in passwords])


def _minute(seconds: int | None) -> str:
    return "-" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime(
        "%Y-%m-%d %H:%M")


@app_password.command()
@click.argument("name", type=MAILBOX, metavar="NAME@DOMAIN")
@click.argument("label")
@place_options
def remove(name: Address, label: str) -> None:
    """Remove an app password.  The next login with it fails.

    \b
    Example:
      mailsvc account app-password remove alice@example.org phone
    """
    with open_directory() as directory:
        account = _credentials(directory, name).account
        removed = directory.passwords.remove(account, label)
        click.echo(f"Removed app password {removed.label!r} of {account.name}")
