"""mailsvc.console.aliases and mailsvc.console.domains: aliases, domains, records for the DNS."""

from __future__ import annotations

import html
import re
import socket
import threading
from collections.abc import Iterator

import pytest

from mailsvc.cli import main
from tests.command_line import CommandLine
from tests.console import ALICE, BOB, Browser, serving
from tests.nameserver import NameServer
from tests.service import PATIENCE, Service, fetch, submit

HOST = "mx.example.org"
#: What is published already: some of it right, some of it not.
ZONE = {
    HOST: ["A 127.0.0.1"], "1.0.0.127.in-addr.arpa": [f"PTR {HOST}"],
    "example.org": [f"MX 10 {HOST}", "TXT v=spf1 -all"],
    "_dmarc.example.org": ["TXT v=DMARC1; p=reject"],
}


@pytest.fixture(scope="module")
def names() -> Iterator[NameServer]:
    with NameServer(dict(ZONE)) as running:
        yield running


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, names: NameServer) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("console"), "--set", f'relay.dns=["{names.address}"]',
                 workers=1) as running:
        yield running


@pytest.fixture
def browser(service: Service) -> Browser:
    return Browser(service).log_in(ALICE)


@pytest.fixture
def mailsvc(service: Service) -> CommandLine:
    return CommandLine(service.directory)


# ---- aliases ----


def test_an_alias_is_made_changed_and_removed(service: Service, browser: Browser,
                                              mailsvc: CommandLine) -> None:
    name = "sales@example.org"
    assert "There is none yet." in browser.ask("/aliases").text
    shown = browser.post("/aliases", {"name": name, "targets": f"{BOB}\r\nx@example.net"})
    assert shown.where == "/aliases?notice=alias-set"
    assert "The alias was set." in browser.ask(shown.where).text
    assert mailsvc.json("alias", "list") == [
        {"name": name, "targets": [BOB, "x@example.net"], "moved": False}]
    submit(service, b"Subject: by an alias\r\n\r\nx\r\n", (name,))
    assert len(fetch(service, BOB)) == 1

    page = browser.ask("/aliases?change=sales%40example.org")
    assert f">{BOB}\nx@example.net</textarea>" in page.text
    assert 'name="replace" checked' in page.text
    browser.post("/aliases", {"name": name, "targets": f"{ALICE}, {BOB}", "replace": "on"})
    assert mailsvc.json("alias", "list")[0]["targets"] == [ALICE, BOB]
    assert name in browser.ask("/aliases?q=ALICE").text
    assert "There is no such alias." in browser.ask("/aliases?q=zzz").text

    shown = browser.post("/aliases/remove", {"name": name})
    assert shown.where == "/aliases?notice=alias-removed"
    assert mailsvc.json("alias", "list") == []
    log = service.log.read_text()
    assert f"alias set alias={name}" in log
    assert f"alias removed alias={name}" in log


def test_an_account_that_gets_no_mail_any_more_is_told_of(browser: Browser,
                                                          mailsvc: CommandLine) -> None:
    shown = browser.post("/aliases", {"name": BOB, "targets": ALICE})
    assert "gets no mail now" in browser.ask(shown.where).text
    browser.post("/aliases", {"name": BOB, "targets": f"{ALICE}; {BOB}", "replace": "on"})
    mailsvc("alias", "remove", BOB)
    shown = browser.post("/aliases", {"name": "gone@example.org", "targets": "n@example.net",
                                      "moved": "on"})
    assert "moved" in browser.ask("/aliases").text
    mailsvc("alias", "remove", "gone@example.org")


def test_a_name_that_needs_quotes_is_changed_and_removed(browser: Browser,
                                                         mailsvc: CommandLine) -> None:
    name = '"a <b>, \\"c"@example.org'
    assert browser.post("/aliases", {"name": name, "targets": ALICE}).status == 303
    page = browser.ask("/aliases").content.decode()
    link = re.search(r'href="(/aliases\?change=[^"#]*b%3E[^"#]*)#make"', page)
    assert link
    page = browser.ask(link[1]).content.decode()
    filled = re.search(r'<input id="name"[^>]* value="([^"]*)"', page)
    assert filled
    assert html.unescape(filled[1]) == name
    assert browser.post("/aliases", {"name": name, "targets": BOB, "replace": "on"}).status == 303
    assert mailsvc.json("alias", "list")[0]["targets"] == [BOB]
    assert browser.post("/aliases/remove", {"name": name}).status == 303
    assert mailsvc.json("alias", "list") == []


