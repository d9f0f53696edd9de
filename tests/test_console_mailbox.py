"""mailsvc.console.mailbox, and looking into a maildrop without its lock."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator

import pytest

from tests.console import ACCOUNTS, ALICE, BOB, PASSWORD, Browser, Shown, serving
from tests.service import Service, fetch, login, submit

EMPTY = "empty@example.org"
ATTACHED = bytes(range(256)) * 300


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("console"),
                 accounts=(*ACCOUNTS, f"{EMPTY}:{PASSWORD}")) as running:
        yield running


@pytest.fixture
def browser(service: Service) -> Iterator[Browser]:
    """Alice's, whose mailbox is empty."""
    fetch(service, ALICE)
    yield Browser(service).log_in(ALICE)
    fetch(service, ALICE)


def ids(shown: Shown) -> list[str]:
    return re.findall(r'<li><a href="/mailbox/([^"/]+)"', shown.content.decode())


def subjects(shown: Shown) -> list[str]:
    return re.findall(r'<span class="subject">(.*?)</span>', shown.content.decode())


def message(subject: str, rest: str = "\r\n\r\nHello.\r\n") -> bytes:
    return f"From: Bob <{BOB}>\r\nSubject: {subject}{rest}".encode()


def test_an_empty_mailbox_says_what_to_do(service: Service) -> None:
    browser = Browser(service).log_in(EMPTY)
    shown = browser.ask("/mailbox")
    assert "No mail here." in shown.text
    assert "/send?to=empty%40example.org" in shown.content.decode()
    assert f'value="{EMPTY}"' in browser.ask("/send?to=empty%40example.org").text


def test_the_newest_come_first_and_pages_follow(service: Service, browser: Browser) -> None:
    for number in range(53):
        submit(service, message(f"number {number}"), (ALICE,))
    first, second = browser.ask("/mailbox"), browser.ask("/mailbox?page=2")
    assert subjects(first) == [f"number {number}" for number in range(52, 2, -1)]
    assert subjects(second) == ["number 2", "number 1", "number 0"]
    assert "53 messages" in first.text
    assert 'rel="next"' in first.text
    assert 'rel="next"' not in second.text
    assert subjects(browser.ask("/mailbox?page=99")) == subjects(second)
    assert subjects(browser.ask("/mailbox?page=x")) == subjects(first)


def test_a_message_is_read_escaped(service: Service, browser: Browser) -> None:
    submit(service, message("<script>alert(1)</script> \"'&", "\r\nFrom: x\r\n\r\n<b>text</b>\r\n"),
           (ALICE,))
    shown = browser.ask("/mailbox")
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &#34;&#39;&amp;" in shown.content.decode()
    (id,) = ids(shown)
    for path in (f"/mailbox/{id}", f"/mailbox/{id}/source", f"/mailbox/{id}/delete"):
        content = browser.ask(path).content.decode()
        assert "<script>alert" not in content
        assert "<b>text" not in content
        assert "&lt;script&gt;" in content


def test_html_stands_in_a_frame_that_can_do_nothing(service: Service, browser: Browser) -> None:
    submit(service, message("h", "\r\nContent-Type: text/html\r\n\r\n<p>Hi</p>"
                            "<script>x()</script><img src=http://evil.example/p.gif>\r\n"),
           (ALICE,))
    (id,) = ids(browser.ask("/mailbox"))
    page = browser.ask(f"/mailbox/{id}").content.decode()
    assert re.search(r'<iframe[^>]* sandbox="allow-popups allow-popups-to-escape-sandbox"', page)
    assert "Pictures from elsewhere are not shown" in page
    assert "<p>Hi</p>" not in page
    frame = browser.ask(f"/mailbox/{id}/html")
    policy = frame.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "sandbox allow-popups" in policy
    assert "img-src data:;" in policy
    assert "script" not in policy.replace("sandbox", "")
    assert "<p>Hi</p>" in frame.text
    assert "evil.example" not in frame.text
    assert "<script" not in frame.text


