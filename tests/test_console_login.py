"""mailsvc.console.login, sessions and own: logging in, staying so, and one's own passwords."""

from __future__ import annotations

import contextlib
import http.client
import re
import smtplib
import socket
import sqlite3
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailsvc.console.limits import ConsoleSettings
from mailsvc.console.sessions import MOST, Sessions, stranger
from mailsvc.directory import SqliteDirectory
from mailsvc.names import parse_address
from tests.command_line import CommandLine
from tests.console import ACCOUNTS, ALICE, BOB, PASSWORD, Browser, multipart, serving
from tests.service import PATIENCE, Service, login


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("console"), "--submission", "127.0.0.1:0",
                 accounts=(*ACCOUNTS, "carol@example.org:secret", "dave@example.org:secret"),
                 ) as running:
        yield running


def is_in(browser: Browser) -> bool:
    return browser.ask("/account").status == 200


def test_a_login_holds_in_every_worker_and_ends_with_a_logout(service: Service) -> None:
    browser = Browser(service)
    assert (browser.ask("/mailbox").status, browser.ask("/mailbox").where) == (303, "/login")
    browser.log_in()
    assert all(is_in(browser) for _ in range(20))
    thief = Browser(service)
    thief.cookies = dict(browser.cookies)
    assert is_in(thief)
    assert browser.post("/logout").where == "/login?notice=logged-out"
    assert not is_in(browser)
    assert not is_in(thief), "the session is gone, and not only the cookie"


def test_a_wrong_login_is_told_counted_and_logged(service: Service) -> None:
    browser = Browser(service)
    for name, password in ((ALICE, "wrong"), ("nobody@example.org", "secret"), ("", ""),
                           (ALICE, ""), ("\0", "ü" * 500), (ALICE, PASSWORD + " ")):
        shown = browser.post("/login", {"name": name, "password": password})
        assert shown.status == 403
        assert "Name or password is wrong" in shown.text
    assert not is_in(browser)
    log = service.log.read_text()
    assert re.search(r"login failed user=alice@example.org client=127.0.0.1 protocol=console "
                     "reason=", log), log[-2000:]
    assert PASSWORD + " " not in log


def test_the_cookie_and_what_is_kept_of_it(service: Service) -> None:
    browser = Browser(service)
    first = browser.ask("/login").headers["set-cookie"]
    before = browser.cookies["mailsvc"]
    shown = browser.post("/login", {"name": ALICE, "password": PASSWORD})
    assert shown.headers["set-cookie"].partition(";")[2] == " Path=/; HttpOnly; SameSite=Strict"
    assert first.partition(";")[2] == shown.headers["set-cookie"].partition(";")[2]
    cookie = browser.cookies["mailsvc"]
    assert cookie != before, "a cookie that was there before the login is no key to it"
    with contextlib.closing(sqlite3.connect(service.directory / "state.sqlite")) as db:
        rows = db.execute("SELECT * FROM console_sessions").fetchall()
    assert rows
    assert cookie not in repr(rows)
    for path in service.directory.glob("state.sqlite*"):
        assert cookie.encode() not in path.read_bytes()
    for odd in ("", "x", "x" * 5000, cookie[:-1], cookie + "x", "ü\"';"):
        browser.cookies = {"mailsvc": odd.encode("ascii", "ignore").decode()}
        assert not is_in(browser)


def test_a_new_password_ends_what_the_old_one_began(service: Service) -> None:
    name = "carol@example.org"
    here, elsewhere = Browser(service).log_in(name), Browser(service).log_in(name)
    for fields, problem in (
            ({"current": "wrong", "password": "new", "again": "new"}, "not your present"),
            ({"current": PASSWORD, "password": "new", "again": "other"}, "two new passwords"),
            ({"current": PASSWORD, "password": "", "again": ""}, "password is empty"),
            ({"current": PASSWORD, "password": "a\x00b", "again": "a\x00b"}, "control char"),
            ({"current": PASSWORD, "password": "x" * 300, "again": "x" * 300}, "too long")):
        shown = here.post("/account/password", fields)
        assert (shown.status, problem in shown.text) == (400, True), shown.text
    shown = here.post("/account/password",
                      {"current": PASSWORD, "password": "päss wörd", "again": "päss wörd"})
    assert shown.where == "/account?notice=password"
    assert "The password was changed" in here.ask(shown.where).text
    assert is_in(here)
    assert not is_in(elsewhere)
    service.passwords[name] = "päss wörd"
    login(service, name).close()
    assert Browser(service).post("/login", {"name": name, "password": PASSWORD}).status == 403
    Browser(service).log_in(name, "päss wörd")
    # By the command as well.
    CommandLine(service.directory)("account", "passwd", name, "--password-stdin", stdin="third")
    assert not is_in(here)


