"""``mailsvc queue``: the mail that waits to leave."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from mailsvc.cli.arguments import octets_text
from mailsvc.cli.listing import json_option, print_json, print_rows
from mailsvc.cli.place import data_directory, place_options
from mailsvc.cli.tls import tls
from mailsvc.plain import queued
from mailsvc.queue import control
from mailsvc.queue.filter import FilterError, Test, parse, status, summary
from mailsvc.queue.message import QueuedMessage, Unreadable
from mailsvc.queue.routes import parse_route
from mailsvc.queue.spool import Spool

_FILTER = """
    FILTER is words that all have to hold, such as to:@example.org from:alice@example.com
    status:deferred 'age>4h' 'size>1M' 'attempts>=3' reason:timeout, or a message's id; a "-" before
    a word turns it round.  Without the quotes a shell takes > for the name of a file.
"""


@click.group(help="""Show the mail that waits to leave, and act on it.
""" + _FILTER)
def queue() -> None:
    pass


queue.add_command(tls)


class _Filtered(click.Command):
    """A command with a FILTER, of which a word may begin with a "-", as options do."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        before, behind = args[:end], args[end + 1 :]
        turned = [each for each in before if re.match("-[^-].", each, re.DOTALL)]
        rest = [each for each in before if each not in turned]
        # Behind the others, for a route stands before the words, whose order means nothing.
        return super().parse_args(ctx, [*rest, "--", *behind, *turned])


def _meant(words: tuple[str, ...]) -> Test:
    try:
        return parse(words)
    except FilterError as error:
        raise click.UsageError(str(error)) from error


def _root() -> Path:
    return data_directory() / "queue"


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise click.ClickException(
            f"the queue in {_root()} cannot be used: {error.strerror or error}; run this as the "
            "user that runs mailsvc, or name the right place with --dir or --config") from error
    except ValueError as error:
        raise click.ClickException(str(error)) from error


def _messages(words: tuple[str, ...]) -> list[QueuedMessage]:
    meant, now, spool = _meant(words), time.time(), Spool(_root())
    with _explained():
        if not spool.root.exists():
            return []
        return [message for message in spool.messages() if meant(message, now)]


def _duration(seconds: float) -> str:
    """For a column: 45s, 12m, 3h, 4d."""
    seconds = max(0, int(seconds))
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


@queue.command(name="list", cls=_Filtered, help="""List the messages in the queue, the oldest first.
""" + _FILTER + """
    The keys in JSON are id, status (new, deferred, held, scheduled: until its sender wants it to be
    sent, or kept: until the next host fetches it by ATRN), arrived, size, from, account, attempts,
    next, release (until when its sender wants it held), deliver_by (by when its sender wants it
    delivered), priority (-9 to 9), route, and recipients, each with address, original, state
    (waiting, relayed or failed), status, reply, host and tried.

    \b
    Example:
      mailsvc queue list
      mailsvc queue list to:@example.org 'age>4h' --json
""")
@click.argument("filter", nargs=-1)
@json_option
@place_options
def list_(filter: tuple[str, ...], as_json: bool) -> None:
    messages, now = _messages(filter), time.time()
    if as_json:
        print_json([queued(message) for message in messages])
        return
    print_rows(["id", "age", "size", "status", "next", "from", "to", "reason"], [[
        message.id, _duration(now - message.arrived), octets_text(message.size), status(message),
        "-" if message.held else _duration(message.due - now), str(message.reverse_path) or "<>",
        _some([str(each.address) for each in message.waiting]),
        next((each.reply for each in message.waiting if each.reply), "-")] for message in messages])


