"""mailsvc.console.letters: messages of strangers made into something that can be shown."""

from __future__ import annotations

import base64
import email.message
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailsvc.console import letters
from mailsvc.console.letters import TooStrange, harmless, heading, letter

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")

#: Ways to run something, fetch something, or be mistaken for the page around.
CORPUS = [each for each in (Path(__file__).parent / "corpus" / "html.txt").read_text().split("\n")
          if each and not each.startswith("# ")]

ALLOWED_URLS = ("http:", "https:", "mailto:")


class Judge(HTMLParser):
    """Finds what could do something."""

    def __init__(self, allowed_images: set[str]) -> None:
        super().__init__()
        self.images = allowed_images
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in {"script", "style", "iframe", "object", "embed", "form", "input", "link", "meta",
                   "base", "svg", "math", "video", "audio", "source", "frame", "frameset",
                   "button", "textarea", "select", "template", "noscript", "applet"}:
            self.found.append(f"<{tag}>")
        for name, value in attrs:
            text = (value or "").strip().lower()
            if name.startswith("on") or name in {"srcset", "background", "formaction", "ping",
                                                 "srcdoc", "action", "poster", "id", "name"}:
                self.found.append(name)
            if name == "src" and value not in self.images:
                self.found.append(f"src={value}")
            if name == "href" and ":" in text.split("/")[0] and not text.startswith(ALLOWED_URLS):
                self.found.append(f"href={value}")
            if name == "style" and ("url(" in text or "expression" in text or "position" in text
                                    or "@import" in text or "behavior" in text):
                self.found.append(f"style={value}")
            if name == "a" and dict(attrs).get("rel") != "noopener noreferrer":
                self.found.append("rel")


def judged(page: str, images: set[str] = frozenset()) -> list[str]:  # type: ignore[assignment]
    judge = Judge(images)
    judge.feed(page)
    judge.close()
    return judge.found


@pytest.mark.parametrize("page", CORPUS, ids=range(len(CORPUS)))
def test_the_corpus_is_harmless(page: str) -> None:
    cleaned, _ = harmless(page, {})
    assert judged(cleaned) == []
    again, _ = harmless(cleaned, {})
    assert sorted(cleaned) == sorted(again), "what was cleaned stays as it is"


@given(st.lists(st.sampled_from([
    "<", ">", "/", "script", "img", " src=", "'", '"', " onerror=", "x", "style", "<!--", "-->",
    "<svg", "<math", "<a href=", "javascript:", "&#x6a;", "]]>", "<![CDATA[", "</", "\0", "\n",
    "<p style=", "url(http://x/)", "<template>", "<noscript>", "<table>", "<xmp>", "<plaintext>"]),
    max_size=30).map("".join))
def test_no_html_does_anything(page: str) -> None:
    assert judged(harmless(page, {})[0]) == []


def test_what_is_left_out_is_told() -> None:
    assert harmless("<p>Hello</p>", {}) == ("<p>Hello</p>", False)
    assert harmless('<img src="http://x/1.gif">', {})[1] is True
    cleaned, hidden = harmless('<img src="cid:a@b" alt="x">', {"a@b": "data:image/png;base64,AA"})
    assert ('src="data:image/png;base64,AA"' in cleaned, hidden) == (True, False)
    cleaned, hidden = harmless('<img src="data:image/svg+xml,<svg>">', {})
    assert ("data:" in cleaned, hidden) == (False, True)


def test_links_lead_elsewhere_and_tell_nothing() -> None:
    cleaned, _ = harmless('<a href="https://example.net/" target="_top" rel="opener">x</a>', {})
    assert 'target="_blank"' in cleaned
    assert 'rel="noopener noreferrer"' in cleaned
    assert "_top" not in cleaned


def made(*parts: tuple[str, bytes], header: str = "Subject: s\r\n") -> bytes:
    """A multipart message of raw parts: their headers, and what they hold."""
    body = b"".join(b"--b\r\n" + head.encode() + b"\r\n\r\n" + data + b"\r\n"
                    for head, data in parts)
    return (header + "MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
            ).encode() + body + b"--b--\r\n"


