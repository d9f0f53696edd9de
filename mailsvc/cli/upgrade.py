"""``mailsvc upgrade``: the program that is installed now takes over from the one that runs."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mailsvc import control
from mailsvc.cli.listing import json_option, print_json
from mailsvc.cli.place import place_options, settings
from mailsvc.control import UpgradeRefused
from mailsvc.localsocket import NoService


@click.command()
@json_option
@place_options
def upgrade(as_json: bool) -> None:
    """Let the program that is installed now take over.

    The command waits for that.  No session is cut and no client is refused: the running program
    starts the new one by its own command line and gives it the listening sockets; when that one
    serves, the former one takes no more connections, and ends with its last session, or after
    service.drain_seconds.  If the new one does not come up, the former one goes on exactly as
    before, and the reason is told; the status is 1 then, as when no service runs.  The whole
    configuration is read again, too.

    With --json it is an object: pid and version of the program that serves now, or null; and
    refused, the reasons.

    \b
    Example:
      /opt/mailsvc/bin/pip install --upgrade . && mailsvc upgrade
    """
    if sys.stderr.isatty():
        click.echo("waiting for the new program ...", err=True)
    try:
        pid, version = control.upgrade(Path(settings().service.data))
    except NoService as problem:
        raise click.ClickException(str(problem)) from problem
    except UpgradeRefused as refused:
        if as_json:
            print_json({"pid": None, "version": None, "refused": [str(refused)]})
            sys.exit(1)
        raise click.ClickException(
            f"refused; the program that ran goes on serving:\n{refused}") from refused
    if as_json:
        print_json({"pid": pid, "version": version, "refused": []})
    else:
        click.echo(f"upgraded: mailsvc {version} serves as process {pid}; the former program ends "
                   "with its last session")
