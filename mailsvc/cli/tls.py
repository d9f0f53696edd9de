"""``mailsvc queue tls``: which TLS the domains that mail goes to are held to."""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from mailsvc.cli.listing import json_option, print_json, print_rows
from mailsvc.cli.place import place_options, settings
from mailsvc.errors import MailFailure
from mailsvc.names import DirectoryError, fold_domain
from mailsvc.queue.security.levels import Levels
from mailsvc.queue.security.policies import Kept, Shelf
from mailsvc.state import State


@contextlib.contextmanager
def _opened() -> Iterator[tuple[Levels, Shelf] | None]:
    """What the service of the command line knows; None when it knows nothing yet."""
    data = Path(settings().service.data)
    path = data / "state.sqlite"
    try:
        if not data.is_dir():
            raise DirectoryError(f"there is no directory {data}",
                                 "name the right place: service.data of the configuration, or "
                                 "`mailsvc --dir DIR`")
        if not path.exists():
            yield None
            return
        with contextlib.closing(State(path)) as state:
            yield Levels(state), Shelf(state)
    except (DirectoryError, MailFailure) as error:
        raise click.ClickException(str(error)) from error


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


@click.group()
def tls() -> None:
    """Show which domains are held to TLS, and let them go.

    A domain that was reached by TLS once is not sent to in the clear later (relay.remember_tls),
    and a policy that it has published (MTA-STS) holds until its time is over, even if it can no
    longer be fetched.
    """


@tls.command(name="list")
@json_option
@place_options
def list_(as_json: bool) -> None:
    """List the domains that are held to TLS.

    The keys in JSON are domain; since, latest, verified (whether an exchanger has proven its name),
    version and host of what was seen, null if nothing was; and policy, null or an object with mode,
    mx, id, fetched and expires.

    \b
    Example:
      mailsvc queue tls list --json
    """
    now = time.time()
    domains: dict[str, dict[str, Any]] = {}
    with _opened() as opened:
        for seen in opened[0].all() if opened is not None else []:
            domains[seen.domain] = {
                "domain": seen.domain, "since": _time(seen.since), "latest": _time(seen.latest),
                "verified": seen.verified, "version": seen.version, "host": seen.host,
                "policy": None}
        for kept in opened[1].all() if opened is not None else []:
            if kept.expires > now:
                domains.setdefault(kept.domain, {
                    "domain": kept.domain, "since": None, "latest": None, "verified": None,
                    "version": None, "host": None})["policy"] = _policy(kept)
    rows = [domains[name] for name in sorted(domains)]
    if as_json:
        print_json(rows)
        return
    print_rows(["domain", "since", "latest", "verified", "host", "policy"], [[
        each["domain"], each["since"] or "-", each["latest"] or "-",
        {None: "-", True: "yes", False: "no"}[each["verified"]], each["host"] or "-",
        f"{each['policy']['mode']} until {each['policy']['expires']}" if each["policy"] else "-"]
        for each in rows])


def _policy(kept: Kept) -> dict[str, Any]:
    return {"mode": kept.policy.mode, "mx": list(kept.policy.patterns), "id": kept.id,
            "fetched": _time(kept.fetched), "expires": _time(kept.expires)}


@tls.command()
@click.argument("domains", nargs=-1, required=True, metavar="DOMAIN...")
@place_options
def forget(domains: tuple[str, ...]) -> None:
    """Forget that domains were reached by TLS, and their policies.

    Mail to them may go in the clear again, unless they publish a policy.  A service that runs does
    so from its next attempt on: see `mailsvc queue retry`.

    \b
    Example:
      mailsvc queue tls forget example.org
    """
    with _opened() as opened:
        for domain in domains:
            name = fold_domain(domain) or domain.lower()
            found = opened is not None and [each.forget(name) for each in opened]
            if not (found and any(found)):
                raise DirectoryError(f"nothing is known of {domain}",
                                     "see `mailsvc queue tls list`")
            click.echo(f"Forgot {name}")
