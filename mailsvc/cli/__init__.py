"""The ``mailsvc`` command: a table of commands, each imported when it is asked for.

Exit status: 0 done; 1 refused or failed, with a line on standard error that says what to do; 2 the
command line is wrong; 130 interrupted (SIGINT); 141 nobody reads standard output any more
(SIGPIPE).
"""

from __future__ import annotations

import difflib
import importlib
import keyword
import signal
from typing import Any

import click

from mailsvc import __version__
from mailsvc.cli import streams
from mailsvc.cli.place import explained, place_options
from mailsvc.interrupt import ends_quietly, is_raised

#: command -> the module that defines it, under its own name.
COMMANDS = {
    "account": "mailsvc.cli.accounts",
    "acme": "mailsvc.cli.acme",
    "alias": "mailsvc.cli.aliases",
    "api": "mailsvc.cli.api",
    "autoconfig": "mailsvc.cli.autoconfig",
    "backup": "mailsvc.cli.backups",
    "ban": "mailsvc.cli.bans",
    "config": "mailsvc.cli.config",
    "dev": "mailsvc.cli.dev",
    "dkim": "mailsvc.cli.dkim",
    "doctor": "mailsvc.cli.doctor",
    "domain": "mailsvc.cli.domains",
    "explain": "mailsvc.cli.explain",
    "export": "mailsvc.cli.export",
    "fetch": "mailsvc.cli.fetch",
    "fsck": "mailsvc.cli.fsck",
    "import": "mailsvc.cli.importing",
    "queue": "mailsvc.cli.queue",
    "quickstart": "mailsvc.cli.quickstart",
    "reload": "mailsvc.cli.reload",
    "restore": "mailsvc.cli.restore",
    "send": "mailsvc.cli.send",
    "sendmail": "mailsvc.cli.sendmail",
    "sessions": "mailsvc.cli.sessions",
    "stats": "mailsvc.cli.stats",
    "trace": "mailsvc.cli.trace",
    "undelete": "mailsvc.cli.undelete",
    "upgrade": "mailsvc.cli.upgrade",
    "watch": "mailsvc.cli.watch",
    "webhook": "mailsvc.cli.webhook",
}


class CommandTable(click.Group):
    """The commands of :data:`COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        # As PEP 8 names what a keyword is in the way of.
        attribute = cmd_name + "_" * keyword.iskeyword(cmd_name)
        with ends_quietly():
            module = importlib.import_module(COMMANDS[cmd_name])
        command: click.Command = getattr(module, attribute)
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

    def main(self, *arguments: Any, **options: Any) -> Any:
        streams.guard()
        return super().main(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            # What no command expects of a disk, it says no worse than those that do.
            with is_raised(), explained():
                return super().invoke(ctx)
        except (KeyboardInterrupt, click.Abort) as error:
            if isinstance(error, KeyboardInterrupt) or isinstance(
                    error.__context__, KeyboardInterrupt):
                raise SystemExit(_INTERRUPTED) from None
            raise


#: The status of what SIGINT has ended, as shells tell it.
_INTERRUPTED = 128 + signal.SIGINT


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
