"""The manual pages, in roff: ``python -m mailsvc.cli.manual DIR`` writes them, ``make man`` too.

They are made from what is declared, so that they say what ``--help`` and ``mailsvc config
reference`` say: mailsvc(1), a page for each of its commands, as mailsvc-queue(1), and
mailsvc.toml(5).  The requests are those of man(7) that both groff and mandoc know.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path

import click

from mailsvc import __version__
from mailsvc.cli import main
from mailsvc.config import DEFAULT_PATH, KEYS
from mailsvc.toml import literal

_FILES = [
    (DEFAULT_PATH, "The configuration; see mailsvc.toml(5)."),
    ("/var/lib/mailsvc/accounts.sqlite", "Domains, accounts and aliases."),
    ("/var/lib/mailsvc/mail/DOMAIN/NAME/", "A maildir for each account."),
    ("/var/lib/mailsvc/queue/", "Mail that waits to leave."),
]


def pages() -> Iterator[tuple[str, str]]:
    """The name of each page, such as "mailsvc-queue.1", and its text."""
    commands = dict(_below(main, "mailsvc"))
    names = [name.replace(" ", "-") for name in commands]
    yield "mailsvc.1", _overview(names)
    for name, command in commands.items():
        page = name.replace(" ", "-")
        yield f"{page}.1", _command(page, name, command)
    yield "mailsvc.toml.5", _configuration()


def write(folder: Path) -> None:
    """Put the pages into *folder*, by their sections: man1/, man5/."""
    for name, text in pages():
        place = folder / f"man{name.rpartition('.')[2]}" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")


def _below(group: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """The commands of *group* by what they are called as; none if it is no group."""
    if isinstance(group, click.Group):
        context = click.Context(group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            yield f"{path} {name}", command


# ---- pages --------------------------------------------------------------------------------------


def _overview(names: list[str]) -> str:
    lines = [*_head("mailsvc", 1, "SMTP and POP3 mail service"), *_synopsis(main, "mailsvc"),
             ".SH DESCRIPTION", *_prose(main.help or ""), ".SH OPTIONS", *_options(main),
             ".SH COMMANDS", "Each has a page of its own."]
    for name, command in _below(main, "mailsvc"):
        lines += [".TP", f".BR {_word(name.replace(' ', '-'))} (1)", _text(_summary(command))]
    lines += [
        ".SH SERVICE", "The service itself is a plug-in of", ".BR twistd (1):", ".PP", ".nf",
        ".RS 4", _code(f"twistd -n --pidfile= mailsvc --config {DEFAULT_PATH}"), ".RE", ".fi",
        ".PP", _text("`twistd mailsvc --help` lists its options."),
        ".SH FILES"]
    for place, sentence in _FILES:
        lines += [".TP", f".I {_word(place)}", _text(sentence)]
    lines += [".SH EXIT STATUS", *_prose(_STATUS), *_see(*names, "mailsvc.toml(5)")]
    return _page(lines)


_STATUS = """\
0 when it is done; 1 when it is refused or failed, with a line on standard error that says what to
do; 2 when the command line is wrong; 130 when it was interrupted (SIGINT); 141 when nobody reads
its output any more (SIGPIPE).  What a command says of its own status goes before this."""


def _command(page: str, name: str, command: click.Command) -> str:
    lines = [*_head(page, 1, _lowered(_summary(command))), *_synopsis(command, name),
             ".SH DESCRIPTION", *_told(command)]
    if options := _options(command):
        lines += [".SH OPTIONS", *options]
    below = list(_every(command, name))
    if below:
        lines += [".SH COMMANDS", _text(_EVERYWHERE)]
    for called, each in below:
        lines += [f".SS {_word(_usage(each, called))}", *_told(each),
                  *_options(each, frozenset({"--config", "--dir", "--help"}))]
    if "Status" not in (command.epilog or "") + (command.help or ""):
        lines += [".SH EXIT STATUS", *_prose(_STATUS)]
    lines += _see("mailsvc", "mailsvc.toml(5)")
    return _page(lines)


_EVERYWHERE = """\
Each has `--help`; those that are about a service have `--config` and `--dir` too, as in mailsvc(1).
"""


def _every(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """All that can be called below *command*; a group is its commands."""
    for name, each in _below(command, path):
        if isinstance(each, click.Group):
            yield from _every(each, name)
        else:
            yield name, each


def _configuration() -> str:
    lines = [*_head("mailsvc.toml", 5, "configuration of mailsvc"), ".SH SYNOPSIS",
             f".I {_word(DEFAULT_PATH)}", ".SH DESCRIPTION", *_prose(_FORM)]
    section = ""
    for key in KEYS.values():
        if key.section != section:
            section = key.section
            lines.append(f".SH [{section}]")
        lines += [".TP", rf"\fB{_word(key.name)}\fR = {_code(literal(key.default))}",
                  _text(key.sentence), ".br", _text(f"{key.form}.")]
    return _page([*lines, *_see("mailsvc", "mailsvc-config")])


_FORM = """\
A file in TOML: sections in brackets, and in each of them lines of KEY = VALUE.  A key that is left
out has its default, which is what is shown here; an empty file will do, and so will none.

