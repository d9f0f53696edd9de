"""mailsvc.console.tracing and mailsvc.tracing.search: stories of messages, and who sees what."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator

import pytest

from tests.command_line import CommandLine
from tests.console import ACCOUNTS, ALICE, BOB, PASSWORD, Browser, Shown, serving
from tests.service import PATIENCE, Dialogue, Service, fetch, submit

CAROL, DAVE = "carol@example.org", "dave@example.org"
ID = re.compile(r"[0-9A-HJKMNP-TV-Z]{16}")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    # Mail for other hosts waits: nobody answers there.
    with serving(tmp_path_factory.mktemp("console"), "--set",
                 'relay.smarthost="smtp://127.0.0.1:9"',
                 accounts=(*ACCOUNTS, f"{CAROL}:{PASSWORD}", f"{DAVE}:{PASSWORD}")) as running:
        mailsvc = CommandLine(running.directory)
        mailsvc("alias", "add", "team@example.org", CAROL, "hidden@example.net")
        yield running


@pytest.fixture(scope="module")
def browsers(service: Service) -> dict[str, Browser]:
    return {name: Browser(service).log_in(name) for name in (ALICE, BOB, CAROL, DAVE)}


@pytest.fixture(scope="module")
def sent(service: Service, browsers: dict[str, Browser]) -> str:
    """The id of a message from Bob to Carol and others, which she fetched; with the story of it
    whole on disk."""
    shown = browsers[BOB].upload("/send", {
        "from": BOB, "subject": "to many",
        "to": f"{CAROL}, {ALICE}, team@example.org, x@example.net, nobody@example.org"})
    found = re.search(r'/trace\?q=([0-9A-Z]{16})"', shown.content.decode())
    assert found, shown.text
    assert len(fetch(service, CAROL)) == 1
    until(lambda: story(browsers[ALICE], found[1]), "fetched", "deleted", "attempt 1 for",
          "<hidden@example.net>", "<x@example.net>")
    return found[1]


def story(browser: Browser, wanted: str) -> str:
    shown = browser.ask(f"/trace?q={wanted}")
    assert shown.status == 200
    # What is looked for stands on the page in any case.
    return re.sub(r"<input[^>]*>", "", shown.text)


def until(ask: Callable[[], str], *texts: str) -> str:
    """The page when all *texts* are on it: what is logged is kept within a second or so."""
    deadline = time.monotonic() + PATIENCE
    while not all(text in (page := ask()) for text in texts):
        assert time.monotonic() < deadline, page
        time.sleep(0.1)
    return page


def ids(page: str) -> list[str]:
    """The messages and connections that are told of."""
    return re.findall(r"<summary><code>([0-9A-Z]{16})</code>", page)


def test_an_administrator_sees_the_whole_story(browsers: dict[str, Browser], sent: str) -> None:
    page = story(browsers[ALICE], sent)
    for text in ("connection ", f"MAIL FROM:<{BOB}> by {BOB}", "550 5.1.1",
                 f"into the mailbox of {CAROL}, {ALICE}", "<hidden@example.net>",
                 f"by {CAROL} from 127.0.0.1 over POP3", '<span class="phase bad">refused</span>'):
        assert text in page, text
    assert ids(page) == [sent]
    assert "<details class=\"story\" open>" in page


def test_what_mailsvc_trace_prints_is_on_the_page(service: Service, browsers: dict[str, Browser],
                                                  sent: str) -> None:
    (told,) = CommandLine(service.directory).json("trace", sent)
    page = story(browsers[ALICE], sent)
    for step in told["steps"]:
        assert step["text"] in page
    assert len(re.findall(r"<li><span class=\"when\">", page)) == len(told["steps"])


@pytest.mark.parametrize("wanted", [
    ID.pattern, BOB, "x@example.net", "nobody@example.org", "{message-id}", "bob%40EXAMPLE.org"])
def test_a_message_is_found_by_each_of_its_names(
        service: Service, browsers: dict[str, Browser], sent: str, wanted: str) -> None:
    (told,) = CommandLine(service.directory).json("trace", sent)
    wanted = {ID.pattern: sent.lower(), "{message-id}": told["facts"]["message_id"]}.get(
        wanted, wanted)
    for name in ALICE, BOB:
        assert sent in ids(story(browsers[name], wanted)), name


def test_a_sender_sees_what_became_of_those_that_it_named(browsers: dict[str, Browser],
                                                          sent: str) -> None:
    page = story(browsers[BOB], sent)
    for text in (f"MAIL FROM:<{BOB}> by {BOB}", "recipient <nobody@example.org>: 550 5.1.1",
                 "<x@example.net>", "team@example.org", f"into the mailbox of {CAROL}, {ALICE}"):
        assert text in page, text
    # Where an alias leads, and what recipients do with their mail, is theirs.
    assert "hidden@" not in page
    assert "POP3" not in page


def test_a_recipient_sees_its_own_copy_alone(browsers: dict[str, Browser], sent: str) -> None:
    page = story(browsers[CAROL], sent)
    for text in (f"MAIL FROM:<{BOB}>", f"into the mailbox of {CAROL}<", "over POP3", "octets for"):
        assert text in page, text
    for text in (ALICE, "team@", "hidden@", "x@example.net", "nobody@", "attempt", "by bob"):
        assert text not in page, text


@pytest.mark.parametrize("wanted", [ALICE, "hidden@example.net", "team@example.org",
                                    "x@example.net", "nobody@example.org"])
def test_no_search_tells_of_other_recipients(browsers: dict[str, Browser], sent: str,
                                             wanted: str) -> None:
    assert sent in ids(story(browsers[ALICE], wanted))
    assert ids(story(browsers[CAROL], wanted)) == []
    assert sent in ids(story(browsers[CAROL], BOB))


def test_a_stranger_sees_nothing(service: Service, browsers: dict[str, Browser], sent: str) -> None:
    (told,) = CommandLine(service.directory).json("trace", sent)
    for wanted in (sent, BOB, CAROL, told["facts"]["message_id"], "x@example.net", "127.0.0.1",
                   told["facts"]["connection"], ""):
        page = story(browsers[DAVE], wanted)
        assert ids(page) == [], wanted
        assert sent not in page
    assert "it is not about your account" in story(browsers[DAVE], sent)
    assert f"No message of {DAVE} has been seen yet" in story(browsers[DAVE], "")


def test_who_is_named_as_sender_by_others_sees_nothing(service: Service,
                                                       browsers: dict[str, Browser]) -> None:
    submit(service, b"Subject: forged\r\n\r\nx\r\n", ("team@example.org",), reverse_path=DAVE)
    page = until(lambda: story(browsers[ALICE], DAVE), "hidden@example.net")
    (forged,) = ids(page)
    assert ids(story(browsers[DAVE], DAVE)) == ids(story(browsers[DAVE], forged)) == []
    assert forged in ids(story(browsers[CAROL], DAVE))


def test_a_login_that_failed_is_told_to_whose_account_it_was(
        service: Service, browsers: dict[str, Browser]) -> None:
    with Dialogue(service.pop3) as pop3:
        pop3.line()
        pop3.ask(b"USER " + CAROL.encode())
        pop3.send(b"PASS wrong\r\n")
        assert pop3.line().startswith(b"-ERR")
    failed = f"login as {CAROL} failed"
    for name in ALICE, CAROL:
        until(lambda name=name: story(browsers[name], CAROL), failed)  # type: ignore[misc]
    assert failed in story(browsers[CAROL], "")
    for name in BOB, DAVE:
        assert "login as" not in story(browsers[name], CAROL)


def test_links_lead_to_the_trace(service: Service, browsers: dict[str, Browser],
                                 sent: str) -> None:
    def linked(shown: Shown) -> list[str]:
        return re.findall(r'href="/trace\?q=([0-9A-Z]{16})"', shown.content.decode())

    assert sent in linked(browsers[ALICE].ask("/queue"))
    assert linked(browsers[ALICE].ask(f"/queue/{sent}")) == [sent]
    listed = re.findall(r'<li><a href="(/mailbox/[^"]+)"',
                        browsers[ALICE].ask("/mailbox").content.decode())
    assert linked(browsers[ALICE].ask(listed[-1])) == [sent]
    # A message of another server's has no id of ours.
    host, port = service.smtp
    shown = browsers[ALICE].upload("/send", {
        "server": f"{host}:{port}", "tls": "no", "from": "a@example.net", "to": DAVE})
    assert "accepted" in shown.text
    assert linked(shown) == []
    fetch(service, DAVE)


@pytest.mark.parametrize("wanted", ["%3Cscript%3E", "%00", "%ff", "a" * 5000, "%3C%3E", "@", "[",
                                    "1K16KWV2DBF00EP5", "::1", "%F0%9F%93%AC"])
def test_what_is_odd_is_nothing_known(browsers: dict[str, Browser], wanted: str) -> None:
    for name in ALICE, DAVE:
        page = story(browsers[name], wanted)
        assert "Nothing is known of that" in page
        assert ids(page) == []


def test_without_a_trace_the_page_says_so(tmp_path_factory: pytest.TempPathFactory) -> None:
    with serving(tmp_path_factory.mktemp("console"), "--set", "trace.enabled=false",
                 workers=1) as service:
        for name in ALICE, BOB:
            assert "trace.enabled is false" in story(Browser(service).log_in(name), "")