def _some(names: list[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


@queue.command(help="""Show one message and each of its recipients.

    \b
    Example:
      mailsvc queue show 1K16KWV2DBF00EP5 --text
""")
@click.argument("id")
@click.option("--text", is_flag=True, help="Show the message too.")
@json_option
@place_options
def show(id: str, text: bool, as_json: bool) -> None:
    try:
        with _explained(), Spool(_root()).open(id.upper()) as (message, stream):
            here = stream.tell()
            message.size = stream.seek(0, 2) - here
            stream.seek(here)
            content = stream.read() if text else b""
    except click.ClickException as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise click.ClickException(
                f"there is no message {id} in the queue; see `mailsvc queue list`") from error
        raise
    except Unreadable as error:
        raise click.ClickException(f"{id} cannot be read: {error}") from error
    described = queued(message)
    if as_json:
        print_json({**described, **({"text": content.decode("utf-8", "replace")} if text else {})})
        return
    recipients = described.pop("recipients")
    for key, value in described.items():
        click.echo(f"{key + ':':<11} {'-' if value in (None, '') else value}")
    print_rows(["recipient", "state", "host", "reply"], [
        [each["address"], each["state"], each["host"] or "-", each["reply"] or "-"]
        for each in recipients])
    if text:
        click.echo()
        click.echo(content.decode("utf-8", "replace").replace("\r\n", "\n"), nl=False)


@queue.command(cls=_Filtered, help="""Count the messages in the queue, and to which domains they go.
""" + _FILTER + """
    The keys in JSON are messages, new, deferred, held, scheduled, kept, octets, oldest (seconds)
    and domains, the number of waiting recipients for each.

    \b
    Example:
      mailsvc queue stats
""")
@click.argument("filter", nargs=-1)
@json_option
@place_options
def stats(filter: tuple[str, ...], as_json: bool) -> None:
    messages, now = _messages(filter), time.time()
    domains = Counter(each.address.domain for message in messages for each in message.waiting)
    counts: dict[str, Any] = {
        **summary(messages), "octets": sum(message.size for message in messages),
        "oldest": int(max((now - message.arrived for message in messages), default=0))}
    if as_json:
        print_json({**counts, "domains": dict(domains.most_common())})
        return
    for key, value in counts.items():
        click.echo(f"{key + ':':<11} {_duration(value) if key == 'oldest' else value}")
    if domains:
        click.echo()
        print_rows(["domain", "recipients"],
                   [[domain, str(count)] for domain, count in domains.most_common(20)])


def _action(name: str, done: str, sentence: str, example: str, more: str = "") -> None:
    """Add the command *name*."""
    def run(filter: tuple[str, ...], everything: bool, as_json: bool, route: str = "") -> None:
        _meant(filter)
        if bool(filter) == everything:
            raise click.UsageError("Say which messages: a FILTER, or --all.")
        if route:
            try:
                parse_route(route)
            except ValueError as error:
                raise click.UsageError(f"{route!r}: expected {error}") from error
        with _explained():
            ids, busy = ([], []) if not _root().exists() else control.request(
                _root(), name, list(filter), route, time.time())
        if as_json:
            print_json({"ids": ids, "busy": busy})
            return
        click.echo(f"{done} {len(ids)} message{'' if len(ids) == 1 else 's'}")
        for id in busy:
            click.echo(f"{id} is being sent at this moment; try again", err=True)

    command: Callable[..., Any] = place_options(json_option(click.option(
        "--all", "everything", is_flag=True, help="All messages.")(run)))
    command = click.argument("filter", nargs=-1)(command)
    if name == "reroute":
        command = click.argument("route")(command)
    queue.command(name=name, cls=_Filtered, help=f"{sentence}\n\n    {more}\n" + _FILTER + f"""
    The keys in JSON are ids, of the messages changed, and busy, of those that are being sent.

    \b
    Example:
      mailsvc queue {example}
""")(command)


_action("hold", "Held", "Keep messages in the queue until they are released.",
        "hold to:@example.org")
_action("release", "Released", "Let go of messages that are held, and try them at once.",
        "release status:held", "Those that their senders want to be sent later are tried, too.")
_action("retry", "Retrying", "Try messages now, and not when they are due.",
        "retry reason:greylisted")
_action("reroute", "Rerouted", "Send messages by another host from now on, and try them now.",
        "reroute backup.example.net:25 to:@example.org",
        "ROUTE is as in relay.routes: host:port, smtps://…, or mx for the exchangers.")
_action("drop", "Dropped", "Remove messages from the queue.  Their senders are not told.",
        "drop from:spammer@example.com")
