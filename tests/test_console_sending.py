"""mailsvc.console.sending and what it is made of: messages sent from a page, and the dialogue."""

from __future__ import annotations

import email
import email.policy
import html
import ipaddress
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mailsvc.composing import Attachment
from mailsvc.config import Settings
from mailsvc.console import abroad, recipes
from mailsvc.console.call import Problem
from mailsvc.console.limits import ConsoleSettings
from mailsvc.console.meanings import all_meanings, meaning
from mailsvc.console.sending import Letter
from tests.command_line import CommandLine
from tests.console import ACCOUNTS, ALICE, BOB, PASSWORD, Browser, Shown, multipart, serving
from tests.service import PATIENCE, Service, fetch

SENDS, RECEIVES = "sends@example.org", "receives@example.org"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("console"), "--set", "smtp.message_octets=200000",
                 "--set", "console.message_octets=300000", "--submission", "127.0.0.1:0",
                 accounts=(*ACCOUNTS, f"{SENDS}:{PASSWORD}", f"{RECEIVES}:{PASSWORD}"),
                 ) as running:
        mailsvc = CommandLine(running.directory)
        mailsvc("account", "role", SENDS, "send")
        mailsvc("account", "role", RECEIVES, "receive")
        yield running


def lines(shown: Shown) -> list[tuple[str, str]]:
    """Of each line of the dialogue, whose it is and what was said."""
    return [(whose, html.unescape(re.sub("<.*", "", words, flags=re.DOTALL)).strip())
            for whose, words in re.findall(
                r'<span class="whose"[^>]*>([CS*]:?)</span><span class="words">(.*?)</div>',
                shown.content.decode(), re.DOTALL)]


def test_a_message_is_sent_as_any_other_submission(service: Service) -> None:
    attachments = [("a.bin", bytes(range(256)) * 40),
                   ("메모 \"x\".txt", b"one\r\ntwo\nthree\rfour"),
                   ("../../etc/passwd", b""), ("empty.txt", b"x")]
    shown = Browser(service).log_in(BOB).upload("/send", {
        "from": BOB, "to": f"Alice <{ALICE}>, {BOB}", "subject": "회의 자료: <b>now</b>",
        "body": "Hello.\r\n.\r\n-- \r\nBob\r\n"},
        [("attachment", name, content) for name, content in attachments])
    assert shown.status == 200
    dialogue = lines(shown)
    said = [words for _, words in dialogue]
    assert dialogue[0] == ("S:", "220 mx.example.org ESMTP mailsvc")
    assert ("C:", "AUTH PLAIN ********") in dialogue
    assert f"MAIL FROM:<{BOB}>" in " ".join(said)
    assert "354 Start mail input" in " ".join(said) or "BDAT" in " ".join(said)
    assert shown.content.count(b'<span class="good">accepted</span>') == 2
    assert "The server is there and ready." in shown.text
    for name in ALICE, BOB:
        (raw,) = fetch(service, name)
        message = email.message_from_bytes(raw, policy=email.policy.default)
        assert message["From"] == BOB
        assert message["Subject"] == "회의 자료: <b>now</b>"
        assert message["Received"] is not None
        assert "127.0.0.1" in message["Received"], "the browser's address is in the trace"
        body = message.get_body()
        assert body is not None
        assert body.get_content().replace("\r\n", "\n") == "Hello.\n.\n-- \nBob\n"
        found = [(each.get_filename(), each.get_payload(decode=True))
                 for each in message.iter_attachments()]
        assert found == [("a.bin", attachments[0][1]), ('메모 "x".txt', attachments[1][1]),
                         ("passwd", b""), ("empty.txt", b"x")]
    assert f"user={BOB}" in service.log.read_text()


