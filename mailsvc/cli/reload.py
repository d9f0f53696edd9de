"""``mailsvc reload``: the running service takes up its changed configuration, or says why not."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mailsvc import control
from mailsvc.cli.listing import json_option, print_json
from mailsvc.cli.place import place_options, settings
from mailsvc.control import ReloadRefused
from mailsvc.localsocket import NoService


@click.command()
@json_option
@place_options
def reload(as_json: bool) -> None:
    """Let the running service read its configuration again.

    It waits until the service serves by it.  No session is cut: new workers take the connections
    from then on, the former ones end with their last session.  If anything is wrong it goes on
    exactly as before, and every reason is told; the status is 1 then, as when no service runs.
    `mailsvc config diff` shows beforehand what would change.

    With --json it is an object: workers, how many serve by it, or null; and refused, the reasons.

    \b
    Example:
      mailsvc config diff || mailsvc reload
    """
    if sys.stderr.isatty():
        click.echo("waiting for the new workers ...", err=True)
    try:
        workers = control.reload(Path(settings().service.data))
    except NoService as problem:
        raise click.ClickException(str(problem)) from problem
    except ReloadRefused as refused:
        if as_json:
            print_json({"workers": None, "refused": list(refused.problems)})
            sys.exit(1)
        raise click.ClickException(
            "refused; the configuration stays as it was:\n" + str(refused)) from refused
    if as_json:
        print_json({"workers": workers, "refused": []})
    else:
        click.echo(f"reloaded: {workers} workers serve by the configuration as it is now")
