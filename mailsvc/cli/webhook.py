"""``mailsvc webhook``: secrets to sign with, a test of what receives events, and what waits."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import click

from mailsvc import plain
from mailsvc.blocking import run
from mailsvc.cli.listing import json_option, print_json, print_rows
from mailsvc.cli.place import data_directory, place_options, settings
from mailsvc.config import KEYS
from mailsvc.errors import MailFailure
from mailsvc.names import DirectoryError
from mailsvc.plain import local_time
from mailsvc.trust import Untrusted
from mailsvc.webhooks.events import WebhookSettings, shown
from mailsvc.webhooks.signing import SecretUnusable, new_secret
from mailsvc.webhooks.spool import NAME, Spool

if TYPE_CHECKING:
    from mailsvc.webhooks.posting import Tried


@click.group()
def webhook() -> None:
    """Tell other programs what happens.

    The section [webhooks] of the configuration says which programs, and what.
    """


@webhook.command()
def secret() -> None:
    """Print a new secret, for webhooks.secret and for the receiver.

    \b
    Example:
      install -m 600 -o mailsvc /dev/null /etc/mailsvc-webhook.secret
      mailsvc webhook secret > /etc/mailsvc-webhook.secret
    """
    click.echo(new_secret())


def _receiver(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
              ) -> tuple[str, ...]:
    for value in values:
        expected = KEYS["webhooks.urls"].expected([value])
        if expected:
            raise click.BadParameter(f"{value}: expected {expected}", ctx, param)
    return values


@webhook.command()
@click.argument("urls", nargs=-1, metavar="[URL...]", callback=_receiver)
@json_option
@place_options
def test(urls: tuple[str, ...], as_json: bool) -> None:
    """Send a test event, and show what each URL says.

    It goes to each of webhooks.urls, or to URL....  It is signed like any other, and its type is
    "test"; this command sends it by itself, at once and once.  The status is 1 when a receiver does
    not take it.

    With --json it is an array of objects: url, code and text of the answer, or null, problem, or
    null, and seconds.

    \b
    Example:
      mailsvc webhook test
    """
    configured = settings().webhooks
    receivers = urls or tuple(configured.urls)
    if not receivers:
        raise click.ClickException("webhooks.urls names none: give a URL, or set it")
    try:
        results: list[Tried] = run(_tried, configured, receivers)
    except SecretUnusable as problem:
        raise click.ClickException(f"webhooks.secret: {problem}") from problem
    except Untrusted as problem:
        raise click.ClickException(f"webhooks.authorities: {problem}") from problem
    if as_json:
        print_json([each._asdict() for each in results])
    else:
        for each in results:
            said = each.problem or f"{each.code} {each.text}".rstrip()
            click.echo(f"{each.url}: {said} ({1000 * each.seconds:.0f} ms)")
    if any(each.problem for each in results):
        click.get_current_context().exit(1)


async def _tried(configured: WebhookSettings, urls: tuple[str, ...]) -> list[Tried]:
    # Not at the top: the other commands do without, and importing a reactor installs it.
    from twisted.internet import reactor  # noqa: PLC0415

    from mailsvc.webhooks.posting import Poster, tried  # noqa: PLC0415

    return await tried(Poster(configured, reactor), urls, "`mailsvc webhook test`")


@webhook.command("list")
@json_option
@place_options
def list_waiting(as_json: bool) -> None:
    """List the events that wait to be told, the oldest first.

    With --json it is an array of objects: id, type, url, since and due (RFC 3339), attempts,
    problem (of the last attempt, or ""), and event, what is told.

    \b
    Example:
      mailsvc webhook list
    """
    path = data_directory() / NAME
    waiting = []
    try:
        if path.exists():
            with closing(Spool(path, create=False)) as spool:
                waiting = spool.waiting()
    except (DirectoryError, MailFailure, OSError) as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        print_json(list(map(plain.waiting, waiting)))
        return
    print_rows(["id", "type", "to", "since", "due", "attempts", "problem"], [
        [each.event.id, each.event.kind, shown(each.url), local_time(each.event.since),
         local_time(each.due), str(each.attempts), each.problem or "-"] for each in waiting])
