"""``mailsvc account``: the mailboxes that people log in to."""

from __future__ import annotations

import sys
from typing import Any

import click

from mailsvc import plain
from mailsvc.cli.arguments import (
    BYTE_ORDER_MARK,
    MAILBOX,
    OCTETS,
    octets_text,
    password_options,
)
from mailsvc.cli.listing import json_option, print_json, print_rows
from mailsvc.cli.passwords import app_password
from mailsvc.cli.place import (
    Command,
    held,
    mail_of,
    open_directory,
    place_options,
    settings,
)
from mailsvc.cli.sent import sent
from mailsvc.directory import SqliteDirectory
from mailsvc.mail import ROLES, Account, Address
from mailsvc.names import DirectoryError
from mailsvc.passwords import PASSWORD_OCTETS, PasswordHasher, check_password, scram_salt

#: What each of the roles means.
ROLE_SENTENCES = {"both": "receives and sends", "receive": "receives only", "send": "sends only"}

password_option = password_options("Its password is what this file holds [asked for, twice].")


def quota_options(command: Command) -> Command:
    """Give *command* the options --octets and --messages, None when they are left out."""
    for names, kind, metavar, sentence in (
            (("--messages", "--quota-messages"), click.IntRange(0), "N",
             "Most messages it may hold; 0 for no limit."),
            (("--octets", "--quota-octets"), OCTETS, "OCTETS",
             "Most octets its mail may take: 500K, 20M, 1G; 0 for no limit.")):
        command = click.option(*names, type=kind, metavar=metavar, help=sentence)(command)
    return command


def ask_password(place: str | None) -> bytes:
    """The password in the file *place*, that was piped in ("-"), or typed; as prepared."""
    if place is not None:
        try:
            with click.open_file(place, "rb") as file:
                line = file.read(PASSWORD_OCTETS * 4)
        except OSError as error:
            raise click.UsageError(f"--password-file {place}: {error.strerror}") from None
        # Not UTF-8 becomes lone surrogates, which check_password refuses.
        password = line.removesuffix(b"\n").removesuffix(b"\r").decode(
            "utf-8", "surrogateescape").removeprefix(BYTE_ORDER_MARK)
    elif sys.stdin.isatty():
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True)
    else:
        raise click.ClickException("no password, and no terminal to ask for one; "
                                   "pipe it in and add --password-stdin")
    return check_password(password)


def _hashed(directory: SqliteDirectory, name: str, password: bytes) -> tuple[str, str | None]:
    """The verifier and the SCRAM keys of a prepared password for the account *name*."""
    hasher = PasswordHasher(settings().passwords, None)
    return hasher.hash(password), hasher.derive_scram(password, scram_salt(directory, name))


def _found(directory: SqliteDirectory, address: Address) -> Account:
    account = directory.account(address.local_part, address.domain)
    if account is None:
        raise DirectoryError(f"there is no account {address}", "see `mailsvc account list`")
    return account


@click.group()
def account() -> None:
    """Make, list, change and remove accounts.

    An account is a mailbox that somebody logs in to, named NAME@DOMAIN.  Its name is written the
    same in any case: Bob and bob are one.
    """


account.add_command(app_password)
account.add_command(sent)


@account.command()
@click.argument("name", type=MAILBOX, metavar="NAME@DOMAIN")
@password_option
@quota_options
@click.option("--apop", is_flag=True,
              help="Keep the password readable too, in the accounts' file, as APOP needs it.")
@click.option("--role", type=click.Choice(ROLES), default="both", show_default=True,
              help="What the account is for, as `mailsvc account role` says.")
@place_options
def add(name: Address, password_file: str | None, octets: int | None, messages: int | None,
        apop: bool, role: str) -> None:
    """Make an account.

    \b
    Example:
      mailsvc account add alice@example.org --quota-octets 1G
      pass mail/bob | mailsvc account add bob@example.org --password-stdin
    """
    with open_directory() as directory:
        name = directory.check_new_account(name)  # before anybody types a password
        password = ask_password(password_file)
        verifier, scram = _hashed(directory, f"{name.local_part}@{name.domain}", password)
        made = directory.add_account(name, verifier=verifier, scram=scram,
                                     secret=password.decode() if apop else None,
                                     quota_octets=octets or 0, quota_messages=messages or 0,
                                     role=role)
        click.echo(f"Made account {made.name}; " + (
            f"its mail will be in {mail_of(made)}" if made.receives else "it gets no mail"))


@account.command(name="list")
@json_option
@place_options
def list_(as_json: bool) -> None:
    """List the accounts.

    The keys in JSON are name, role (both, receive or send), administrator (true or false),
    quota_octets, quota_messages (0 for no limit), password and apop (true or false) and
    app_passwords (how many).

    \b
    Example:
      mailsvc account list --json
    """
    with open_directory() as directory:
        accounts = [plain.account(directory, each) for each in directory.accounts()]
    if as_json:
        print_json(accounts)
        return
    print_rows(["name", "role", "quota", "messages", "login"],
               [[each["name"], each["role"], _limit(octets_text(each["quota_octets"])),
                 _limit(str(each["quota_messages"])), _login(each)] for each in accounts])


def _limit(text: str) -> str:
    return "-" if text == "0" else text


def _of(held: int | None, quota: str) -> str:
    return ("unknown" if held is None else str(held)) + (
        f" of {quota}" if quota != "0" else ", no limit")


def _login(described: dict[str, Any]) -> str:
    count = described["app_passwords"]
    ways = [way for way, there in (
        ("password", described["password"]), ("APOP", described["apop"]),
        (f"{count} app password{'s' if count > 1 else ''}", count)) if there]
    return ", ".join(ways) or "no"


