"""The manual pages, and the JSON Schema: what they are made from is in them, and they are sound."""

from __future__ import annotations

import json
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
from click.testing import CliRunner

from mailsvc.cli import COMMANDS, main, manual
from mailsvc.config import KEYS, ConfigurationError, Settings, reference
from mailsvc.settings import AtLeast, OneOf
from tests.test_cli_help import ALL

PAGES = dict(manual.pages())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("man")
    manual.write(made)
    return made


def shown(folder: Path, page: str, program: Callable[[str], str]) -> str:
    """The page as mandoc shows it, on lines that no word is parted on."""
    done = subprocess.run(
        [program("mandoc"), "-T", "utf8", "-O", "width=500", folder / f"man{page[-1]}" / page],
        capture_output=True, text=True, timeout=60, check=True)
    text: list[str] = []
    for letter in done.stdout:
        if letter == "\b":  # bold is a letter, backspace, the letter
            text.pop()
        else:
            text.append(letter)
    return "".join(text)


def test_there_is_a_page_for_each_command() -> None:
    assert set(PAGES) == {"mailsvc.1", "mailsvc.toml.5",
                          *(f"mailsvc-{each}.1" for each in COMMANDS)}


def test_mandoc_has_nothing_to_say(folder: Path, program: Callable[[str], str]) -> None:
    done = subprocess.run([program("mandoc"), "-T", "lint", "-W", "warning",
                           *sorted(folder.glob("*/*"))],
                          capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_groff_has_nothing_to_say(folder: Path, program: Callable[[str], str]) -> None:
    """As Debian's lintian and most readers have them shown."""
    for page in sorted(folder.glob("*/*")):
        done = subprocess.run([program("man"), "--warnings=all", "-E", "UTF-8", "-Tutf8", "-Z",
                               "-l", page], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, ""), page.name


@pytest.mark.parametrize("name", ALL)
def test_what_help_says_is_in_a_page(name: str, folder: Path,
                                     program: Callable[[str], str]) -> None:
    words = name.split()
    text = shown(folder, "-".join(words[:2]) + ".1", program)
    command = ALL[name]
    if not isinstance(command, click.Group):
        assert name in text
    for option in command.params:
        if isinstance(option, click.Option):
            assert all(each in text for each in option.opts)
    # What is to be typed can be copied.
    told = (command.help or "") + (command.epilog or "")
    for line in told.partition("Example:")[2].split("\n"):
        if line.strip().startswith("mailsvc"):
            assert line.strip() in text


def test_each_key_is_in_its_page(folder: Path, program: Callable[[str], str]) -> None:
    lines = [line.strip() for line in shown(folder, "mailsvc.toml.5", program).split("\n")]
    for key in KEYS.values():
        assert any(line.startswith(f"{key.name} = ") for line in lines), key
        assert any(line.startswith(key.sentence.split("  ")[0][:60]) for line in lines
                   ) or "`" in key.sentence, key


# ---- the schema ---------------------------------------------------------------------------------


def schema() -> dict[str, Any]:
    done = CliRunner().invoke(main, ["config", "schema"])
    made: dict[str, Any] = json.loads(done.stdout)
    return made


VALUES = [True, 0, 1, -1, 1.5, "", "x", "no", [], ["x"], [1], {}, {"a": "x"}, {"a": 1}]


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())


def test_the_schema_takes_the_defaults() -> None:
    validator = jsonschema.Draft202012Validator(schema())
    example = "\n".join(line.removeprefix("#") if line[:1] == "#" and line[1:2].isalpha() else line
                        for line in reference().splitlines())
    document = tomllib.loads(example)
    assert sum(map(len, document.values())) == len(KEYS)
    validator.validate(document)
    for wrong in {"smtp": {"recipient": 1}}, {"stmp": {}}, {"smtp": 1}:
        assert list(validator.iter_errors(wrong)) and refused(wrong)


def refused(document: dict[str, Any]) -> bool:
    try:
        Settings.from_mapping(document)
    except ConfigurationError:
        return True
    return False


@pytest.mark.parametrize("name", KEYS)
def test_the_schema_agrees_with_the_parser(name: str) -> None:
    """What it refuses is refused; where nothing but its own checks is asked, the other way too."""
    key, validator = KEYS[name], jsonschema.Draft202012Validator(schema())
    for value in VALUES:
        document = {key.section: {key.name: value}}
        against = next(validator.iter_errors(document), None) is not None
        if key.check is None or isinstance(key.check, AtLeast | OneOf):
            assert against == refused(document), value
        elif against:
            assert refused(document), value
