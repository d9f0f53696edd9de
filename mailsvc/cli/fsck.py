"""``mailsvc fsck``: what is wrong with the files of the service."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Collection
from pathlib import Path

import click

from mailsvc.cli.listing import json_option, print_json
from mailsvc.cli.place import data_directory, explained, open_directory, place_options, settings
from mailsvc.cli.progress import progress
from mailsvc.fsck import Examined, Finding, NotRepaired, examine
from mailsvc.mail import Account


@click.command()
@click.option("--repair", is_flag=True, help="Mend what can be mended without losing anything.")
@click.option("--read", is_flag=True,
              help="Read every message, to see that the disk gives it back and that its size is "
                   "right.")
@click.option("--verbose", "-v", is_flag=True, help="Tell also what does no harm.")
@json_option
@place_options
def fsck(repair: bool, read: bool, verbose: bool, as_json: bool) -> None:
    """Look for what is wrong with mail, queue and accounts on disk.

    Looks at sizes in the names of messages, owners and modes, missing directories, unique-ids and
    base names that are there twice, quota files, abandoned files, maildirs without account, queue
    files, and the structure of the SQLite files.  The service may be running.  Run it as root or as
    the user that runs mailsvc.

    --json prints an array of objects with place, text, harmless, repairable, repaired and problem
    (why it could not be repaired).  Status 1: something that does harm is left.

    \b
    Example:
      mailsvc fsck
      mailsvc fsck --read --repair
    """
    service = settings()
    scheme, _, argument = service.service.store.partition(":")
    data = data_directory()
    what = Examined(
        data, Path(service.accounts.database), Path(argument) if scheme == "maildir" else None,
        _accounts(), service.maildir.sweep_hours, read)
    found: list[tuple[Finding, str]] = []
    with explained(data), progress("maildirs") as tell:
        for finding in examine(what, tell):
            problem = ""
            if repair:
                try:
                    finding.repair()
                except NotRepaired as failure:
                    problem = str(failure)
            found.append((finding, problem))
    if as_json:
        print_json([{"place": each.place, "text": each.text, "harmless": each.harmless,
                     "repairable": each.mend is not None, "repaired": each.repaired,
                     "problem": problem or None} for each, problem in found])
    else:
        for each, problem in found:
            if verbose or not each.harmless or each.repaired or problem:
                click.echo(f"{each.place}: {each.text}" + (
                    " [repaired]" if each.repaired else f" [not repaired: {problem}]" if problem
                    else ""))
        _sum_up(found)
    sys.exit(any(not each.harmless and not each.repaired for each, _ in found))


def _accounts() -> Collection[Account] | None:
    # A file that is damaged is what is looked for.
    with contextlib.suppress(click.ClickException), open_directory() as directory:
        return list(directory.accounts())
    return None


def _sum_up(found: list[tuple[Finding, str]]) -> None:
    repaired = sum(each.repaired for each, _ in found)
    harmless = sum(each.harmless and not each.repaired for each, _ in found)
    click.echo(f"{len(found) - repaired - harmless} problems, {repaired} repaired, {harmless} "
               "that do no harm")