@pytest.mark.parametrize(("fields", "expected"), [
    ({"from": ALICE}, "550 5.7.1 This login may not send as"),
    ({"from": "x@elsewhere.example"}, "550 5.7.1 This login may not send as"),
    ({"to": "nobody@example.org"}, "550 5.1.1"),
    ({"body": "x" * 250_000}, "octets and the server takes 200000 at most"),
])
def test_the_rules_of_submission_hold(service: Service, fields: dict[str, str],
                                      expected: str) -> None:
    shown = Browser(service).log_in(BOB).upload("/send", {
        "from": BOB, "to": ALICE, "subject": "hello", "body": "x", **fields})
    assert shown.status == 200
    assert expected in shown.text
    assert '<span class="good">accepted</span>' not in shown.text
    assert fetch(service, ALICE) == []


@pytest.mark.parametrize(("fields", "expected"), [
    ({"to": ""}, "Name a recipient"), ({"to": " , ;\n"}, "Name a recipient"),
    ({"to": ",".join(f"a{number}@example.org" for number in range(101))}, "at most 100"),
    ({"subject": "a\r\nBcc: x@example.org"}, "line end"),
    ({"subject": "a\0b"}, "line end or NUL"),
])
def test_what_cannot_be_sent_is_told_in_the_form(service: Service, fields: dict[str, str],
                                                 expected: str) -> None:
    shown = Browser(service).log_in(BOB).upload("/send", {
        "from": BOB, "to": ALICE, "subject": "hello", "body": "kept <in> the form", **fields})
    assert (shown.status, expected in shown.text) == (400, True), shown.text
    assert "kept &lt;in&gt; the form" in shown.content.decode()


@pytest.mark.parametrize("to", [
    "a b@example.org", "x@example.org\r\nRCPT TO:<z@example.org>", "<", "@",
    "\"a\r\n\"@example.org", "a" * 500 + "@example.org"])
def test_no_recipient_becomes_a_command(service: Service, to: str) -> None:
    shown = Browser(service).log_in(BOB).upload("/send", {
        "from": BOB, "to": to, "subject": "hello", "body": "x"})
    assert shown.status in (200, 400)
    for whose, words in lines(shown):
        if whose == "C:" and words.startswith("RCPT"):
            # A line of the form is one more recipient, and no more than that.
            assert re.fullmatch("RCPT TO:<[^<>]+>", words), words
    assert fetch(service, ALICE) == fetch(service, BOB) == []


def test_a_user_names_no_server(service: Service) -> None:
    browser = Browser(service).log_in(BOB)
    assert 'name="server"' not in browser.ask("/send").text
    shown = browser.upload("/send", {"from": BOB, "to": ALICE, "server": "127.0.0.1:25"})
    assert (shown.status, "Only administrators" in shown.text) == (403, True)


def test_an_administrator_tries_another_server(service: Service) -> None:
    host, port = service.smtp
    browser = Browser(service).log_in(ALICE)
    shown = browser.upload("/send", {
        "server": f"{host}:{port}", "tls": "no", "from": "test@example.net", "to": BOB,
        "subject": "tried", "body": "x"})
    assert shown.content.count(b'<span class="good">accepted</span>') == 1, shown.text
    assert not [words for _, words in lines(shown) if words.startswith("AUTH")]
    assert len(fetch(service, BOB)) == 1
    for server, problem in (("127.0.0.1:1", "refused"), ("no.such.host.invalid", "no host"),
                            ("http://x/", "A server such as"), ("x:99999", "A server such as"),
                            ("192.168.3.4:25", "no address of the Internet"),
                            ("169.254.169.254", "no address of the Internet")):
        shown = browser.upload("/send", {"server": server, "tls": "no", "from": "", "to": BOB})
        assert problem in shown.text, (server, shown.text)


def test_who_only_receives_sends_nothing(service: Service) -> None:
    browser = Browser(service).log_in(RECEIVES)
    assert browser.ask("/").where == "/mailbox"
    assert 'href="/send"' not in browser.ask("/mailbox").text
    assert browser.ask("/send").status == 403
    assert browser.upload("/send", {"from": RECEIVES, "to": BOB}).status == 403
    browser = Browser(service).log_in(SENDS)
    assert browser.ask("/").where == "/send"
    assert browser.ask("/mailbox").status == 403