def test_app_passwords(service: Service) -> None:
    name = "dave@example.org"
    browser = Browser(service).log_in(name)
    fields = {"label": "phone <b>", "current": PASSWORD, "days": "30", "networks": ""}
    assert "not your present" in browser.post(
        "/account/app-passwords", {**fields, "current": "x"}).text
    shown = browser.post("/account/app-passwords", fields)
    made = re.search(r'class="secret">([a-z-]{29})<', shown.content.decode())
    assert made
    assert "phone &lt;b&gt;" in shown.content.decode()
    assert "already" in browser.post("/account/app-passwords", fields).text
    by_app = Browser(service).log_in(name, made[1])
    assert is_in(by_app)
    # It does not make its holder the owner of the account.
    assert by_app.post("/account/app-passwords",
                       {**fields, "label": "b", "current": made[1]}).status == 400
    assert by_app.post("/account/password", {
        "current": made[1], "password": "mine", "again": "mine"}).status == 400
    # One that is for a protocol is for that alone.
    shown = browser.post("/account/app-passwords", {
        **fields, "label": "fetch", "protocol": ["pop3"]})
    pop3 = re.search(r'class="secret">([a-z-]{29})<', shown.content.decode())
    assert pop3
    assert Browser(service).post("/login", {"name": name, "password": pop3[1]}).status == 403
    service.passwords[name] = pop3[1]
    login(service, name).close()
    # What it began ends with it.
    shown = browser.post("/account/app-passwords/remove", {"label": "phone <b>"})
    assert shown.where == "/account?notice=app-password-removed"
    assert is_in(browser)
    assert not is_in(by_app)
    assert browser.post("/account/app-passwords/remove", {"label": "nothing"}).status == 400
    for odd in ({"days": "x"}, {"networks": "here"}, {"label": ""}, {"protocol": ["smtp"]}):
        assert browser.post("/account/app-passwords", {
            **fields, "label": "c", **odd}).status == 400, odd


def test_guesses_of_the_present_password_are_braked(tmp_path: Path) -> None:
    with serving(tmp_path, "--set", "brakes.exempt_networks=[]", "--set", "brakes.ban_failures=3",
                 workers=1) as service:
        browser = Browser(service).log_in(BOB)
        for _ in range(3):
            assert browser.post("/account/password", {"current": "guess", "password": "x",
                                                      "again": "x"}).status == 400
        with pytest.raises((http.client.HTTPException, OSError)):
            for _ in range(3):
                browser.ask("/account")


def test_the_language_of_the_reader(service: Service) -> None:
    browser = Browser(service, "ko-KR,ko;q=0.9")
    shown = browser.ask("/login")
    assert '<html lang="ko">' in shown.text
    assert "비밀번호" in shown.text
    assert browser.post("/language", {"language": "en", "back": "/login"}).where == "/login"
    assert '<html lang="en">' in browser.ask("/login").text
    for back in ("//evil.example", "https://evil.example", "/\\evil.example", "\r\nX: y", ""):
        assert browser.post("/language", {"language": "ko", "back": back}).where == "/"
    assert browser.post("/language", {"language": "../x", "back": "/"}).status == 303
    assert '<html lang="ko">' in browser.ask("/login").text


def test_tls_is_asked_for_unless_it_is_not_needed(tmp_path: Path) -> None:
    with serving(tmp_path, "--set", "console.cleartext=no", workers=1) as service:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(
            *service.listeners["console"], timeout=PATIENCE, context=context)
        with contextlib.closing(connection):
            connection.request("GET", "/login")
            cookie = connection.getresponse().getheader("set-cookie")
    assert re.fullmatch(r"__Host-mailsvc=[\w-]{43}; Path=/; HttpOnly; SameSite=Strict; Secure",
                        cookie or "")


def test_a_proxy_tells_who_the_browser_is(tmp_path: Path) -> None:
    """To the brakes and the log, and in the trace of what is sent."""
    with serving(tmp_path, "--set", 'proxy.networks=["127.0.0.1/32"]', workers=1) as service:
        browser = Browser(service)

        def ask(path: str, body: bytes = b"", kind: str = "x") -> bytes:
            with socket.create_connection(browser.address, PATIENCE) as client:
                cookie = f"Cookie: mailsvc={browser.cookies.get('mailsvc', '')}\r\n"
                client.sendall((
                    "PROXY TCP4 192.0.2.7 192.0.2.1 5000 443\r\n"
                    f"{'POST' if body else 'GET'} {path} HTTP/1.1\r\nHost: x\r\n{cookie}"
                    f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
                    "Connection: close\r\n\r\n").encode() + body)
                page = b""
                while block := client.recv(65_536):
                    page += block
            if made := re.search(rb"Set-Cookie: mailsvc=([\w-]+)", page):
                browser.cookies["mailsvc"] = made[1].decode()
            return page

        def post(path: str, **fields: str) -> bytes:
            token = re.search(rb'name="token" value="(\w+)"', ask("/nowhere"))
            assert token
            return ask(path, *multipart({"token": token[1].decode(), **fields}))

        assert b"403 Forbidden" in post("/login", name=BOB, password="wrong")
        assert b"303 See Other" in post("/login", name=BOB, password=PASSWORD)
        sent = post("/send", **{"from": BOB, "to": BOB, "subject": "by a proxy"})
        assert b'class="good">accepted' in sent
        log = service.log.read_text()
        assert "login failed user=bob@example.org client=192.0.2.7 protocol=console" in log
        (stored,) = (service.maildir(BOB) / "new").iterdir()
        assert b"([192.0.2.7])" in stored.read_bytes()


