"""What ``--help`` says, of every command."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click
import pytest

from mailsvc.cli import main

#: Every terminal has so many columns.
COLUMNS = 80

#: They are the same everywhere, and do not count as a command's own.
COMMON = {"--dir", "--config", "--help", "--version", "--json"}


def commands(command: click.Command, *path: str) -> Iterator[tuple[str, click.Command]]:
    """*command*, called by *path*, and all below it."""
    yield " ".join(path), command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from commands(below, *path, name)


ALL = dict(commands(main, "mailsvc"))


def shown(name: str) -> str:
    command = ALL[name]
    context = click.Context(command, info_name=name, terminal_width=COLUMNS,
                            max_content_width=COLUMNS, **command.context_settings)
    return command.get_help(context)


@pytest.mark.parametrize("name", ALL)
def test_it_says_what_it_does(name: str) -> None:
    command = ALL[name]
    summary = command.get_short_help_str(1000)
    assert re.fullmatch(r"[A-Z].*\.", summary)
    text = (command.help or "") + (command.epilog or "")
    own = [option for option in command.params if isinstance(option, click.Option)
           and not COMMON.intersection(option.opts)]
    if len(own) > 3:
        assert "Example:\n" in text
    # What stands below "Example:" calls this command.
    assert name in text.rpartition("Example:\n")[2] or "Example:\n" not in text


@pytest.mark.parametrize("name", ALL)
def test_each_option_is_explained(name: str) -> None:
    for option in ALL[name].params:
        if isinstance(option, click.Option):
            assert re.search(r"[.\]]$", option.help or ""), option.opts


@pytest.mark.parametrize("name", ALL)
def test_it_fits_a_terminal(name: str) -> None:
    text = shown(name)
    assert text.startswith(f"Usage: {name}")
    assert [line for line in text.splitlines() if len(line) > COLUMNS] == []
    if isinstance(ALL[name], click.Group):
        # None of the sentences about its commands is cut short.
        listed = text.partition("Commands:\n")[2]
        assert len(listed.splitlines()) == len(ALL[name].list_commands(click.Context(ALL[name])))
        assert [line for line in listed.splitlines() if not line.endswith(".")
                or line.endswith("...")] == []
