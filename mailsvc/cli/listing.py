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


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print *rows* of one line each under the headings *columns*."""
    if sys.stdout.isatty():
        table = Table()
        for column in columns:
            table.add_column(column, overflow="fold")  # in a narrow window nothing is cut off
        for row in rows:
            table.add_row(*map(Text, row))  # Text: brackets in names are not markup
        Console().print(table)
        return
    lines = [[column.upper() for column in columns], *rows]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        click.echo("  ".join(cell + " " * (width - cell_len(cell))
                             for cell, width in zip(line, widths, strict=True)).rstrip())
