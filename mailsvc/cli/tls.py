"""``mailsvc queue tls``: which TLS the domains that mail goes to are held to."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import click

from mailsvc.blocking import run
from mailsvc.cli.listing import json_option, print_json, print_rows
from mailsvc.cli.place import open_state, place_options, settings
from mailsvc.config import Settings
from mailsvc.mail import Address, Envelope
from mailsvc.names import DirectoryError, fold_domain
from mailsvc.plain import local_time
from mailsvc.queue.exchangers import Exchangers, Unroutable
from mailsvc.queue.routes import Hop
from mailsvc.queue.security.levels import Levels
from mailsvc.queue.security.policies import Kept, Shelf
from mailsvc.smtp.failures import TLSFailed
from mailsvc.store.threads import Threads


@contextlib.contextmanager
def _opened() -> Iterator[tuple[Levels, Shelf] | None]:
    """What the service of the command line knows; None when it knows nothing yet."""
    with open_state() as state:
        yield None if state is None else (Levels(state), Shelf(state))


@click.group()
def tls() -> None:
    """Show which domains are held to TLS, look one up, and let them go.

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
                "domain": seen.domain, "since": local_time(seen.since),
                "latest": local_time(seen.latest), "verified": seen.verified,
                "version": seen.version, "host": seen.host, "policy": None}
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
            "fetched": local_time(kept.fetched), "expires": local_time(kept.expires)}


@tls.command()
@click.argument("domain", metavar="DOMAIN")
@json_option
@place_options
def check(domain: str, as_json: bool) -> None:
    """Look up what the exchangers of a domain have to prove.

    The keys in JSON are domain; policy, null or as in `list`; policy_failure, why its policy cannot
    be had, or empty; and exchangers, each with host, address, usable and demand, which says why not
    if it is not.  The status is 1 if there is none to send to.

    \b
    Example:
      mailsvc queue tls check example.org
    """
    name = fold_domain(domain) or domain.lower()
    with _opened() as opened:
        if opened is None:
            raise DirectoryError("the service has not run yet", "start it once: `mailsvc dev`, or "
                                 "as docs/operating.rst says")
        try:
            places, failure = run(_looked_up, settings(), name)
        except Unroutable as problem:
            raise click.ClickException(problem.text) from problem
        kept = opened[1].get(name, time.time())
    if as_json:
        print_json({"domain": name, "policy": _policy(kept) if kept else None,
                    "policy_failure": failure, "exchangers": places})
    else:
        policy = (f"{kept.policy.mode}, {' '.join(kept.policy.patterns)}, until "
                  f"{local_time(kept.expires)}" if kept else "none")
        click.echo(f"MTA-STS policy: {policy}")
        if failure:
            click.echo(f"cannot be had: {failure}")
        print_rows(["exchanger", "address", "demand"],
                   [[each["host"], each["address"], each["demand"]] for each in places])
    if not any(each["usable"] for each in places):
        click.get_current_context().exit(1)


async def _looked_up(settings: Settings, domain: str) -> tuple[list[dict[str, Any]], str]:
    """Each place of *domain* with what it has to prove, and why its policy cannot be had."""
    # Not at the top: all other commands do without the service, and start the faster.
    from twisted.internet import reactor  # noqa: PLC0415 - importing it installs it

    from mailsvc.relaying import open_security  # noqa: PLC0415

    # Looking is no session, and nothing is to be reported of it.
    settings = replace(settings, relay=replace(settings.relay, tls_reports=""))
    threads = Threads(reactor, 4, "check")
    threads.start()
    exchangers = Exchangers(settings.relay, settings.service.hostname, (), reactor)
    security = open_security(settings, exchangers, threads, _nothing, reactor)
    try:
        found = []
        places = await exchangers.find(domain)
        terms = await security.terms(Hop(domain, exchangers=True))
        for place in places:
            try:
                demand = str(await terms.demand(place))
                usable = True
            except TLSFailed as failure:
                demand, usable = f"not used: {failure.text}", False
            found.append({"host": place.name, "address": place.address, "usable": usable,
                          "demand": demand})
        return found, terms.finding.text
    finally:
        security.stop()
        await threads.stop()


async def _nothing(envelope: Envelope, to: Address, text: bytes) -> None:
    """Sends no report."""


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
