"""``mailsvc backup``: snapshots of the whole service."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from mailsvc.backup import manifest, snapshot
from mailsvc.backup.manifest import Damaged
from mailsvc.backup.snapshot import Origin, Refused
from mailsvc.certificates import CertificateProblem, files_at
from mailsvc.cli import place
from mailsvc.cli.arguments import Named
from mailsvc.cli.listing import json_option, print_json, print_rows
from mailsvc.cli.place import explained, place_options
from mailsvc.cli.progress import progress
from mailsvc.config import Settings
from mailsvc.plain import local_time


@click.group()
def backup() -> None:
    """Copy the whole service while it runs; verify copies.

    A directory of snapshots holds one for each time: accounts, mail, queue, keys, counts and the
    configuration.  Mail that the snapshot before has already takes no further room.  `mailsvc
    restore` puts everything, or single mailboxes and messages, back.

    \b
    Example, for each night:
      mailsvc backup make /backup/mail --keep 30
      mailsvc backup verify /backup/mail
    """


@backup.command()
@click.argument("directory", type=Named(file_okay=False, path_type=Path))
@click.option("--keep", type=click.IntRange(min=1), metavar="NUMBER",
              help="Afterwards remove all snapshots in DIRECTORY but the newest so many.")
@json_option
@place_options
def make(directory: Path, keep: int | None, as_json: bool) -> None:
    """Take a snapshot in DIRECTORY, which is made if need be.

    Run it as root or as the user that runs mailsvc.  The service may run; it is not disturbed.  A
    snapshot that is broken off is never taken for one.  --json prints an object with snapshot,
    files, octets, maildirs, queued, copied and linked (messages: those the snapshot before had),
    gone (messages that were deleted meanwhile), copied_octets, unreadable, removed, and seconds.

    Status 1: no snapshot was taken, or there are messages that the disk does not give back.

    \b
    Example:
      mailsvc backup make /backup/mail --keep 30
    """
    settings = place.settings()
    try:
        with explained(directory), progress("maildirs") as tell:
            done = snapshot.take(_origin(settings), directory, progress=tell)
            removed = snapshot.keep(directory, keep) if keep else []
    except Refused as refusal:
        raise click.ClickException(str(refusal)) from refusal
    if as_json:
        print_json({"snapshot": str(done.path), "files": done.files, "octets": done.octets,
                    "maildirs": done.maildirs, "queued": done.queued, "copied": done.copied,
                    "linked": done.linked, "gone": done.gone, "copied_octets": done.copied_octets,
                    "unreadable": done.unreadable, "removed": [str(path) for path in removed],
                    "seconds": round(done.seconds, 3)})
    else:
        click.echo(f"{done.path}: {done.files} files, {_size(done.octets)}, of "
                   f"{done.maildirs} maildirs; {done.copied} messages copied, {done.linked} were "
                   f"in the snapshot before, {done.gone} went meanwhile; {done.queued} in the "
                   f"queue; {done.seconds:.1f} s")
        for old in removed:
            click.echo(f"{old} removed")
    for path in done.unreadable:
        click.echo(f"*** {path} cannot be read: Input/output error", err=True)
    sys.exit(1 if done.unreadable else 0)


def _origin(settings: Settings) -> Origin:
    scheme, _, argument = settings.service.store.partition(":")
    configuration = {}
    toml = place.configuration()
    if toml is not None:
        configuration["mailsvc.toml"] = toml
    paths = [path for path in (settings.tls.client_ca, settings.tls.client_crl) if path]
    for certificate in settings.tls.certificates:
        try:
            paths += files_at(certificate)
        except CertificateProblem as problem:
            raise click.ClickException(str(problem)) from problem
    for path in paths:
        configuration[f"tls/{path.strip('/').replace('/', '_')}"] = Path(path)
    for file in configuration.values():
        if not os.access(file, os.R_OK):
            raise click.ClickException(
                f"{file} cannot be read; the snapshot would lack it: run this as a user who may")
    return Origin(settings.service.hostname, Path(settings.service.data),
                  Path(settings.accounts.database),
                  Path(argument) if scheme == "maildir" else None, configuration)


@backup.command(name="list")
@click.argument("directory", type=click.Path(path_type=Path, exists=True))
@json_option
def list_(directory: Path, as_json: bool) -> None:
    """List the snapshots in DIRECTORY, the oldest first.

    The keys in JSON are snapshot, made, host, version, files, octets, and damaged: what is wrong
    with its manifest, or null.

    \b
    Example:
      mailsvc backup list /backup/mail
    """
    rows: list[dict[str, Any]] = []
    with explained(directory):
        for path in snapshot.snapshots(directory):
            try:
                about = manifest.about(path)
            except Damaged as problem:
                rows.append({"snapshot": str(path), "damaged": str(problem)})
                continue
            rows.append({"snapshot": str(path), "made": local_time(about["made"]),
                         "host": about["host"], "version": about["version"],
                         "files": about["files"], "octets": about["octets"], "damaged": None})
    if as_json:
        print_json(rows)
    else:
        print_rows(["snapshot", "made", "host", "files", "size", "damaged"],
                   [[row["snapshot"], row.get("made", ""), row.get("host", ""),
                     str(row.get("files", "")), _size(row["octets"]) if "octets" in row else "",
                     row["damaged"] or ""] for row in rows])


@backup.command()
@click.argument("snapshot_", metavar="DIRECTORY", type=click.Path(path_type=Path, exists=True))
@click.option("--all", "every", is_flag=True, help="Every snapshot in it, not only the newest.")
@json_option
def verify(snapshot_: Path, every: bool, as_json: bool) -> None:
    """Read a snapshot and compare it with its checksums.

    Of a directory of snapshots it is the newest.

    --json prints an array of objects with snapshot and problems.  Status 1: there are problems, or
    no snapshot.

    \b
    Example:
      mailsvc backup verify /backup/mail
    """
    found = snapshot.snapshots(snapshot_)
    if not found:
        raise click.ClickException(f"there is no whole snapshot in {snapshot_}; name where "
                                   "`mailsvc backup make` puts them")
    results: list[tuple[Path, list[str]]] = []
    with explained(snapshot_):
        for path in found if every else found[-1:]:
            with progress(path.name) as tell:
                try:
                    results.append((path, snapshot.verify(path, tell)))
                except Damaged as damage:
                    results.append((path, [str(damage)]))
    if as_json:
        print_json([{"snapshot": str(path), "problems": problems} for path, problems in results])
    else:
        for path, problems in results:
            if not problems:
                click.echo(f"{path} is whole")
            for problem in problems:
                click.echo(f"{path}: {problem}")
    sys.exit(1 if any(problems for _, problems in results) else 0)


def _size(octets: int) -> str:
    for unit, shift in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if octets >= 1 << shift:
            return f"{octets / (1 << shift):.1f} {unit}"
    return f"{octets} octets"
