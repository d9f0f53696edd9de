"""``mailsvc ban``: the networks that may not connect, for wrong passwords or by your order."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import click

from mailsvc import plain
from mailsvc.bans import MANUAL, Ban, BanTable, Network, parse_network
from mailsvc.cli.arguments import DURATION
from mailsvc.cli.listing import json_option, print_json, print_rows
from mailsvc.cli.place import open_state, place_options
from mailsvc.ledger import lift
from mailsvc.names import DirectoryError
from mailsvc.plain import local_time
from mailsvc.state import State


class _Network(click.ParamType):
    name = "NETWORK"

    def convert(self, value: Any, param: click.Parameter | None,
                ctx: click.Context | None) -> Network:
        try:
            return parse_network(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _NetworkOrAll(_Network):
    name = "NETWORK|all"

    def convert(self, value: Any, param: click.Parameter | None,
                ctx: click.Context | None) -> Any:
        return None if value == "all" else super().convert(value, param, ctx)


def _reason(ctx: click.Context, option: click.Parameter, value: str) -> str:
    if not value.isprintable():
        raise click.BadParameter("it holds control characters; leave them out", ctx, option)
    return value


@contextlib.contextmanager
def _open_bans(*, create: bool = False) -> Iterator[tuple[State, BanTable] | None]:
    """The table of bans of the service that the command line names; None when there is none yet."""
    with open_state(create=create) as state:
        yield None if state is None else (state, BanTable(state))


@click.group()
def ban() -> None:
    """List, make and lift bans.

    A banned network cannot connect.  Wrong passwords make bans by themselves, as the section
    [brakes] of the configuration says.  Changes count within a second, also for a running service.
    """


@ban.command(name="list")
@json_option
@place_options
def list_(as_json: bool) -> None:
    """List the bans that bind now, the newest first.

    The keys in JSON are network, since and until (RFC 3339), times (how many bans in a row),
    origin (address, network or manual) and reason.

    \b
    Example:
      mailsvc ban list --json
    """
    with _open_bans() as opened:
        bans = [] if opened is None else opened[1].active(time.time())
    if as_json:
        print_json(list(map(plain.ban, bans)))
        return
    print_rows(["network", "until", "times", "origin", "reason"],
               [[str(each.network), local_time(each.until), str(each.times), each.origin,
                 each.reason or "-"] for each in bans])


@ban.command()
@click.argument("network", type=_Network(), metavar="NETWORK")
@click.option("--for", "seconds", type=DURATION, default="1h", metavar="DURATION",
              help="How long: 90s, 30m, 12h, 7d, 52w [1h].")
@click.option("--reason", metavar="TEXT", default="", callback=_reason,
              help="Why, for who reads the list.")
@place_options
def add(network: Network, seconds: int, reason: str) -> None:
    """Ban an address or a network, or change how long it is banned.

    It binds exempt networks too.  Sessions that are open go on until they next log in.

    \b
    Example:
      mailsvc ban add 192.0.2.0/24 --for 7d --reason "password guessing"
    """
    now = time.time()
    with _open_bans(create=True) as opened:
        assert opened is not None
        state, table = opened
        with state.transaction():
            table.put(Ban(network, now, now + seconds, origin=MANUAL, reason=reason))
        click.echo(f"Banned {network} until {local_time(now + seconds)}")


@ban.command()
@click.argument("network", type=_NetworkOrAll(), metavar="NETWORK|all")
@place_options
def remove(network: Network | None) -> None:
    """Lift the ban of a network and those inside it, or all.

    What led to them is forgiven.

    \b
    Example:
      mailsvc ban remove 192.0.2.7
      mailsvc ban remove all
    """
    now = time.time()
    with _open_bans() as opened:
        lifted = [] if opened is None else lift(opened[0], network, now)
        if network is not None and not lifted:
            raise _not_banned(network, opened and opened[1].around(network, now))
    for each in lifted:
        click.echo(f"Lifted the ban of {each.network}")
    if network is None and not lifted:
        click.echo("Nothing is banned")


def _not_banned(network: Network, around: Ban | None) -> DirectoryError:
    if around is None:
        return DirectoryError(f"{network} is not banned", "see `mailsvc ban list`")
    return DirectoryError(f"{network} is banned only as a part of {around.network}",
                          f"lift that: mailsvc ban remove {around.network}")