@pytest.mark.parametrize("arguments", [
    ("nonsense", ALICE), ("a@nowhere.example", ALICE), ("a@example.org", "nobody@example.org"),
    ("a@example.org", "a@example.org"), ("taken@example.org", BOB), ("a@example.org", "x y"),
    ("--moved", "a@example.org", ALICE, BOB), ("--moved", "postmaster@example.org", "x@y.example"),
    ("loop@example.org", "taken@example.org"), ("a@example.org", "@"),
], ids=" ".join)
def test_the_errors_are_those_of_the_command(browser: Browser, mailsvc: CommandLine,
                                             arguments: tuple[str, ...]) -> None:
    mailsvc("alias", "add", "--replace", "taken@example.org", ALICE)
    mailsvc("alias", "add", "--replace", "loop@example.org", "taken@example.org")
    if arguments[0] == "loop@example.org":
        arguments = ("--replace", "taken@example.org", "loop@example.org")
    said = mailsvc.runner.invoke(main, ["--dir", str(mailsvc.dir), "alias", "add",
                                                     *arguments])
    assert said.exit_code in (1, 2)
    reason = said.stderr.rpartition(": ")[2].strip() if "Usage" in said.stderr else (
        said.stderr.removeprefix("Error: ").strip())
    flags = [each for each in arguments if each.startswith("--")]
    name, *targets = [each for each in arguments if not each.startswith("--")]
    shown = browser.post("/aliases", {"name": name, "targets": "\n".join(targets),
                                      **{flag.strip("-"): "on" for flag in flags}})
    assert shown.status == 400
    assert reason in shown.text
    assert f'value="{html.escape(name)}"' in shown.content.decode(), "what was filled in stays"


def test_an_alias_that_is_used_or_unknown_is_not_removed(browser: Browser,
                                                         mailsvc: CommandLine) -> None:
    mailsvc("alias", "add", "--replace", "taken@example.org", ALICE)
    mailsvc("alias", "add", "--replace", "loop@example.org", "taken@example.org")
    for name, problem in (("taken@example.org", "still gets the mail of loop@example.org"),
                          ("nobody@example.org", "there is no alias"), ("", "expected")):
        shown = browser.post("/aliases/remove", {"name": name})
        assert (shown.status, problem in shown.text) == (400, True), shown.text


# ---- domains ----


def test_a_domain_is_added_changed_and_given_up(browser: Browser, mailsvc: CommandLine) -> None:
    shown = browser.post("/domains", {"name": "Neu.Example"})
    assert shown.where == "/domains/neu.example?notice=domain-added"
    page = browser.ask(shown.where)
    assert "Publish what follows" in page.text
    assert "mailsvc dkim add neu.example" in page.text
    assert browser.post("/domains/neu.example", {"target": ALICE}).status == 303
    assert mailsvc.json("domain", "list")[1]["catch_all"] == ALICE
    assert f"→ {ALICE}" in browser.ask("/domains").text
    shown = browser.post("/domains/neu.example", {"target": "nobody@example.org"})
    assert (shown.status, "there is no account or alias" in shown.text) == (400, True)
    browser.post("/domains/neu.example", {"target": ""})
    assert mailsvc.json("domain", "list")[1]["catch_all"] is None
    for name, problem in (("neu.example", "exists already"), ("not a name", "expected"), ("", "")):
        shown = browser.post("/domains", {"name": name})
        assert (shown.status, problem in shown.text) == (400, True), shown.text
    assert browser.post("/domains/neu.example/remove").where == "/domains?notice=domain-removed"
    assert len(mailsvc.json("domain", "list")) == 1
    shown = browser.post("/domains/example.org/remove")
    assert (shown.status, "still has the" in shown.text) == (400, True)
    for path in ("", "/check", "/remove"):
        assert browser.post("/domains/nowhere.example" + path).status in (400, 404)
    assert browser.ask("/domains/nowhere.example").status == 404