`mailsvc config check` lists every mistake in a file, `mailsvc config why KEY` says what makes a key
what it is, `mailsvc config diff` what a change would do to the running service, and `mailsvc
reload` lets it count.  `mailsvc config reference` prints all of this as a file, commented out."""


# ---- parts of pages -----------------------------------------------------------------------------


def _page(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"


def _head(name: str, section: int, about: str) -> list[str]:
    # As of reproducible builds, https://reproducible-builds.org/specs/source-date-epoch/.
    day = time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH") or time.time()))
    return [r'.\" Made by mailsvc.cli.manual from what mailsvc says of itself.',
            f".TH {name.upper()} {section} {time.strftime('%Y-%m-%d', day)} "
            f'"mailsvc {__version__}"',
            ".SH NAME", rf"{_word(name)} \- {_text(about)}"]


def _synopsis(command: click.Command, name: str) -> list[str]:
    called, _, rest = _usage(command, name).partition(" [OPTIONS]")
    return [".SH SYNOPSIS", rf"\fB{_word(called)}\fR [\fIOPTIONS\fR]{_word(rest)}"
            if rest or "[OPTIONS]" in _usage(command, name) else rf"\fB{_word(called)}\fR"]


def _usage(command: click.Command, name: str) -> str:
    return " ".join([name, *command.collect_usage_pieces(click.Context(command))])


def _summary(command: click.Command) -> str:
    return command.get_short_help_str(1000).rstrip(".")


def _lowered(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def _told(command: click.Command) -> list[str]:
    return [*_prose(command.help or ""), *([".PP"] if command.epilog else []),
            *_prose(command.epilog or "")]


def _options(command: click.Command, without: frozenset[str] = frozenset()) -> list[str]:
    lines: list[str] = []
    context = click.Context(command)
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record and isinstance(parameter, click.Option) and without.isdisjoint(parameter.opts):
            lines += [".TP", rf"\fB{_word(record[0])}\fR", _text(re.sub(r" {2,}", " ", record[1]))]
    return lines


def _see(*names: str) -> list[str]:
    pages = sorted(name if name.endswith(")") else f"{name}(1)" for name in names)
    lines = [".SH SEE ALSO"]
    for page in pages:
        name, _, section = page.partition("(")
        lines.append(f".BR {_word(name)} ({section}{'' if page is pages[-1] else ','}")
    return lines


def _prose(text: str) -> list[str]:
    r"""Paragraphs of *text*, as click takes it: one that begins with \b keeps its lines."""
    lines: list[str] = []
    for number, paragraph in enumerate(re.split(r"\n\n+", cleandoc(text).strip())):
        if number:
            lines.append(".PP")
        first, _, rest = paragraph.partition("\n")
        if first == "\b":
            lines += [".nf", *map(_code, rest.split("\n")), ".fi"]
        elif paragraph:
            lines.append(_text(" ".join(paragraph.split())))
    return lines


# ---- characters ---------------------------------------------------------------------------------


def _text(text: str) -> str:
    """*text* on lines of input, a sentence on each; what stands in `` ` `` is in bold."""
    lines = re.split(r"(?<=[.;:?!]) +(?=[A-Z`\"])", " ".join(text.split()))
    quoted = [re.sub(r"`([^`]+)`", lambda found: rf"\fB{_word(found[1])}\fR", _plain(line))
              for line in lines]
    return "\n".join(_guarded(line) for line in quoted)


def _code(line: str) -> str:
    """*line* as it is to be typed."""
    return _guarded(_word(line))


def _word(text: str) -> str:
    """*text* whose hyphens are those of ASCII, so that it can be copied."""
    return re.sub(r"(?<!\\)-", r"\\-", _plain(text)).replace("'", r"\(aq").replace("`", r"\(ga")


def _plain(text: str) -> str:
    return text.replace("\\", r"\e").replace("…", "...")


def _guarded(line: str) -> str:
    """*line*, which is no request, whatever it begins with."""
    return rf"\&{line}" if line[:1] in {".", "'"} else line


if __name__ == "__main__":
    write(Path(sys.argv[1]))
