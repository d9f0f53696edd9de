"""``mailsvc sendmail``: :mod:`mailsvc.sendmail` as one of the commands."""

from __future__ import annotations

import sys

import click

from mailsvc.sendmail import HELP, run


class _Verbatim(click.Command):
    """A command whose arguments click leaves alone: their syntax is sendmail's own."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args == ["--help"]:
            return super().parse_args(ctx, args)
        ctx.params["arguments"] = tuple(args)
        return []


@click.command(cls=_Verbatim, help=HELP, options_metavar="[OPTIONS] [--] [RECIPIENT...]",
               context_settings={"help_option_names": ["--help"]})
def sendmail(arguments: tuple[str, ...]) -> None:
    sys.exit(run(arguments))
