"""``mailsvc trace``: what happened to a message, on a connection, or for an address."""

from __future__ import annotations

import datetime
import time
from contextlib import suppress
from pathlib import Path

import click

from mailsvc import plain
from mailsvc.cli.arguments import DURATION
from mailsvc.cli.listing import json_option, print_json
from mailsvc.cli.place import data_directory, place_options, settings
from mailsvc.log import escape
from mailsvc.names import DirectoryError
from mailsvc.plain import local_time
from mailsvc.tracing.archive import Reader
from mailsvc.tracing.search import stories
from mailsvc.tracing.story import Step, Story

#: How often --follow looks, seconds.
_LOOK_EVERY = 0.5


@click.command()
@click.argument("what", metavar="WHAT")
@click.option("--since", "seconds", type=DURATION, metavar="DURATION",
              help="Only what happened in the last 90s, 30m, 12h, 7d, 52w.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=10, metavar="N",
              help="How many messages are told of, the newest first [10].")
@click.option("--follow", is_flag=True, help="Wait for what happens next, until Ctrl-C.")
@json_option
@place_options
def trace(what: str, seconds: int | None, limit: int, follow: bool, as_json: bool) -> None:
    """Tell what happened to a message.

    WHAT is an id: of a message, as in the 250 reply, the Received field, the log and `mailsvc queue
    list`, or of a connection, as in the log; or a Message-ID in angle brackets; or an address, of
    sender or recipient, or a client's IP address.  Each line has the time, how much later it was
    than the first, what it belongs to, and what happened.  Exit status 1 when nothing is known.

    The service need not run.  What it logged within the last second may be missing.

    The keys in JSON, in an array with an object for each message or connection, are id, kind
    (message or connection), facts (an object) and steps, each with time (RFC 3339), elapsed
    (seconds), phase, text and message (an id).

    \b
    Example:
      mailsvc trace 1K16KWV2DBF00EP5
      mailsvc trace alice@example.org --since 2d
      mailsvc trace '<20261127.4711@example.net>' --json
    """
    if follow and as_json:
        raise click.UsageError("--follow prints lines as they come; leave out --json.")
    directory = data_directory() / "trace"
    since = time.time() - seconds if seconds is not None else 0.0
    try:
        with Reader(directory) as reader:
            found = stories(reader, what, since, limit)
            for problem in reader.problems:
                click.echo(f"Note: {problem}", err=True)
            if not (found or follow):
                raise click.ClickException(_unknown(reader, what, seconds))
            if as_json:
                print_json([plain.story(story) for story in found])
            else:
                click.echo("\n\n".join(map(_text, found)))
        if follow:
            with suppress(KeyboardInterrupt):
                _follow(directory, what, since, limit, found)
    except DirectoryError as error:
        raise click.ClickException(str(error)) from error


def _unknown(reader: Reader, what: str, seconds: int | None) -> str:
    began = reader.began()
    if began is None:
        reason = ("nothing has been kept yet" if settings().trace.enabled else
                  "nothing is kept, for trace.enabled is false")
        return (f"nothing is known of {what}: {reason}; is this the right service (--config, "
                "--dir)?")
    within = f" in the last {seconds} seconds" if seconds is not None else ""
    return (f"nothing is known of {what}{within}; what is kept begins at {local_time(began)} "
            f"(trace.days is {settings().trace.days:g}, trace.octets {settings().trace.octets:,})")


# ---- for people ---------------------------------------------------------------------------------


def _text(story: Story) -> str:
    facts = story.facts
    lines = [f"{story.kind} {story.id}"]
    if story.kind == "message":
        lines.append(f"  from <{facts.get('sender', '')}> to "
                     f"{', '.join(facts['recipients']) or 'nobody'}")
        if facts.get("message_id"):
            lines.append(f"  Message-ID {facts['message_id']}")
    lines.append("")
    first = story.steps[0].time
    lines += [_line(step, first, story) for step in story.steps]
    return "\n".join(map(escape, lines))


def _line(step: Step, first: float, story: Story) -> str:
    other = f"{step.message}: " if step.message not in ("", story.id) else ""
    return (f"  {_clock(step.time)}  {_elapsed(step.time - first):>9}  {step.phase:<9}  "
            f"{other}{step.text}")


def _clock(seconds: float) -> str:
    here = datetime.datetime.fromtimestamp(seconds).astimezone()
    return here.isoformat(" ", timespec="milliseconds")


def _elapsed(seconds: float) -> str:
    if seconds < 100:
        return f"+{seconds:.3f} s"
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"+{seconds / size:.1f} {unit}"
    return f"+{seconds:.0f} s"


def _follow(directory: Path, what: str, since: float, limit: int, told: list[Story]) -> None:
    seen = {(story.id, step) for story in told for step in story.steps}
    while True:
        time.sleep(_LOOK_EVERY)
        with Reader(directory) as reader:  # files come and go
            for story in reversed(stories(reader, what, since, limit)):
                for step in story.steps:
                    if (story.id, step) not in seen:
                        seen.add((story.id, step))
                        click.echo(f"{story.id}{escape(_line(step, story.steps[0].time, story))}")
