"""The ``mailsvc`` command: a table of commands, each imported when it is asked for.

Exit status: 0 done; 1 refused or failed, with a line on standard error that says what to do; 2 the
command line is wrong.
"""

from __future__ import annotations

import difflib
import importlib

import click

from mailsvc import __version__
from mailsvc.cli.place import place_options

#: command -> the module that defines it, under its own name.
COMMANDS = {
    "account": "mailsvc.cli.accounts",
    "alias": "mailsvc.cli.aliases",
    "autoconfig": "mailsvc.cli.autoconfig",
    "ban": "mailsvc.cli.bans",
    "config": "mailsvc.cli.config",
    "dev": "mailsvc.cli.dev",
    "dkim": "mailsvc.cli.dkim",
    "domain": "mailsvc.cli.domains",
    "explain": "mailsvc.cli.explain",
    "fetch": "mailsvc.cli.fetch",
    "queue": "mailsvc.cli.queue",
    "send": "mailsvc.cli.send",
    "sendmail": "mailsvc.cli.sendmail",
    "stats": "mailsvc.cli.stats",
    "trace": "mailsvc.cli.trace",
}


class CommandTable(click.Group):
    """The commands of :data:`COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(COMMANDS[cmd_name]), cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            # Click looks for a resemblance among commands that are imported already.
            if near := difflib.get_close_matches(args[0], COMMANDS, 1):
                raise click.UsageError(f"{error.message} Did you mean '{near[0]}'?",
                                       error.ctx) from None
            raise


@click.command(cls=CommandTable, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mailsvc")
@place_options
def main() -> None:
    """Administer the mailsvc mail service.

    Changes of accounts, aliases and domains count at once, also for a running service; bans count
    within a second.

    \b
    Example:
      mailsvc domain add example.org
      mailsvc account add alice@example.org
      mailsvc account list
    """
