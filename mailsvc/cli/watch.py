"""``mailsvc watch``: what is said on chosen connections, as it is said."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import click
from twisted.python.failure import Failure

from mailsvc.cli.listing import json_option, json_text
from mailsvc.cli.place import place_options, settings
from mailsvc.live import MOST_SECONDS, Follower
from mailsvc.localsocket import NoService


@click.command()
@click.option("--address", metavar="ADDRESS|NETWORK", default="",
              help="Connections of this client.")
@click.option("--account", metavar="NAME@DOMAIN", default="",
              help="Connections on which this account logs in, or is tried.")
@click.option("--recipient", metavar="NAME@DOMAIN", default="",
              help="Connections that bring mail for this address.")
@click.option("--protocol", type=click.Choice(["smtp", "pop3"]),
              help="Only of this protocol; smtp is submission and LMTP too.")
@click.option("--minutes", type=click.IntRange(1, MOST_SECONDS // 60), default=10,
              show_default=True, help="For how long.")
@click.option("--text", is_flag=True, help="Show the beginning of messages, not only their size.")
@json_option
@place_options
def watch(address: str, account: str, recipient: str, protocol: str | None, minutes: int,
          text: bool, as_json: bool) -> None:
    """Show what is said on chosen connections.

    They are those of one client, account or recipient, and each line is shown as it is said.
    Lines of the client are marked C:, those of the service S:, and notes *.  Passwords, and all of
    an AUTH exchange but its mechanism, are masked; lines that are no command are not shown.

    What a client says before it is known to be the one is not kept, and cannot be shown: --address
    shows a connection from its first octet on; --account from a login on, beginning with its
    answer; --recipient from the RCPT on, beginning with its answer.  On connections that are open
    already it begins with the next command.

    It goes on in every process of the service until the time is up, or by Ctrl-C.  Who reads too
    slowly misses lines, and is told how many.  The log says that somebody watches.

    With --json each line is an object: at (seconds since the epoch), id, mark (C, S or *) and line.

    \b
    Example:
      mailsvc watch --address 192.0.2.7
      mailsvc watch --account alice@example.org --protocol pop3 --minutes 30
    """
    if sum(map(bool, (address, account, recipient))) != 1:
        raise click.UsageError("Say what to watch: one of --address, --account and --recipient.")
    # Not at the top: all other commands do without a reactor, and start the faster.
    from twisted.internet import reactor as installed  # noqa: PLC0415 - it installs one

    reactor: Any = installed
    outcome: list[str | Failure] = []

    def heard(told: dict[str, Any]) -> None:
        try:
            if as_json and "mark" in told:
                click.echo(json_text(told))
            elif "mark" in told:
                click.echo(_line(told))
            elif not watching:
                watching.append(told)
                click.echo(f"watching for {minutes} minutes; Ctrl-C ends it", err=True)
        except SystemExit as ended:
            # Raised here, it would be the reactor's.
            unshown.append(ended)
            follower.stop("nobody reads")

    def over(result: str | Failure) -> None:
        outcome.append(result)
        reactor.stop()

    watching: list[Any] = []
    unshown: list[SystemExit] = []
    follower = Follower(
        Path(settings().service.data),
        {"address": address, "account": account, "recipient": recipient,
         "protocol": protocol or "", "text": text}, 60 * minutes, heard, reactor)
    try:
        follower.start()
    except NoService as problem:
        raise click.ClickException(str(problem)) from problem
    follower.over.addBoth(over)
    reactor.run()
    if unshown:
        raise unshown[0]
    why = outcome[0] if outcome else "interrupted"
    if isinstance(why, Failure):
        raise click.ClickException(why.getErrorMessage())
    click.echo(f"over: {why}", err=True)


def _line(told: dict[str, Any]) -> str:
    when = datetime.datetime.fromtimestamp(told["at"]).strftime("%H:%M:%S.%f")[:-3]
    mark = told["mark"] if told["mark"] == "*" else told["mark"] + ":"
    return f"{when} {told['id'] or '-':<16} {mark:<2} {told['line']}"
