"""Which service a command is about: the options --config and --dir, and what they lead to.

They may stand before or behind a command's name.  Without them it is the service of
/etc/mailsvc.toml, or without that file the one with all settings at their defaults.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from mailsvc.config import ConfigurationError, Settings, load
from mailsvc.directory import SqliteDirectory
from mailsvc.errors import MailFailure
from mailsvc.mail import Account
from mailsvc.names import DirectoryError
from mailsvc.ownership import remedy_for
from mailsvc.state import State
from mailsvc.store import maildirsize
from mailsvc.store.maildirsize import Amount

SYSTEM_CONFIGURATION = Path("/etc/mailsvc.toml")

Command = TypeVar("Command", bound=Callable[..., Any])


def _remember(ctx: click.Context, option: click.Parameter, value: str | None) -> None:
    if value is None:
        return
    if not value:
        raise click.BadParameter("it is empty; name a place, or leave it out", ctx, option)
    if not value.isprintable():
        raise click.BadParameter(f"{value!r} holds control characters; leave them out", ctx, option)
    # ctx.meta is one for the whole command line.
    ctx.meta[f"{__name__}.{option.name}"] = value


def place_options(command: Command) -> Command:
    """Give *command* the options --config and --dir."""
    for name, metavar, sentence in (
            ("--dir", "DIR", "Data directory of the service, as for `mailsvc dev --dir`: accounts "
             "are in DIR/accounts.sqlite, mail in DIR/mail."),
            ("--config", "FILE", f"Configuration of the service [{SYSTEM_CONFIGURATION}].")):
        command = click.option(name, metavar=metavar, help=sentence, callback=_remember,
                               expose_value=False)(command)
    return command


def _given() -> tuple[str | None, str | os.PathLike[str] | None]:
    """The data directory and the configuration file that the present command line names."""
    meta = click.get_current_context().meta
    directory, config = (meta.get(f"{__name__}.{name}") for name in ("dir", "config"))
    if directory is not None and config is not None:
        raise click.UsageError("Give either --dir or --config, not both.")
    if directory is None and config is None and SYSTEM_CONFIGURATION.exists():
        config = SYSTEM_CONFIGURATION
    return directory, config


def configuration() -> Path | None:
    """The configuration file; None when the settings come from none."""
    config = _given()[1]
    return None if config is None else Path(config)


def mail_root() -> Path:
    """The root of that service's maildirs; a store of another kind ends the command."""
    root = _maildirs()
    if root is None:
        raise click.ClickException(f"mail is kept in {settings().service.store}, not in maildirs: "
                                   "there are no files that this could work on; name a service "
                                   "that has some with --config or --dir")
    return root


#: What is in a data directory of ours, sooner or later.
_OURS = ("accounts.sqlite", "state.sqlite", "mail", "queue", "dkim", "tls", "acme", "trace",
         "imports", "webhooks.sqlite", "lock", "mailsvc.toml")


def data_directory() -> Path:
    """The data directory of that service; where there is none, the command ends with status 1.

    One in which nothing is yet will do, and so will any if the accounts lie elsewhere.
    """
    data, accounts = Path(settings().service.data), Path(settings().accounts.database)
    with explained(data):
        problem = ("no such directory" if not data.exists() else
                   "it is no directory" if not data.is_dir() else
                   "it holds other things" if any(data.iterdir()) and not accounts.exists()
                   and not any((data / each).exists() for each in _OURS) else "")
    if problem:
        raise click.ClickException(f"there is no mailsvc data in {data}: {problem}; name the right "
                                   "place with --dir or --config (service.data)")
    return data


@contextmanager
def explained(*places: Path) -> Iterator[None]:
    """What cannot be done to files ends the command with status 1, and a line that says why.

    :param places: where, for errors that name no file.
    """
    try:
        yield
    except OSError as error:
        if not (error.filename or places):
            raise click.ClickException(error.strerror or str(error)) from error
        place = Path(os.fsdecode(error.filename or places[0]))
        remedy = ""
        if isinstance(error, PermissionError):
            nearest = next(each for each in (place, *place.parents) if os.path.lexists(each))
            remedy = "; " + remedy_for(nearest)
        raise click.ClickException(
            f"{place}: {error.strerror or error}{remedy}") from error
    except sqlite3.Error as error:
        raise click.ClickException(f"{error}; `mailsvc fsck` tells more") from error


def name() -> str:
    """What :func:`settings` come from, for people."""
    directory, config = _given()
    return str(config or (f"--dir {directory}" if directory else "no file, all defaults"))


def settings() -> Settings:
    """The settings of the service that the present command line names."""
    directory, config = _given()
    try:
        if directory is not None:
            return Settings.from_mapping({"service": {"data": directory}})
        return load(config)
    except ConfigurationError as error:
        raise click.ClickException(str(error)) from error


@contextmanager
def open_directory(*, create: bool = False) -> Iterator[SqliteDirectory]:
    """That service's directory of accounts; what it refuses ends the command with status 1."""
    try:
        with SqliteDirectory(settings().accounts.database, create=create) as directory:
            yield directory
    except (DirectoryError, MailFailure) as error:
        raise click.ClickException(str(error)) from error


@contextmanager
def open_state(*, create: bool = False) -> Iterator[State | None]:
    """What that service remembers across restarts; None when it has not run yet.

    What it refuses ends the command with status 1.
    """
    path = data_directory() / "state.sqlite"
    try:
        if not (create or path.exists()):
            yield None
            return
        with closing(State(path)) as state:
            yield state
    except (DirectoryError, MailFailure) as error:
        raise click.ClickException(str(error)) from error


def mail_of(account: Account) -> str:
    """Where the account's mail lies: its maildir, or what the store is called."""
    return str(_maildir(account) or f"the store {settings().service.store}")


def held(account: Account) -> Amount | None:
    """How much mail the account has, or None when that cannot be told from here."""
    maildir = _maildir(account)
    try:
        return None if maildir is None else maildirsize.count(os.fsencode(maildir))
    except OSError:
        return None


def _maildir(account: Account) -> Path | None:
    root = _maildirs()
    return None if root is None else root / account.domain / account.local_part


def _maildirs() -> Path | None:
    scheme, _, argument = settings().service.store.partition(":")
    return Path(argument) if scheme == "maildir" else None
