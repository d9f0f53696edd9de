"""The TOML locator, against documents that are written with their lines counted."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailsvc.toml import assignment, literal, locate, parsed

DOCUMENT = '''\
# [not.a.table]
top = 1
"quoted # = ]" = 'literal \\'
dotted . "key".leaf = 2 # = 3

[table]
text = """
[not.a.table]
fake = 1
\\"""
"""""
after = 1979-05-27 07:32:00
literal = \'\'\'
fake = 2\'\'\'\'
array = [ # comment ]
  "a = 1",
  [1.5, 2], { name = "x", deep = { k = [
    { n = 1 } ] } },
]
last = true

[ table . 'sub.table' ]
key = -1e3
four = """x""""

[[many]]
a = 1
[[many]]
a = 1
[many.of]
b = "]"
[[many.inner]]
c = {}
[[many.inner]]
c = []
'''

LINES = {
    ("top",): 2,
    ("quoted # = ]",): 3,
    ("dotted",): 4, ("dotted", "key"): 4, ("dotted", "key", "leaf"): 4,
    ("table",): 6,
    ("table", "text"): 7,
    ("table", "after"): 12,
    ("table", "literal"): 13,
    ("table", "array"): 15,
    ("table", "array", 2, "name"): 17, ("table", "array", 2, "deep"): 17,
    ("table", "array", 2, "deep", "k"): 17,
    ("table", "array", 2, "deep", "k", 0, "n"): 18,
    ("table", "last"): 20,
    ("table", "sub.table"): 22,
    ("table", "sub.table", "key"): 23, ("table", "sub.table", "four"): 24,
    ("many",): 26,
    ("many", 0): 26, ("many", 0, "a"): 27,
    ("many", 1): 28, ("many", 1, "a"): 29,
    ("many", 1, "of"): 30, ("many", 1, "of", "b"): 31,
    ("many", 1, "inner"): 32,
    ("many", 1, "inner", 0): 32, ("many", 1, "inner", 0, "c"): 33,
    ("many", 1, "inner", 1): 34, ("many", 1, "inner", 1, "c"): 35,
}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_every_form(end: str) -> None:
    text = DOCUMENT.replace("\n", end)
    tomllib.loads(text)
    assert locate(text) == LINES


def test_no_final_line_end() -> None:
    assert locate("a = 1\nb = [1]\nc = 1.5") == {("a",): 1, ("b",): 2, ("c",): 3}


def test_what_is_not_toml_ends_too() -> None:
    for text in "a", "a.", "[", "[[a", "[a]b", "a = [", "a = [1, {", "a = {b", "a = {b = ", '"""':
        assert len(locate(text)) <= 3


def test_empty() -> None:
    assert locate("") == locate("\n# nothing\n") == {}


# ---- against documents made at random -----------------------------------------------------------

names = st.text(st.characters(codec="utf-8"), max_size=6) | st.sampled_from(
    ["a", "b-1", "=", "#", "]", "[x]", "'", '"', "\\", "a.b", "\n"])
blanks = st.sampled_from(["", " ", "\t", "  "])
skips = st.sampled_from(["", " ", "\n", " # ] } = '\n", "\n\n  "])


@st.composite
def keys(draw: st.DrawFn, name: str) -> str:
    """*name* written as a key, in one of the ways there are."""
    ways = [literal(name)]
    if name.isascii() and name.replace("-", "a").isalnum():
        ways.append(name)
    if "'" not in name and name.isprintable():
        ways.append(f"'{name}'")
    return draw(st.sampled_from(ways))


scalars = (
    st.integers(-10**20, 10**20).map(str)
    | st.floats(allow_nan=False, allow_infinity=False).map(repr)
    | st.sampled_from(["true", "inf", "1979-05-27 07:32:00.5", "07:32:00", '""', "''", '""""""',
                       '"""\n"""', '"""a""b"""""', '"""a""""', "'''a''''", "'''\n'x'\n=[{'''",
                       '"""\\"""\\\n  x\n"""'])
    | st.text(st.characters(codec="utf-8"), max_size=8).map(literal)
)


class Writer:
    """Writes a document and notes on which line each key came to stand."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.text = ""
        self.lines: dict[tuple[str | int, ...], int] = {}

    def note(self, path: tuple[str | int, ...]) -> None:
        self.lines.setdefault(path, self.text.count("\n") + 1)

    def value(self, path: tuple[str | int, ...], depth: int) -> None:
        kind = self.draw(st.sampled_from(["scalar", "scalar", "array", "table"][:2 + 2 * depth]))
        if kind == "scalar":
            self.text += self.draw(scalars)
        elif kind == "array":
            self.text += "["
            for index in range(self.draw(st.integers(0, 3))):
                self.text += self.draw(skips)
                self.value((*path, index), depth - 1)
                self.text += self.draw(skips) + ","
            self.text += self.draw(skips) + "]"
        else:
            self.text += "{"
            for position, name in enumerate(self.draw(st.lists(names, max_size=3, unique=True))):
                self.text += "," * (position > 0) + self.draw(blanks)
                self.pair(path, name, depth - 1)
                self.text += self.draw(blanks)
            self.text += "}"

    def pair(self, path: tuple[str | int, ...], name: str, depth: int) -> None:
        for part in [name, *self.draw(st.lists(names, max_size=2))]:
            if path and self.text.endswith("\0"):
                self.text = self.text[:-1] + self.draw(blanks) + "." + self.draw(blanks)
            path = (*path, part)
            self.note(path)
            self.text += self.draw(keys(part)) + "\0"
        self.text = self.text[:-1] + self.draw(blanks) + "=" + self.draw(blanks)
        self.value(path, depth)

    def table(self, path: tuple[str | int, ...]) -> None:
        for name in self.draw(st.lists(names, max_size=3, unique=True)):
            self.text += self.draw(skips)
            self.pair(path, name, 2)
            self.text += self.draw(st.sampled_from(["\n", " # comment\n", "\n\n"]))


@given(st.data())
def test_any_document(data: st.DataObject) -> None:
    writer = Writer(data.draw)
    for index, name in enumerate(data.draw(st.lists(names, max_size=4, unique=True))):
        repeats = data.draw(st.integers(0, 2))
        for element in range(repeats):
            header = data.draw(keys(name))
            writer.note((name,))
            writer.note((name, element))
            writer.text += f"[[ {header} ]]\n"
            writer.table((name, element))
        if not repeats:
            if index:
                writer.note((name,))
                writer.text += f"[ {data.draw(keys(name))}\t] # x\n"
                writer.table((name,))
            else:
                writer.pair((), name, 2)
                writer.text += "\n"
    tomllib.loads(writer.text)
    assert locate(writer.text) == writer.lines


plain = st.recursive(
    st.booleans() | st.integers() | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.text(st.characters(codec="utf-8")), inner, max_size=3), max_leaves=8)


@given(plain)
def test_a_literal_is_read_back(value: object) -> None:
    assert tomllib.loads(f"x = {literal(value)}") == {"x": value}
    assert parsed(literal(value)) == value
    assert "\n" not in literal(value)


@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=3), st.text())
def test_an_assignment_is_taken_apart(path: list[str], value: str) -> None:
    key = " . ".join(map(literal, path))
    assert assignment(f"{key} = {value}") == (tuple(path), value.strip())


@given(st.text())
def test_anything_is_an_assignment_or_a_value_error(text: str) -> None:
    try:
        path, value = assignment(text)
    except ValueError:
        return
    assert path
    assert text.rstrip().endswith(value)


@pytest.mark.parametrize("text", ["", "=1", "a", "a.=1", "a b=1", "a\n=1", "ä=1", '"a=1'])
def test_not_an_assignment(text: str) -> None:
    with pytest.raises(ValueError):
        assignment(text)


@pytest.mark.parametrize(("text", "value"), [
    ("1", 1), ("1.5", 1.5), ("true", True), ('"x"', "x"), ("[1, 2]", [1, 2]), ("{a = 1}", {"a": 1}),
    ("info", "info"), ("", ""), ("1\nb = 2", "1\nb = 2"), ("tcp:25", "tcp:25"), ("[1", "[1"),
    ("[" * 10_000, "[" * 10_000),
])
def test_a_value_or_the_text_itself(text: str, value: object) -> None:
    assert parsed(text) == value