def test_what_is_too_large_is_refused_before_it_is_read(service: Service) -> None:
    browser = Browser(service).log_in(BOB)
    body, kind = multipart({"token": browser.token, "to": ALICE},
                           [("attachment", "x", bytes(400_000))])
    shown = browser.ask("/send", "POST", body, Content_Type=kind)
    assert (shown.status, "at most 300000 octets" in shown.text) == (413, True)
    stranger = Browser(service)
    body, kind = multipart({"token": stranger.token, "name": "x" * 70_000})
    shown = stranger.ask("/login", "POST", body, Content_Type=kind)
    assert (shown.status, "at most 65536 octets" in shown.text) == (413, True)


def test_each_line_is_shown_as_it_comes(service: Service) -> None:
    """A server that takes its time: what it said before is on the page meanwhile."""
    go_on = threading.Event()

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as file:
            connection.sendall(b"220 slow <script>alert(1)</script>\r\n")
            file.readline()
            go_on.wait(PATIENCE)
            connection.sendall(b"250 slow\r\n")
            file.readline()
            connection.sendall(b"450 4.2.2 Full\x1b[2J & <b>so\r\n")
            file.readline()
            connection.sendall(b"221 Bye\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        browser = Browser(service).log_in(ALICE)
        body, kind = multipart({
            "token": browser.token, "tls": "no", "from": "a@example.net", "to": BOB,
            "server": f"127.0.0.1:{listener.getsockname()[1]}"})
        with socket.create_connection(browser.address, PATIENCE) as client:
            client.sendall((
                f"POST /send HTTP/1.1\r\nHost: x\r\nCookie: mailsvc={browser.cookies['mailsvc']}"
                f"\r\nConnection: close\r\nContent-Type: {kind}\r\n"
                f"Content-Length: {len(body)}\r\n\r\n").encode() + body)
            page = b""
            while b"EHLO" not in page:
                block = client.recv(65_536)
                assert block, page
                page += block
            assert b"220 slow &lt;script&gt;" in page
            assert b"450" not in page
            go_on.set()
            while block := client.recv(65_536):
                page += block
        thread.join(PATIENCE)
    assert b"<script>alert" not in page
    assert b"\x1b" not in page
    assert b"The mailbox is full." in page
    assert b"not now" in page


# ---- where a page may lead ----


@pytest.mark.parametrize(("address", "may"), [
    ("8.8.8.8", True), ("2606:4700::1111", True), ("127.0.0.1", False), ("10.1.2.3", False),
    ("172.16.0.1", False), ("192.168.0.1", False), ("169.254.169.254", False), ("0.0.0.0", False),
    ("100.64.0.1", False), ("224.0.0.1", False), ("255.255.255.255", False), ("::1", False),
    ("::", False), ("fe80::1", False), ("fd00::1", False), ("ff02::1", False),
    ("::ffff:127.0.0.1", False), ("::ffff:8.8.8.8", True), ("2002:7f00:1::", False),
    ("64:ff9b::127.0.0.1", False), ("64:ff9b::808:808", True), ("192.0.2.9", False),
])
def test_which_addresses_a_page_may_lead_to(address: str, may: bool) -> None:
    assert abroad.permitted(ipaddress.ip_address(address), ConsoleSettings()) is may


def test_networks_that_may_be_reached_besides() -> None:
    settings = replace(ConsoleSettings(), send_networks=["10.0.0.0/8"])
    assert abroad.permitted(ipaddress.ip_address("10.1.2.3"), settings)
    assert abroad.permitted(ipaddress.ip_address("::ffff:10.1.2.3"), settings)
    assert not abroad.permitted(ipaddress.ip_address("192.168.0.1"), settings)


@pytest.mark.parametrize(("text", "expected"), [
    ("mx.example.org", ("mx.example.org", 25)), ("mx.example.org:587", ("mx.example.org", 587)),
    ("[2001:db8::1]:26", ("2001:db8::1", 26)), ("192.0.2.1", ("192.0.2.1", 25)),
    ("메일.example", ("xn--h32bq4v.example", 25)),
])
def test_a_place(text: str, expected: tuple[str, int]) -> None:
    assert abroad.place(text, 25) == expected


@pytest.mark.parametrize("text", ["a b", "a:0", "a:65536", "a:x", "http://a", "a@b", "/sock", "",
                                  "a\r\nb", "[::1", ":25"])
def test_no_place(text: str) -> None:
    with pytest.raises(Problem):
        abroad.place(text, 25)


# ---- words and recipes ----


@pytest.mark.parametrize(("line", "words"), [
    ("250 2.1.5 Ok", "The recipient is accepted."), ("250 OK", "Done."),
    ("550 5.1.1 nobody", "no such mailbox"),
    ("450 4.2.2 x", "mailbox is full"), ("550", "Refused for good"), ("299 odd", "Done."),
    ("599 5.99.99 odd", "Refused for good"), ("354 go on", "waits for the message"),
])
def test_what_replies_mean(line: str, words: str) -> None:
    assert words in meaning(line)
    assert meaning(line) in all_meanings()


@pytest.mark.parametrize("line", ["", "hello", "25", "650 x", "2500 x"])
def test_what_is_no_reply_means_nothing(line: str) -> None:
    assert meaning(line) == ""


ODD = Letter("o'hara@example.org", ("bob@example.org", "x@example.net"), "",
             "it's $(id) `id` \"x\"", "one\n'two'\\n", (Attachment("a b'.txt", b""),),
             "mx.example.org", 25, "no")


def test_a_recipe_for_swaks_is_one_command() -> None:
    command = recipes.swaks(recipes.Server("mx.example.org", 587, "starttls", ALICE), ODD)
    shown = subprocess.run(["/bin/sh", "-c", 'swaks() { printf "%s\\0" "$@"; }\n' + command],
                           capture_output=True, check=True, timeout=PATIENCE)
    words = shown.stdout.decode().split("\0")[:-1]
    assert words == ["--server", "mx.example.org", "--port", "587", "--tls",
                     "--auth-user", ALICE, "--from", "o'hara@example.org", "--to",
                     "bob@example.org,x@example.net", "--header", f"Subject: {ODD.subject}",
                     "--body", ODD.body, "--attach", "@a b'.txt"]


def test_a_recipe_for_python_sends_the_same(service: Service, tmp_path: Path) -> None:
    host, port = service.smtp
    (tmp_path / "a b'.txt").write_bytes(b"attached")
    letter = replace(ODD, sender="o'hara@example.net", recipients=(BOB,))
    program = recipes.python(recipes.Server(host, port, "no", ""), letter)
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=PATIENCE)
    deadline = time.monotonic() + PATIENCE
    while not (raw := fetch(service, BOB)):
        assert time.monotonic() < deadline
    message = email.message_from_bytes(raw[0], policy=email.policy.default)
    assert message["Subject"] == ODD.subject
    body = message.get_body()
    assert body is not None
    assert body.get_content().replace("\r\n", "\n") == ODD.body + "\n"
    (attached,) = message.iter_attachments()
    assert (attached.get_filename(), attached.get_content()) == ("a b'.txt", "attached")


@pytest.mark.parametrize(("listeners", "expected"), [
    ({}, (587, "starttls")), ({"submissions": ["tcp:465"]}, (465, "implicit")),
    ({"submission": ["tcp:port=1587:interface=127.0.0.1"]}, (1587, "starttls")),
    ({"submission": ["systemd:domain=INET:index=0"]}, (587, "starttls")),
])
def test_how_others_submit_here(listeners: dict[str, list[str]],
                                expected: tuple[int, str]) -> None:
    settings = Settings.from_mapping({"listeners": listeners,
                                      "service": {"hostname": "mail.example.org"}})
    server = recipes.own_server(settings, ALICE)
    assert (server.host, server.port, server.tls, server.user) == (
        "mail.example.org", *expected, ALICE)