def test_sources_and_parts_are_the_octets_that_came(service: Service, browser: Browser) -> None:
    body = (b"\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n"
            b"Content-Type: text/plain\r\n\r\ntext\r\n--b\r\nContent-Type: text/html; name=x.html"
            b"\r\nContent-Disposition: attachment; filename=\"a;b.html\"\r\n"
            b"Content-Transfer-Encoding: base64\r\n\r\n")
    encoded = base64.encodebytes(ATTACHED).replace(b"\n", b"\r\n")
    submit(service, b"Subject: parts" + body + encoded + b"--b--\r\n", (ALICE,))
    (id,) = ids(browser.ask("/mailbox"))
    shown = browser.ask(f"/mailbox/{id}/download")
    assert shown.content == fetch(service, ALICE, delete=False)[0]
    assert shown.headers["content-type"] == "message/rfc822"
    assert 'filename="parts.eml"' in shown.headers["content-disposition"]
    part = browser.ask(f"/mailbox/{id}/part/2")
    assert part.content == ATTACHED
    assert part.headers["content-type"] == "application/octet-stream"
    assert part.headers["content-disposition"].startswith('attachment; filename="a_b.html"')
    assert "sandbox" in part.headers["content-security-policy"]
    assert browser.ask(f"/mailbox/{id}/part/0").status == 404
    assert browser.ask(f"/mailbox/{id}/part/7").status == 404
    assert browser.ask(f"/mailbox/{id}/html").status == 404
    assert "a;b.html" in browser.ask(f"/mailbox/{id}").text


def test_a_message_larger_than_memory_likes_is_read(service: Service, browser: Browser) -> None:
    large = b"Subject: large\r\n\r\n" + b"0123456789abcdef\r\n" * 100_000
    submit(service, large, (ALICE,))
    (id,) = ids(browser.ask("/mailbox"))
    assert browser.ask(f"/mailbox/{id}/download").content.endswith(large)
    assert "The text goes on" in browser.ask(f"/mailbox/{id}").text
    assert "The text goes on" in browser.ask(f"/mailbox/{id}/source").text


def test_deletion_is_asked_for_and_done(service: Service, browser: Browser) -> None:
    for subject in ("keep", "delete"):
        submit(service, message(subject), (ALICE,))
    id = ids(browser.ask("/mailbox"))[0]
    assert "Delete this message?" in browser.ask(f"/mailbox/{id}/delete").text
    assert len(ids(browser.ask("/mailbox"))) == 2, "only asked"
    shown = browser.post(f"/mailbox/{id}/delete")
    assert shown.where == "/mailbox?notice=deleted"
    assert subjects(browser.ask(shown.where)) == ["keep"]
    assert browser.post(f"/mailbox/{id}/delete").status == 404
    assert browser.ask(f"/mailbox/{id}").status == 404
    assert [b"keep" in each for each in fetch(service, ALICE, delete=False)] == [True]


def test_a_pop3_session_is_not_disturbed(service: Service, browser: Browser) -> None:
    for subject in ("one", "two"):
        submit(service, message(subject), (ALICE,))
    with login(service, ALICE) as pop3:
        assert pop3.ask(b"STAT").startswith(b"+OK 2 ")
        listed = ids(browser.ask("/mailbox"))
        assert len(listed) == 2
        assert browser.ask(f"/mailbox/{listed[0]}").status == 200
        shown = browser.post(f"/mailbox/{listed[0]}/delete")
        assert (shown.status, "fetching from this mailbox" in shown.text) == (409, True)
        pop3.ask(b"RETR 2")
        list(pop3.multiline())
        pop3.ask(b"DELE 2")
        assert len(ids(browser.ask("/mailbox"))) == 2, "deleted at QUIT, and not before"
        pop3.ask(b"QUIT")
    assert len(ids(browser.ask("/mailbox"))) == 1
    assert browser.ask(f"/mailbox/{listed[0]}").status == 404


def test_mail_of_other_programs_is_read(service: Service, browser: Browser) -> None:
    maildir = service.maildir(ALICE)
    submit(service, message("first"), (ALICE,))
    (maildir / "cur" / "1.odd name%2Fü:2,S").write_bytes(b"Subject: odd\n\nLF alone\n")
    shown = browser.ask("/mailbox")
    assert sorted(subjects(shown)) == ["first", "odd"]
    for id in ids(shown):
        assert browser.ask(f"/mailbox/{id}").status == 200
    assert b"LF alone\r\n" in b"".join(
        browser.ask(f"/mailbox/{id}/download").content for id in ids(shown))


def test_what_is_too_strange_can_be_read_as_its_source(service: Service,
                                                       browser: Browser) -> None:
    submit(service, b"Subject: bomb\r\n" + b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (each, each)
        for each in range(1500)), (ALICE,))
    (id,) = ids(browser.ask("/mailbox"))
    shown = browser.ask(f"/mailbox/{id}")
    assert "cannot be shown" in shown.text
    assert "boundary=b7" in browser.ask(f"/mailbox/{id}/source").text
    assert browser.ask(f"/mailbox/{id}/part/0").status in (400, 404)
