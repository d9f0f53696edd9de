"""``mailsvc sessions``: the connections that the service has now."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from mailsvc import live, plain
from mailsvc.cli.arguments import octets_text
from mailsvc.cli.listing import json_option, print_json, print_rows
from mailsvc.cli.place import place_options, settings
from mailsvc.localsocket import NoService
from mailsvc.networks import address_of, network_of


@click.group(invoke_without_command=True)
@click.option("--address", metavar="ADDRESS|NETWORK", help="Those of this client.")
@click.option("--account", metavar="NAME@DOMAIN", help="Those where this account has logged in.")
@click.option("--protocol", type=click.Choice(["smtp", "submission", "lmtp", "odmr", "pop3"]),
              help="Those that speak this.")
@json_option
@place_options
@click.pass_context
def sessions(ctx: click.Context, address: str | None, account: str | None, protocol: str | None,
             as_json: bool) -> None:
    """List the connections that there are now.

    They are those of all processes of the service, the oldest first.  STATE tells how far each is.
    SMTP: greeting, start (before EHLO), ready, auth, mail and rcpt (the last command that was
    accepted), message (it is arriving), chunks (between two of them), turned (ATRN).  POP3:
    authorization, auth, transaction, listing, message, update.  MESSAGES were accepted from the
    client, or fetched by it.  IN and OUT are octets, those of TLS too; IDLE is how long nothing has
    come in.

    The keys in JSON are id, protocol, listener, client, port, since, login, tls, state, messages,
    received, sent and idle; of SMTP also hello, from and recipients; of POP3 deleted.

    \b
    Example:
      mailsvc sessions --protocol pop3
      mailsvc sessions --address 192.0.2.0/24 --json
      mailsvc sessions end 1K16KWV2DBF00EP5
    """
    if ctx.invoked_subcommand is not None:
        return
    try:
        network = network_of(address) if address else None
    except ValueError as problem:
        raise click.UsageError(f"{address!r} is not a network; expected an address such as "
                               "192.0.2.7 or a network such as 192.0.2.0/24") from problem
    try:
        found = live.sessions(Path(settings().service.data))
    except NoService as problem:
        raise click.ClickException(str(problem)) from problem
    found = [each for each in found
             if (network is None or _lies_in(each["client"], network))
             and (account is None or each["login"].lower() == account.lower())
             and (protocol is None or each["protocol"] == protocol)]
    if as_json:
        print_json(list(map(plain.session, found)))
        return
    now = time.time()
    print_rows(["id", "protocol", "client", "age", "login", "tls", "state", "messages", "in",
                "out", "idle"], [_row(each, now) for each in found])


def _lies_in(client: str, network: Any) -> bool:
    return bool(client) and address_of(client) in network


def _row(each: dict[str, Any], now: float) -> list[str]:
    return [each["id"], each["protocol"], each["client"] or "-", _duration(now - each["since"]),
            each["login"] or "-", each["tls"].partition(" ")[0] or "-", each["state"],
            str(each["messages"]),
            *("-" if each[key] is None else octets_text(each[key]) for key in ("received", "sent")),
            "-" if each["idle"] is None else _duration(each["idle"])]


def _duration(seconds: float) -> str:
    seconds = max(0, int(seconds))
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


@sessions.command()
@click.argument("id")
@click.option("--now", is_flag=True, help="Do not wait for the transaction that is under way.")
@place_options
def end(id: str, now: bool) -> None:
    """End a connection.

    SMTP is told 421, POP3 -ERR [SYS/TEMP], so that the client comes back later; `mailsvc ban add`
    keeps it away.  A transaction that is under way may end first, unless --now says otherwise.
    The status is 1 when there is no such connection.

    \b
    Example:
      mailsvc sessions end 1K16KWV2DBF00EP5
    """
    try:
        ended = live.end(Path(settings().service.data), id.upper(), now=now)
    except NoService as problem:
        raise click.ClickException(str(problem)) from problem
    if not ended:
        raise click.ClickException(
            f"there is no connection {id} any more; see `mailsvc sessions`")
    click.echo(f"{id.upper()} is being ended")