@account.command()
@click.argument("name", type=MAILBOX, metavar="NAME@DOMAIN")
@json_option
@place_options
def show(name: Address, as_json: bool) -> None:
    """Show one account: its role, mail, quota and logins.

    Its maildir and the aliases that lead to it are shown too.  The keys in JSON are those of
    `account list`; held_octets and held_messages, null when they cannot be counted; mail and
    aliases.

    \b
    Example:
      mailsvc account show alice@example.org
    """
    with open_directory() as directory:
        found = _found(directory, name)
        described = plain.account(directory, found)
        octets, messages = held(found) or (None, None)
        described["held_octets"], described["held_messages"] = octets, messages
        described["mail"] = mail_of(found)
        described["aliases"] = [
            alias.name for alias in directory.aliases()
            if any(directory.account(target.local_part, target.domain) == found
                   for target in alias.targets)]
    if as_json:
        print_json(described)
        return
    for label, text in (
            ("Name", described["name"]),
            ("Role", ROLE_SENTENCES[described["role"]] + (
                ", administers the service" if described["administrator"] else "")),
            ("Octets", _of(octets, octets_text(described["quota_octets"]))),
            ("Messages", _of(messages, str(described["quota_messages"]))),
            ("Login", _login(described)),
            ("Mail", described["mail"]),
            ("Aliases", ", ".join(described["aliases"]) or "none")):
        click.echo(f"{label + ':':10}{text}")


@account.command()
@click.argument("name", type=MAILBOX, metavar="NAME@DOMAIN")
@password_option
@click.option("--apop/--no-apop", default=None,
              help="Keep the password readable too, as APOP needs it [as before].")
@place_options
def passwd(name: Address, password_file: str | None, apop: bool | None) -> None:
    """Change an account's main password.  The next login needs the new one.

    Its app passwords stay: `mailsvc account app-password` changes those.

    \b
    Example:
      mailsvc account passwd alice@example.org
    """
    with open_directory() as directory:
        found = _found(directory, name)
        password = ask_password(password_file)
        verifier, scram = _hashed(directory, found.name, password)
        described = plain.account(directory, found)
        if apop is None:
            apop = described["apop"]
        directory.set_password(name, verifier, password.decode() if apop else None, scram=scram)
        click.echo(f"Changed the password of {found.name}")
        if described["app_passwords"]:
            click.echo("Note: its app passwords are as before; see: mailsvc account app-password "
                       f"list {found.name}", err=True)


@account.command()
@click.argument("name", type=MAILBOX, metavar="NAME@DOMAIN")
@quota_options
@place_options
def quota(name: Address, octets: int | None, messages: int | None) -> None:
    """Change an account's quota.  What is not given stays as it is.

    \b
    Example:
      mailsvc account quota alice@example.org --octets 1G --messages 0
    """
    if octets is None and messages is None:
        raise click.UsageError("Give --octets, --messages or both.")
    with open_directory() as directory:
        changed = directory.set_quota(name, octets=octets, messages=messages)
        click.echo(f"Quota of {changed.name}: "
                   f"octets {_limit(octets_text(changed.quota_octets))}, "
                   f"messages {_limit(str(changed.quota_messages))}")


@account.command()
@click.argument("name", type=MAILBOX, metavar="NAME@DOMAIN")
@click.argument("role", type=click.Choice(ROLES))
@place_options
def role(name: Address, role: str) -> None:
    """Say what an account is for.

    both: to get mail and to send it; receive: it cannot submit; send: it cannot fetch, and mail
    for it is refused with 550 5.2.1.  Mail that it has stays where it is.

    \b
    Example:
      mailsvc account role printer@example.org send
    """
    with open_directory() as directory:
        changed = directory.set_role(name, role)
        click.echo(f"Role of {changed.name}: {ROLE_SENTENCES[role]}")
        leading = [] if changed.receives else directory.users_of(changed)
        if leading:
            click.echo("Note: these lead to it, and mail for them goes without it now, or is "
                       f"refused: {', '.join(leading)}", err=True)


@account.command()
@click.argument("name", type=MAILBOX, metavar="NAME@DOMAIN")
@click.argument("administers", type=click.Choice(["yes", "no"]), metavar="{yes|no}")
@place_options
def admin(name: Address, administers: str) -> None:
    """Say whether an account administers the service.

    An administrator sees the queue and the figures in the console, makes and removes accounts, and
    gives them passwords.  It counts at once.

    \b
    Example:
      mailsvc account admin alice@example.org yes
    """
    with open_directory() as directory:
        changed = directory.set_administrator(name, administers == "yes")
        click.echo(f"{changed.name} " + (
            "administers the service" if administers == "yes" else
            "does not administer the service"))


@account.command()
@click.argument("name", type=MAILBOX, metavar="NAME@DOMAIN")
@click.option("--yes", is_flag=True, help="Do not ask.")
@place_options
def remove(name: Address, yes: bool) -> None:
    """Remove an account.  Its mail stays on disk.

    \b
    Example:
      mailsvc account remove alice@example.org --yes
    """
    with open_directory() as directory:
        found = _found(directory, name)
        if not yes:
            if not sys.stdin.isatty():
                raise click.ClickException("no terminal to ask whether to remove it; add --yes")
            click.confirm(f"Remove account {found.name}?", abort=True)
        directory.remove_account(name)
        click.echo(f"Removed account {found.name}. Its mail stays in {mail_of(found)}: remove it "
                   "there, or a new account of that name will have it.")