def shown_records(page: str) -> list[tuple[str, str, str]]:
    """Name, type and value of each record, as a copy button has them."""
    found = re.findall(
        r'<code id="(r\d+-\d+)-name">(.*?)</code>.*?<span class="tag">(\w+)</span></p>\s*<p>'
        r'<code id="\1">(.*?)</code> <button type="button" class="copy small" data-copy="\1"',
        page, re.DOTALL)
    return [(html.unescape(name), kind, html.unescape(value)) for _, name, kind, value in found]


def test_every_record_of_the_command_can_be_copied(browser: Browser, mailsvc: CommandLine) -> None:
    mailsvc("dkim", "add", "example.org")
    page = browser.ask("/domains/example.org?address=192.0.2.7,2001:db8::7").content.decode()
    # By --systemd others reach it, which here they do not: those records are of the listeners.
    told = mailsvc.json("domain", "records", "example.org", "--hostname", HOST, "--address",
                        "192.0.2.7", "--address", "2001:db8::7")["records"]
    expected = {(each["name"], each["type"], each["value"]) for each in told
                if each["type"] in ("A", "AAAA", "PTR")
                or each["name"].startswith(("_dmarc", HOST)) or "_domainkey" in each["name"]}
    found = shown_records(page)
    assert expected <= set(found)
    assert len(expected) == 8
    lines = re.search(r'<pre id="lines"[^>]*>(.*?)</pre>', page, re.DOTALL)
    assert lines
    for name, kind, _ in found:
        assert f"{name}. IN {kind} " in html.unescape(lines[1])
    assert "there is no MX record" in page, "loopback is for nobody elsewhere"
    shown = browser.ask("/domains/example.org?address=here")
    assert (shown.status, "An IP address such as" in shown.text) == (400, True)


def facts(page: str) -> dict[str, tuple[str, str]]:
    """Of each fact, by what it is about: how it is to be taken, and what is so."""
    found = re.findall(r'<tr><td><span class="(\w+)">.*?</span></td><td>(.*?)</td>'
                       r'<td lang="en">(.*?)</td></tr>', page, re.DOTALL)
    return {what: (verdict, html.unescape(text)) for verdict, what, text in found}


def test_a_check_tells_what_the_world_sees(browser: Browser) -> None:
    shown = browser.post("/domains/example.org/check", {"address": "127.0.0.1"})
    assert shown.status == 200
    found = facts(shown.content.decode())
    assert found["host name"][0] == "good"
    assert found["MX example.org"] == ("good", f"10 {HOST}")
    assert found["DMARC example.org"][0] == "good"
    verdict, text = found["SPF example.org"]
    assert (verdict, "mend the record" in text) == ("bad", True)
    assert found["MTA-STS example.org"][0] == "muted"
    assert "Back to the records" in shown.text


def test_a_check_blocks_nobody_and_shows_each_fact_when_it_is_known(
        service: Service, names: NameServer, browser: Browser) -> None:
    """Of a name server that says nothing of one name: what comes before is on the page, and the
    only worker answers others meanwhile."""
    names.zone["_dmarc.example.org"] = ["SILENCE"]
    page = bytearray()
    seen = threading.Event()

    def read(client: socket.socket) -> None:
        while block := client.recv(65_536):
            page.extend(block)
            if b"MX example.org" in page:
                seen.set()

    body = f"token={browser.token}&address=127.0.0.1".encode()
    try:
        with socket.create_connection(browser.address, PATIENCE) as client:
            client.sendall((
                "POST /domains/example.org/check HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                f"Cookie: mailsvc={browser.cookies['mailsvc']}\r\nContent-Length: {len(body)}\r\n"
                "Content-Type: application/x-www-form-urlencoded\r\n\r\n").encode() + body)
            reading = threading.Thread(target=read, args=(client,), daemon=True)
            reading.start()
            assert seen.wait(PATIENCE), bytes(page)
            assert b"</html>" not in page
            assert browser.ask("/domains/example.org").status == 200
            assert b"</html>" not in page, "it was still waiting for the name server"
            reading.join(PATIENCE)
        assert b"</html>" in page
        assert facts(page.decode())["DMARC example.org"][0] == "bad"
    finally:
        names.zone["_dmarc.example.org"] = ZONE["_dmarc.example.org"]
    assert "Traceback" not in service.log.read_text()