def test_logins_are_counted(service: Service) -> None:
    figures = CommandLine(service.directory).json("stats")["figures"]
    logins = next(each for each in figures if each["name"] == "mailsvc_logins_total")
    count = {(each["labels"]["mechanism"], each["labels"]["outcome"]): each["value"]
             for each in logins["samples"] if each["labels"]["protocol"] == "console"}
    assert count["FORM", "succeeded"] > 0
    assert count["FORM", "failed"] > 0


def test_a_submission_that_is_not_the_console_s_knows_nothing_of_it(service: Service) -> None:
    """The one-time logins of the console are of no use anywhere else."""
    with smtplib.SMTP(*service.listeners["submission"], timeout=PATIENCE) as client:
        client.ehlo()
        assert client.docmd("AUTH PLAIN AGFsaWNlAA==")[0] == 538


# ---- sessions by themselves ----


def test_sessions_end_in_time(tmp_path: Path) -> None:
    now = [1000.0]
    sessions = Sessions(tmp_path / "state.sqlite",
                        ConsoleSettings(idle_minutes=10, login_hours=1), lambda: now[0])
    with contextlib.closing(sessions):
        one = sessions.begin(ALICE, [3, 7], "192.0.2.7")
        assert sessions.find(one.secret) == one
        assert one.secret not in repr(one)
        now[0] += 599
        assert sessions.is_stale(one)
        sessions.note_use(one)
        now[0] += 599
        found = sessions.find(one.secret)
        assert found is not None
        assert found.passwords == {3, 7}
        now[0] += 2
        assert sessions.find(one.secret) is None, "idle"
        two = sessions.begin(ALICE, [], "")
        for _ in range(7):
            now[0] += 500
            sessions.note_use(two)
        assert sessions.find(two.secret) is not None
        now[0] += 200
        sessions.note_use(two)
        assert sessions.find(two.secret) is None, "too long, be it used or not"
        many = [sessions.begin(BOB, [], "") for _ in range(MOST + 3)]
        assert [sessions.find(each.secret) is not None for each in many].count(True) <= MOST
        sessions.end(many[-1])
        assert sessions.find(many[-1].secret) is None


def test_the_tokens_of_forms(tmp_path: Path) -> None:
    one, two = stranger(), stranger()
    assert one.sent(one.form_token)
    assert not one.sent(two.form_token)
    assert not one.sent("")
    assert not one.sent("ü")
    assert stranger(one.secret) == one
    assert stranger("short").secret != "short"
    assert one.secret not in one.form_token


# ---- who administers ----


def test_an_administrator_is_made_and_unmade(service: Service) -> None:
    mailsvc = CommandLine(service.directory)
    browser = Browser(service).log_in(BOB)
    assert browser.ask("/queue").status == 403
    assert mailsvc("account", "admin", BOB, "yes") == f"{BOB} administers the service\n"
    assert browser.ask("/queue").status == 200
    assert mailsvc.json("account", "show", BOB)["administrator"] is True
    assert "administers the service" in mailsvc("account", "show", BOB)
    assert mailsvc("account", "admin", BOB, "no") == f"{BOB} does not administer the service\n"
    assert browser.ask("/queue").status == 403
    assert "there is no account" in mailsvc.fails("account", "admin", "x@example.org", "yes")


def test_what_administers_goes_with_the_account(tmp_path: Path) -> None:
    with SqliteDirectory(tmp_path / "accounts.sqlite") as directory:
        directory.add_domain("example.org")
        at = parse_address
        account = directory.add_account(at(ALICE))
        assert not directory.administers(account)
        for _ in range(2):
            directory.set_administrator(at("Alice@example.org"), True)
        assert directory.administrators() == [ALICE]
        assert directory.administers(account)
        directory.remove_account(at(ALICE))
        account = directory.add_account(at(ALICE))
        assert not directory.administers(account), "a new account of that name is another"
        assert directory.administrators() == []
