"""Submission without a login: system users on Unix sockets, and trusted networks."""

from __future__ import annotations

import getpass
import os
import pwd
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import StringTransport

from mailsvc.connections import peer_uid
from mailsvc.directory import SqliteDirectory
from mailsvc.mail import NULL_PATH, Address
from mailsvc.names import parse_address
from mailsvc.routing import Router
from mailsvc.smtp.mode import SUBMISSION
from mailsvc.submission.agent import SubmissionAgent
from mailsvc.submission.limits import SubmissionSettings
from mailsvc.submission.senders import SenderRefused, client, system_user
from tests.postoffice import Line, Unlimited
from tests.service import PATIENCE, Dialogue, Service, fetch

ROOT = Path(__file__).parent.parent
ME = getpass.getuser() if os.geteuid() else "root"
COMMAND = [sys.executable, "-c", "from mailsvc.sendmail import main; main()"]
ACCOUNTS = ("alice@example.org:secret", "bob@example.org:secret", "root@mx.example.org:secret")
at = parse_address


@pytest.fixture(scope="module")
def post(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    # Not below pytest's own directory: other users shall get there, and such paths may be too long.
    with tempfile.TemporaryDirectory(prefix="ms-") as place:
        os.chmod(place, 0o755)
        path = f"{place}/submission.sock"
        with Service(tmp_path_factory.mktemp("sendmail") / "data", ACCOUNTS, (
                "--submission", f"unix:{path}",
                "--set", 'submission.local_senders.nobody="shop@example.org ann@example.net"',
                "--set", 'submission.trusted_networks=["127.0.0.2/32"]')) as service:
            assert f"submission {path}\n" in service.greeting
            service.socket = path  # type: ignore[attr-defined]
            yield service


# ---- who is on the socket -----------------------------------------------------------------------


class OnSocket(Dialogue):
    """A client on a Unix socket."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(path)
        self.file = self.socket.makefile("rb")


@pytest_twisted.ensureDeferred
async def test_who_is_on_the_other_end() -> None:
    seen: Deferred[int | None] = Deferred()

    class Asking(Protocol):
        def connectionMade(self) -> None:
            seen.callback(peer_uid(self.transport))

    with tempfile.TemporaryDirectory(prefix="ms-") as place:
        port = await UNIXServerEndpoint(reactor, f"{place}/socket").listen(
            Factory.forProtocol(Asking))
        with socket.socket(socket.AF_UNIX) as client_side:
            client_side.connect(f"{place}/socket")
            assert await seen == os.geteuid()
        await port.stopListening()


@contextmanager
def acting_as(name: str) -> Iterator[None]:
    """SO_PEERCRED has the user at the time of connect."""
    uid, before = pwd.getpwnam(name).pw_uid, os.geteuid()
    if uid != before:
        os.seteuid(uid)
    try:
        yield
    finally:
        if uid != before:
            os.seteuid(before)


#: Only root can try another user.
USERS = [ME, "nobody"] if os.geteuid() == 0 else [ME]


@pytest.mark.parametrize("user", USERS)
def test_as_whom_a_user_may_send(post: Any, user: str) -> None:
    with acting_as(user):
        smtp = OnSocket(post.socket)
    with smtp:
        smtp.reply()
        smtp.say(b"EHLO here")
        own = (f"{user}@mx.example.org", f"{user}@MX.Example.org", "", "shop@example.org",
               "ann@example.net")
        for sender in (*own, "alice@example.org", "x@elsewhere.example", "root@mx.example.org"):
            answer = smtp.say(b"MAIL FROM:<%s>" % sender.encode())
            if sender in own or user == ME:
                assert answer.startswith(b"250"), sender
                smtp.say(b"RSET")
            else:
                assert answer == (
                    b"550 5.7.1 User nobody may not send as <%s>; use <nobody@mx.example.org>, or "
                    b"add the address to submission.local_senders" % sender.encode())
        if user != ME:
            assert f"refused sender=alice@example.org user=local:{user} " in post.log.read_text()
        smtp.say(b"MAIL FROM:<%s@mx.example.org>" % user.encode())
        smtp.say(b"RCPT TO:<alice@example.org>")
        smtp.say(b"DATA")
        smtp.send(b"From: alice@example.org\r\n\r\n.\r\n")
        # check_from binds whoever is bound.
        assert smtp.reply().startswith(b"250" if user == ME else b"550 5.7.1")
    fetch(post, "alice@example.org")


def test_who_cannot_be_seen() -> None:
    assert peer_uid(StringTransport()) is None


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Router]:
    with SqliteDirectory(tmp_path_factory.mktemp("router") / "accounts.sqlite") as directory:
        for domain in "one.example", "two.example":
            directory.add_domain(domain)
        directory.add_account(at("bob@one.example"))
        yield Router(directory, "mx.example")


def test_domains_of_the_router(router: Router) -> None:
    assert router.default_domain() == "one.example"
    assert router.serves("TWO.example") and not router.serves("mx.example")


@pytest.mark.parametrize(("address", "who"), [
    ("carol@mx.example", "carol"), ("Carol@MX.example", "carol"), ("carol@one.example", "carol"),
    ("carol@two.example", ""), ("carol+x@mx.example", ""), ("carol@elsewhere.example", ""),
    ("bob@one.example", ""), ("shop@one.example", "listed"), ("SHOP@one.example", "listed"),
    ("shop+x@one.example", ""),
])
def test_what_a_system_user_owns(router: Router, address: str, who: str) -> None:
    plain = system_user(router, "carol", "mx.example", (), anybody=False)
    listed = system_user(router, "carol", "mx.example", ("x@y.example", "shop@one.example"),
                         anybody=False)
    assert plain.owns(at(address)) == (who == "carol")
    assert listed.owns(at(address)) == bool(who)
    for free in (system_user(router, "carol", "mx.example", ("*",), anybody=False),
                 system_user(router, "root", "mx.example", (), anybody=True)):
        free.require(at(address))


def test_root_and_the_service_itself_are_free(router: Router) -> None:
    settings = SubmissionSettings(local_senders={"nobody": "a@b.example", "4242": "*"})
    agent = SubmissionAgent(settings, router, Unlimited(), "mx.example")  # type: ignore[arg-type]
    stranger = at("x@elsewhere.example")
    nobody = pwd.getpwnam("nobody").pw_uid
    for uid, free in ((0, True), (os.geteuid(), True), (4242, True), (4243, False),
                      (nobody, nobody == os.geteuid())):
        found = agent.without_login("", uid)
        assert found is not None and found.owns(stranger) == free, uid
        assert found.user == {0: "root", nobody: "nobody", os.geteuid(): ME}.get(uid, str(uid))
        assert found.owns(NULL_PATH)
    assert agent.without_login("", None) is None
    assert agent.without_login("192.0.2.1", None) is None


# ---- trusted networks ---------------------------------------------------------------------------


def test_what_a_trusted_client_owns(router: Router) -> None:
    printer = client(router, "192.0.2.7", "mx.example")
    for own in at("any@one.example"), at("bob@TWO.example"), NULL_PATH:
        printer.require(own)
    for other in at("any@elsewhere.example"), at("any@mx.example"), Address("postmaster", ""):
        with pytest.raises(SenderRefused, match=r"^This client may not send as .*; use an addr"):
            printer.require(other)


@pytest.mark.parametrize(("networks", "ip", "trusted"), [
    ([], "192.0.2.7", False), (["192.0.2.0/24"], "192.0.2.7", True),
    (["192.0.2.0/24"], "192.0.3.7", False), (["192.0.2.0/24"], "2001:db8::1", False),
    (["192.0.2.0/24", "2001:db8::/32"], "2001:db8::1", True), (["0.0.0.0/0", "::/0"], "", False),
])
def test_networks(router: Router, networks: list[str], ip: str, trusted: bool) -> None:
    agent = SubmissionAgent(SubmissionSettings(trusted_networks=networks), router,
                            Unlimited(), "mx.example")  # type: ignore[arg-type]
    found = agent.without_login(ip, None)
    assert (found is not None) == trusted
    assert found is None or (found.name, found.user) == (f"client:{ip}", "")


def test_a_trusted_client_is_counted_by_its_address() -> None:
    line = Line(mode=SUBMISSION, known=True, allow_cleartext_auth="yes")
    line.say(b"EHLO printer\r\nMAIL FROM:<scan@example.org>\r\nRCPT TO:<bob@example.org>\r\n"
             b"DATA\r\n")
    line.say(b"From: scan@example.org\r\n\r\n.\r\n")
    assert line.codes()[-1] == "250 2.0.0"
    # No "A": there was no AUTH (RFC 3848).
    assert b"Received: from printer ([198.51.100.7])\r\n\tby mx.example.org with ESMTP id" in (
        line.store.mail[0].message)
    assert line.rates.counted == ["client:198.51.100.7"]
    line.say(b"MAIL FROM:<x@elsewhere.example>\r\n")
    assert line.codes() == ["550 5.7.1"]
    # Who logs in is an account from then on.
    line.say(b"AUTH PLAIN AGFsaWNlQGV4YW1wbGUub3JnAHRhbnN0YWFm\r\nMAIL FROM:<bob@example.org>\r\n"
             b"MAIL FROM:<alice@example.org>\r\nRCPT TO:<bob@example.org>\r\nDATA\r\n")
    assert line.codes() == ["235 2.7.0", "550 5.7.1", "250 2.1.0", "250 2.1.5", "354 Start"[:3]]
    line.say(b"\r\n.\r\n")
    assert line.rates.counted[1:] == ["alice@example.org"]
    line.hang_up()


def test_from_is_held_to_domains_here() -> None:
    line = Line(mode=SUBMISSION, known=True)
    line.say(b"EHLO printer\r\nMAIL FROM:<scan@example.org>\r\nRCPT TO:<bob@example.org>\r\n"
             b"DATA\r\n")
    line.say(b"From: boss@elsewhere.example\r\n\r\n.\r\n")
    assert line.codes()[-1] == "550 5.7.1"
    line.hang_up()


def test_xclient_decides_anew_who_is_trusted() -> None:
    line = Line(mode=SUBMISSION, known=True, xclient_networks=["198.51.100.0/24"])
    line.say(b"EHLO x\r\nXCLIENT ADDR=203.0.113.9\r\nEHLO x\r\nMAIL FROM:<scan@example.org>\r\n")
    assert line.codes()[-1] == "530 5.7.0"
    line.hang_up()
    line = Line(mode=SUBMISSION, known=True, xclient_networks=["198.51.100.0/24"])
    line.say(b"EHLO x\r\nXCLIENT ADDR=198.51.100.9\r\nEHLO x\r\nMAIL FROM:<scan@example.org>\r\n")
    assert line.codes()[-1] == "250 2.1.0"
    line.hang_up()


def test_the_port_for_other_servers_trusts_nobody_more(post: Any) -> None:
    """Trusted networks are for submission listeners; the others have no agent."""
    with Dialogue(post.smtp) as smtp:
        smtp.reply()
        smtp.say(b"EHLO here")
        assert smtp.say(b"MAIL FROM:<a@elsewhere.example>").startswith(b"250")
        assert smtp.say(b"RCPT TO:<x@elsewhere.example>").startswith(b"550 5.7.1")
