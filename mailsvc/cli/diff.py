"""``mailsvc config diff``: what a reload would change, and for whom."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from mailsvc import __version__
from mailsvc.cli.arguments import DURATION
from mailsvc.cli.listing import json_option, print_json, print_rows
from mailsvc.cli.place import place_options, settings
from mailsvc.cli.progress import progress
from mailsvc.config import DEFAULT_PATH, ConfigurationError, Settings, load
from mailsvc.consequences import Consequences, consequences
from mailsvc.control import running
from mailsvc.errors import MailFailure
from mailsvc.localsocket import NoService
from mailsvc.log import escape
from mailsvc.names import DirectoryError
from mailsvc.plain import local_time
from mailsvc.rehearsal import Verdict
from mailsvc.toml import literal
from mailsvc.tracing.archive import Reader


class _Trouble(click.ClickException):
    """As of diff(1)."""

    exit_code = 2


@click.command()
@click.argument("file", metavar="[FILE]", required=False, default=None, type=click.Path())
@click.option("--replay", type=DURATION, default="1d", metavar="DURATION",
              help="How far back envelopes are taken from [1d].")
@click.option("--no-replay", is_flag=True, help="Compare the settings only.")
@json_option
@place_options
def diff(file: str | None, replay: int, no_replay: bool, as_json: bool) -> None:
    """Show what would change if the service took up FILE, and for whom.

    It goes key by key.  FILE is by default the file that the service reads; the options that it was
    started with (--set, and those for endpoints) count as they do for it.  "reload" marks what
    `mailsvc reload` can change; "restart" what it cannot, and then it would refuse the rest, too.
    Passwords in URLs are not shown.

    The envelopes that came within the last day are then played through both, without consequences,
    and those are shown that would be answered otherwise, or go elsewhere.

    The status is that of diff: 0 when nothing would change, 1 when something would, 2 when that
    cannot be told: no service runs, or the file has mistakes, which are listed.

    \b
    With --json it is an object with
      reload     whether `mailsvc reload` would do: true also if nothing
                 changes
      changes    an array of objects: key; now and then, the values (null if
                 that version has no such key); where, what makes it so:
                 FILE:LINE, "--set", or null for a default; needs, "reload" or
                 "restart"
      envelopes  an object: since (RFC 3339); came, how many; unlike, of how
                 many kinds; replayed, how many of these; changes, an array of
                 objects, each with times, client, user, sender, recipient, and
                 now and then, with reply, accounts and onward; null if nothing
                 changes or none can be replayed

    \b
    Example:
      mailsvc config diff && echo nothing to do
      mailsvc config diff /etc/mailsvc-new.toml
    """
    try:
        told = running(Path(settings().service.data))
        if told["overrides"] is None and file is None:
            raise _Trouble("the service reads no configuration file (mailsvc dev); name a FILE")
        then = load(file or told["config"], told["overrides"] or ())
    except (NoService, ConfigurationError) as error:
        raise _Trouble(str(error)) from error
    except _Trouble:
        raise
    except click.ClickException as error:
        raise _Trouble(error.message) from error
    if told["version"] != __version__:
        click.echo(f"Note: the service is still of version {told['version']}, this command of "
                   f"{__version__}", err=True)
    changes = list(_changes(told, then))
    possible = all(each["needs"] == "reload" for each in changes)
    since = time.time() - replay
    played = None if no_replay or not changes else _replayed(told, then, since)
    if as_json:
        print_json({"reload": possible, "changes": changes,
                    "envelopes": played and _plain(played, since)})
    elif changes:
        print_rows(["key", "now", "then", "from", "needs"], [
            [each["key"], _text(each["now"]), _text(each["then"]), each["where"] or "default",
             each["needs"]] for each in changes])
        click.echo("`mailsvc reload` changes it without dropping a session." if possible else
                   "`mailsvc reload` would be refused: restart the service to change it.")
        if played is not None:
            _print_played(played, since)
    else:
        click.echo(f"nothing would change by {file or told['config'] or DEFAULT_PATH}")
    if changes:
        sys.exit(1)


def _replayed(told: dict[str, Any], then: Settings, since: float) -> Consequences | None:
    """What came *since* then, played through; None, with a note, where that cannot be done."""
    values: dict[str, dict[str, Any]] = {}
    for key, value in told["values"].items():
        section, _, name = key.partition(".")
        values.setdefault(section, {})[name] = value
    try:
        now = Settings.from_mapping(values)
        with Reader(Path(now.service.data) / "trace") as reader, progress("Envelopes") as tell:
            found = consequences(now, then, reader.everything(since), tell)
            for problem in reader.problems:
                click.echo(f"Note: {problem}", err=True)
            return found
    except (ConfigurationError, DirectoryError, MailFailure) as error:
        click.echo(f"Note: envelopes cannot be replayed: {error}", err=True)
        return None


def _plain(played: Consequences, since: float) -> dict[str, Any]:
    def verdict(given: Verdict) -> dict[str, Any]:
        return {"reply": given.reply, "accounts": given.accounts,
                "onward": [{"address": address, "hop": str(hop)}
                           for address, hop, _ in given.onward]}

    return {"since": local_time(since), "came": played.envelopes, "unlike": played.kinds,
            "replayed": played.rehearsed, "changes": [
                {"times": each.times, **each.offered._asdict(), "now": verdict(each.now),
                 "then": verdict(each.then)} for each in played.changes]}


def _print_played(played: Consequences, since: float) -> None:
    changed = sum(each.times for each in played.changes)
    of = "" if played.rehearsed == played.kinds else (
        f" ({played.rehearsed:,} of {played.kinds:,} kinds were replayed, the most frequent)")
    click.echo(f"Of {played.envelopes:,} envelopes since {local_time(since)}, {changed:,} would be "
               f"answered otherwise{of}.")
    if played.changes:
        print_rows(["times", "from", "user", "envelope", "now", "then"], [
            [str(each.times), each.offered.client, escape(each.offered.user) or "-",
             escape(f"{each.offered.sender or '<>'} -> {each.offered.recipient}"),
             escape(_in_short(each.now)), escape(_in_short(each.then))]
            for each in played.changes])


def _in_short(verdict: Verdict) -> str:
    where = [*verdict.accounts, *(f"{address} by {hop}" for address, hop, _ in verdict.onward)]
    return f"{verdict.reply}; to {', '.join(where)}" if where else verdict.reply


def _changes(told: dict[str, Any], then: Settings) -> Iterator[dict[str, Any]]:
    """Each key that differs between what a service *told* of itself and *then*."""
    now = dict(told["values"])
    new = {str(key): value for key, value in then.entries()}
    for key in dict.fromkeys([*new, *now]):
        if key in now and key in new and now[key] == new[key]:
            continue
        fixed = key not in now or key not in new or not {key, key.partition(".")[0]}.isdisjoint(
            told["fixed"])
        before, after = _masked(now.get(key)), _masked(new.get(key))
        yield {"key": key, "now": before,
               "then": _masked(new[key], "another") if before == after else after,
               "where": then.given.get(key), "needs": "restart" if fixed else "reload"}


def _masked(value: Any, password: str = "...") -> Any:
    """*value* with *password* in the place of those in URLs."""
    if isinstance(value, list):
        return [_masked(each, password) for each in value]
    if isinstance(value, dict):
        return {key: _masked(each, password) for key, each in value.items()}
    if not isinstance(value, str):
        return value
    return re.sub(r"(//[^\s/:@]*):[^\s/@]*@", rf"\1:{password}@", value)


def _text(value: Any) -> str:
    return "-" if value is None else literal(value)