def test_a_letter_is_taken_apart() -> None:
    found = letter(made(
        ("Content-Type: text/plain; charset=euc-kr", "안녕".encode("euc-kr")),
        ("Content-Type: text/html; charset=utf-8", "<p>Grüße <img src=cid:i@x></p>".encode()),
        ("Content-Type: image/png\r\nContent-ID: <i@x>\r\nContent-Transfer-Encoding: base64",
         base64.b64encode(PIXEL)),
        ("Content-Type: text/plain\r\nContent-Disposition: attachment; filename*=UTF-8''"
         "%EB%A9%94%EB%AA%A8.txt", b"attached"),
        ("Content-Type: application/x-odd; name=\"=?utf-8?b?7ZqM7J2Y?=\"", b"\0\xff"),
        header="From: =?utf-8?q?K=C3=A4the?= <k@example.net>\r\nTo: a@b, c@d\r\n"
               "Subject: =?euc-kr?b?vsiz5w==?= two\r\nDate: Fri, 27 Nov 2026 20:00:00 +0000\r\n"))
    assert found.heading.sender == "Käthe <k@example.net>"
    assert found.heading.subject == "안녕 two"
    assert found.heading.date == 1795809600.0
    assert found.fields[1] == ("To", "a@b, c@d")
    assert found.text == "안녕"
    assert found.html is not None
    assert "Grüße" in found.html
    assert base64.b64encode(PIXEL).decode() in found.html
    assert not found.hidden
    assert [(part.name, part.type, part.size) for part in found.parts] == [
        ("part-3", "image/png", len(PIXEL)), ("메모.txt", "text/plain", 8),
        ("회의", "application/x-odd", 2)]


@pytest.mark.parametrize("header", [
    b"", b"\r\n", b"Subject", b"Subject: \xff\xfe\r\n", b"Subject: =?x-none?b?AAAA?=\r\n",
    b"Subject: =?utf-8?b?====?=\r\n", b"Subject: " + b"=?utf-8?q?a?= " * 5000 + b"\r\n",
    b"From: " + b"(" * 50_000 + b"\r\n", b"Date: Fri, 99 Foo 99999999 99:99:99 +9999\r\n",
    b"Date: " + b"9" * 10_000 + b"\r\n", b"Subject: a\r\n b\r\n\tc\r\n", b": x\r\n",
    b"Subject: \x1b[2J\x00\x07evil\r\n", "Subject: \u202eevil\u2066\r\n".encode(),
])
def test_any_header_gets_a_heading(header: bytes) -> None:
    began = time.monotonic()
    found = heading(header + b"\r\n")
    assert time.monotonic() - began < 2
    for text in (found.sender, found.subject):
        assert len(text) <= letters.FIELD_CHARACTERS
        assert not set(text) & set("\0\x07\x1b\r\n\u202e\u2066")
        text.encode()


@given(st.binary(max_size=400))
def test_any_octets_are_a_letter_or_too_strange(data: bytes) -> None:
    heading(data)
    try:
        found = letter(data)
    except TooStrange:
        return
    (found.text or "").encode()
    assert all(part.name and not set(part.name) & set("/\\\0\r\n") for part in found.parts)


@pytest.mark.parametrize("data", [
    b"".join(b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (each, each)
             for each in range(2000)),
    made(*[("Content-Type: text/plain", b"x")] * 100_000),
    b"Content-Type: text/plain; " + b"a=b; " * 200_000 + b"\r\n\r\nx",
    b"Content-Type: message/rfc822\r\n\r\n" * 3000,
], ids=["nested", "many", "parameters", "messages"])
def test_bombs_are_not_taken_apart(data: bytes) -> None:
    began = time.monotonic()
    with pytest.raises(TooStrange):
        letter(data)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(("name", "expected"), [
    ('"../../etc/passwd"', "passwd"), ('"C:\\\\x\\\\y.exe"', "y.exe"), ('""', "part-1"),
    ('"..."', "part-1"), ('"a\tb"', "a b"), ('"' + "x" * 500 + '"', "x" * 150),
])
def test_names_of_files(name: str, expected: str) -> None:
    part = email.message.Message()
    part["Content-Disposition"] = f"attachment; filename={name}"
    assert letters.name_of(part, 1) == expected
