"""mailsvc.console.forms: what browsers send, in any pieces, and what others send."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailsvc.console.forms import FIELD_OCTETS, PARTS, BadForm, Form, MultiPart, UrlEncoded
from tests.console import multipart


def read(reader: MultiPart | UrlEncoded, *blocks: bytes) -> Form:
    for block in blocks:
        reader.feed(block)
    return reader.end()


@given(st.dictionaries(st.text(min_size=1).filter(lambda text: not set(text) & set('"\r\n\\%;')),
                       st.text(), max_size=5),
       st.lists(st.tuples(st.just("file"), st.text(
           st.characters(exclude_categories=["Cc", "Cs"], exclude_characters='/\\%"'), min_size=1),
           st.binary()), max_size=3),
       st.integers(1, 50))
def test_a_form_is_read_as_it_was_written(fields: dict[str, str],
                                          files: list[tuple[str, str, bytes]],
                                          size: int) -> None:
    fields = {name.strip() or "x": value for name, value in fields.items()}
    body, kind = multipart(fields, files)
    form = read(MultiPart(kind.encode()),
                *(body[at:at + size] for at in range(0, len(body), size)))
    assert {name: values[0] for name, values in form.fields.items()} == fields
    assert [(each.name.strip(), each.content) for each in form.files.get("file", [])] == [
        (name.strip(), content) for _, name, content in files if name.strip() or content]


@given(st.binary(max_size=300), st.integers(1, 40))
def test_any_octets_are_a_form_or_bad(data: bytes, size: int) -> None:
    for reader in (UrlEncoded(), MultiPart(b"multipart/form-data; boundary=b")):
        with contextlib.suppress(BadForm):
            read(reader, *(data[at:at + size] for at in range(0, len(data), size)))


def test_url_encoded() -> None:
    form = read(UrlEncoded(), b"a=1&a=2&b=%C3", b"%BC+x&c=&d=%ff&e=x%0D%0Ay")
    assert form.fields == {"a": ["1", "2"], "b": ["ü x"], "c": [""], "d": ["\ufffd"],
                           "e": ["x\r\ny"]}
    assert (form["a"], form["b"], form["none"], form.text("e")) == ("1", "ü x", "", "x\ny")
    assert "c" in form
    assert "none" not in form


@pytest.mark.parametrize("kind", [b"multipart/form-data", b"multipart/form-data; boundary=",
                                  b"multipart/form-data; boundary=" + b"x" * 71])
def test_no_boundary(kind: bytes) -> None:
    with pytest.raises(BadForm):
        MultiPart(kind)


@pytest.mark.parametrize("body", [
    b"", b"--b", b"--b\r\n", b"--b\r\nContent-Disposition: form-data; name=x\r\n\r\nno end",
    b"--c\r\n\r\n\r\n--c--", b"--b\r\n" + b"X-Long: " + b"x" * 9000 + b"\r\n\r\n--b--",
    b"--b\r\n" + b"x" * 9000 + b": x\r\n\r\n--b--",
])
def test_what_is_cut_short_or_odd_is_refused(body: bytes) -> None:
    with pytest.raises(BadForm):
        read(MultiPart(b"multipart/form-data; boundary=b"), body)


def test_there_is_an_end_to_all() -> None:
    many, kind = multipart({f"f{number}": "" for number in range(PARTS + 1)})
    with pytest.raises(BadForm, match="too many"):
        read(MultiPart(kind.encode()), many)
    large, kind = multipart({"a": "x" * (FIELD_OCTETS // 2), "b": "x" * (FIELD_OCTETS // 2 + 1)})
    with pytest.raises(BadForm, match="too long"):
        read(MultiPart(kind.encode()), large)
    with pytest.raises(BadForm):
        read(UrlEncoded(), b"a=" + b"x" * FIELD_OCTETS)
    with pytest.raises(BadForm):
        read(UrlEncoded(), b"&".join(b"a%d=1" % number for number in range(PARTS + 1)))


@pytest.mark.parametrize(("sent", "name"), [
    ("../../x", "x"), ("C:\\dir\\x.txt", "x.txt"), ("a%22b", 'a"b'), ("", "")])
def test_names_of_files(sent: str, name: str) -> None:
    body, kind = multipart({}, [("file", sent, b"content")])
    assert read(MultiPart(kind.encode()), body).files["file"][0].name == name
