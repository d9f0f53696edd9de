"""How things are listed: a table on a terminal, aligned text into a pipe or file, or JSON.

The first are for people and may change; the JSON is for programs: an array of objects, or one
object, with the keys that each command's help names.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import click
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mailsvc.cli.streams import holds

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def print_json(value: Any) -> None:
    click.echo(json_text(value, indent=2))


def json_text(value: Any, indent: int | None = None) -> str:
    """*value* in JSON, as readable as standard output lets it be."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return text if holds(text) else json.dumps(value, indent=indent)


#: The cells that each column of a table can have at least; with fewer, words cannot be read.
_LEAST = 5


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print *rows* of one line each under the headings *columns*.

    In a window that is too narrow for so many columns, each row is printed as lines.
    """
    widths = [max(map(cell_len, column)) for column in zip(columns, *rows, strict=True)]
    if sys.stdout.isatty():
        console = Console()
        # A border, and a space before and behind each.
        if sum(min(width, _LEAST) + 3 for width in widths) + 1 > console.width:
            _print_one_by_one(columns, rows)
            return
        table = Table()
        for column in columns:
            table.add_column(column, overflow="fold")  # in a narrow window nothing is cut off
        for row in rows:
            table.add_row(*map(Text, row))  # Text: brackets in names are not markup
        console.print(table)
        return
    for line in ([column.upper() for column in columns], *rows):
        click.echo("  ".join(cell + " " * (width - cell_len(cell))
                             for cell, width in zip(line, widths, strict=True)).rstrip())


def _print_one_by_one(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not rows:
        click.echo(", ".join(columns) + ": none")
    width = max(map(len, columns)) + 1
    for number, row in enumerate(rows):
        if number:
            click.echo()
        for column, cell in zip(columns, row, strict=True):
            click.echo(f"{column + ':':<{width}} {cell}")
