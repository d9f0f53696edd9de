"""The service as a whole: how it starts, what keeps it from starting, and how it stops."""

from __future__ import annotations

import errno
import os
import poplib
import resource
import signal
import smtplib
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.application.service import Application, IService
from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.threads import deferToThread
from twisted.logger import ILogObserver

from mailsvc import front, listeners
from mailsvc.config import Settings
from mailsvc.listeners import CannotStart, Listener
from mailsvc.log import LogSettings, observer
from mailsvc.service import MailService, build
from tests.service import Dialogue, Service, fetch, submit
from tests.twistd import ACCOUNT, ANY, IPV6, add_account

IPV6_ENDPOINTS = [r"tcp6:0:interface=\:\:1"] if IPV6 else []


def settings(data: Path, **listeners: list[str]) -> Settings:
    """Settings for a service in *data*, on ephemeral ports unless *listeners* are given."""
    return Settings.from_mapping({
        "service": {"data": str(data), "hostname": "mx.example.org"},
        "listeners": {"smtp": [ANY], "pop3": [ANY], **listeners},
        "passwords": {"memory_kib": 64, "passes": 1}})


def port(listener: Listener) -> int:
    return int(listener.address.rpartition(":")[2])


async def started(configured: Settings, **parts: Any) -> tuple[MailService, list[Listener]]:
    service = build(configured, reactor, **parts)
    service.privilegedStartService()
    service.startService()
    return service, await service.ready


async def until(condition: Callable[[], bool], patience: float = 30) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline
        pause: Deferred[None] = Deferred()
        reactor.callLater(0.02, pause.callback, None)  # type: ignore[attr-defined]
        await pause


def with_reactor(test: Callable[..., Awaitable[None]]) -> Any:
    return pytest_twisted.ensureDeferred(test)


# ---- serving ------------------------------------------------------------------------------------


@with_reactor
async def test_mail_goes_in_and_out(tmp_path: Path) -> None:
    add_account(tmp_path)
    service, (smtp, pop3) = await started(settings(tmp_path))
    ports = port(smtp), port(pop3)

    def send_and_fetch() -> list[bytes]:
        with smtplib.SMTP("127.0.0.1", ports[0]) as sender:
            sender.sendmail("bob@example.net", [ACCOUNT], "Subject: hello\r\n\r\nHello.\r\n")
        session = poplib.POP3("127.0.0.1", ports[1])
        session.user(ACCOUNT)
        session.pass_("secret")
        lines = session.retr(1)[1]
        session.quit()
        return lines

    try:
        assert str(smtp) == f"smtp 127.0.0.1:{ports[0]}"
        assert str(pop3) == f"pop3 127.0.0.1:{ports[1]}"
        lines = await deferToThread(send_and_fetch)
        assert lines[-3:] == [b"Subject: hello", b"", b"Hello."]
        assert any(b"by mx.example.org" in line for line in lines)
    finally:
        await service.stopService()
    for number in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", number))


@with_reactor
async def test_every_endpoint_is_bound(tmp_path: Path) -> None:
    path = tmp_path / "smtp.socket"
    service, listeners = await started(
        settings(tmp_path, smtp=[ANY, f"unix:{path}", *IPV6_ENDPOINTS], pop3=[]))
    try:
        assert {listener.kind.name for listener in listeners} == {"smtp"}
        assert listeners[1].address == str(path)
        assert [listener.address for listener in listeners[2:]] == [
            f"[::1]:{port(listener)}" for listener in listeners[2:]]
        assert len(listeners) == 2 + IPV6

        def greeting() -> bytes:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
                return client.recv(512)

        assert (await deferToThread(greeting)).startswith(b"220 mx.example.org ")
    finally:
        await service.stopService()


@with_reactor
async def test_checkers_stand_in_for_the_directory(tmp_path: Path) -> None:
    from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse  # noqa: PLC0415

    add_account(tmp_path)
    checker = InMemoryUsernamePasswordDatabaseDontUse()
    checker.addUser(ACCOUNT.encode(), b"other")
    service, (_, pop3) = await started(settings(tmp_path), checkers=[checker])

    def try_both() -> None:
        session = poplib.POP3("127.0.0.1", port(pop3))
        session.user(ACCOUNT)
        with pytest.raises(poplib.error_proto):
            session.pass_("secret")
        session.user(ACCOUNT)
        session.pass_("other")
        session.quit()

    try:
        await deferToThread(try_both)
    finally:
        await service.stopService()


@with_reactor
async def test_leftovers_are_swept_at_the_start(tmp_path: Path) -> None:
    add_account(tmp_path)
    folder = tmp_path / "mail" / "example.org" / "alice" / "tmp"
    folder.mkdir(parents=True)
    old, young = folder / "1.old.host", folder / "2.young.host"
    for path in old, young:
        path.write_bytes(b"x")
    os.utime(old, (0, 0))
    service, _ = await started(settings(tmp_path))
    try:
        await until(lambda: not old.exists())
        assert young.exists()
    finally:
        await service.stopService()


def test_the_descriptor_limit_is_raised() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        front._raise_descriptor_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_twistd_logs_to_its_observer(tmp_path: Path) -> None:
    service = build(settings(tmp_path), reactor)
    service.log_observer = observer(LogSettings(), open(os.devnull, "w"))  # noqa: SIM115
    application = Application("mailsvc")
    service.setServiceParent(application)
    assert application.getComponent(ILogObserver) is service.log_observer
    assert list(IService(application)) == [service]


# ---- not starting -------------------------------------------------------------------------------


def refusal(configured: Settings) -> str:
    """Why a service so configured does not start; nothing may be left bound by it."""
    with pytest.raises(CannotStart) as caught:
        service = build(configured, reactor)
        service.privilegedStartService()
        service.startService()
    return str(caught.value)


@with_reactor
async def test_a_port_in_use(tmp_path: Path) -> None:
    path = tmp_path / "smtp.socket"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
        text = refusal(settings(tmp_path, smtp=[f"unix:{path}"], pop3=[endpoint]))
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        assert f"pop3 on {where}: EADDRINUSE, Address already in use; another program" in text
        assert "ss -ltnp" in text
    # The other one is given back.
    await until(lambda: not path.exists())


def test_every_port_that_cannot_be_bound_is_named(tmp_path: Path) -> None:
    text = refusal(settings(
        tmp_path, smtp=["tcp:0:interface=203.0.113.1"], pop3=["tcp:0:interface=203.0.113.2"]))
    assert "smtp on 203.0.113.1:0: EADDRNOTAVAIL" in text
    assert "pop3 on 203.0.113.2:0: EADDRNOTAVAIL" in text
    assert "ip address" in text


class FakeEndpoint:
    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome

    def listen(self, factory: object) -> Any:
        return self.outcome


def pretend(monkeypatch: pytest.MonkeyPatch, outcome: Any) -> None:
    monkeypatch.setattr(listeners, "serverFromString", lambda *_: FakeEndpoint(outcome))


def test_a_privileged_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    denied = PermissionError(errno.EACCES, "Permission denied")
    pretend(monkeypatch, fail(CannotListenError("", 25, denied)))
    text = refusal(settings(tmp_path, smtp=["tcp:25"], pop3=[]))
    assert "smtp on port 25: EACCES, Permission denied; ports below 1024 are for root" in text
    assert "mailsvc.socket" in text
    assert "setcap" in text


def test_an_endpoint_that_fails_in_another_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, fail(RuntimeError("no onions today")))
    assert refusal(settings(tmp_path, pop3=[])).endswith(
        f"smtp on {ANY}: no onions today; choose another endpoint, or see to that")


@with_reactor
async def test_an_endpoint_that_fails_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome: Deferred[None] = Deferred()
    pretend(monkeypatch, outcome)
    service = build(settings(tmp_path, pop3=[]), reactor)
    service.privilegedStartService()
    service.startService()
    outcome.errback(RuntimeError("no onions today"))
    with pytest.raises(CannotStart, match="no onions today"):
        await service.ready
    await service.stopService()


@with_reactor
async def test_connections_wait_for_the_factory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    class Port:
        def getHost(self) -> str:
            return "nowhere"

        def stopListening(self) -> None:
            seen.append("closed")

    class Endpoint:
        def listen(self, factory: Any) -> Any:
            seen.append(factory)
            return succeed(Port())

    monkeypatch.setattr(listeners, "serverFromString", lambda *_: Endpoint())
    service = build(settings(tmp_path, pop3=[]), reactor)
    service.privilegedStartService()
    assert seen[0].buildProtocol(None) is None
    service.startService()
    (listener,) = await service.ready
    assert str(listener) == "smtp nowhere"
    assert type(seen[0].buildProtocol(None)).__name__ == "SMTPProtocol"
    await service.stopService()
    assert seen[1:] == ["closed"]


def test_nothing_to_listen_on(tmp_path: Path) -> None:
    assert "nothing to do" in refusal(settings(tmp_path, smtp=[], pop3=[]))


def test_a_socket_that_systemd_did_not_pass(tmp_path: Path) -> None:
    text = refusal(settings(tmp_path, smtp=["systemd:domain=INET6:index=0"]))
    assert "smtp on systemd:domain=INET6:index=0: systemd has passed no such socket" in text


def test_an_endpoint_that_makes_no_sense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = settings(tmp_path)
    broken.listeners.smtp[:] = ["tcp:x"]
    assert "smtp on tcp:x: not a Twisted endpoint string such as tcp:2525" in refusal(broken)


def test_a_missing_data_directory(tmp_path: Path) -> None:
    data = tmp_path / "none"
    assert (f"there is no directory {data} (service.data); make it for the user that runs mailsvc: "
            f"install -d -o USER -g USER -m 700 {data}") in refusal(settings(data))
    assert not data.exists()


def test_a_missing_place_for_accounts(tmp_path: Path) -> None:
    configured = Settings.from_mapping({
        "service": {"data": str(tmp_path)}, "listeners": {"smtp": [ANY], "pop3": []},
        "accounts": {"database": str(tmp_path / "none" / "accounts.sqlite")}})
    assert f"there is no {tmp_path}/none/accounts.sqlite yet" in refusal(configured)


def test_a_database_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "accounts.sqlite").write_text("no database, whatever it is\n" * 100)
    assert "mailsvc cannot start: " in refusal(settings(tmp_path))


def test_root_does_not_serve_what_belongs_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is made that its owner could not use afterwards."""
    if os.getuid() == 0:
        os.chown(tmp_path, 65534, 65534)
    service = build(
        Settings.from_mapping({"service": {"data": str(tmp_path)},
                               "listeners": {"smtp": ["tcp:0:interface=127.0.0.1"], "pop3": []}}),
        reactor)
    service.for_good = True
    service.privilegedStartService()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(CannotStart, match=r"belongs to .*give twistd --uid "):
        service.startService()
    service.close_listeners()
    service.let_go()
    assert not (tmp_path / "mail").exists()


# ---- stopping -----------------------------------------------------------------------------------

MESSAGE = b"Subject: last\r\n\r\n" + b"A line.\r\n" * 1000


def in_data(service: Service) -> Dialogue:
    """A connection that has sent half of its message."""
    smtp = Dialogue(service.smtp)
    assert smtp.reply().startswith(b"220")
    for line in b"EHLO client.example", b"MAIL FROM:<bob@example.net>", b"RCPT TO:<%s>" % (
            ACCOUNT.encode()), b"DATA":
        assert smtp.say(line)[:1] in b"23"
    smtp.send(MESSAGE[:5000])
    return smtp


def delivered(service: Service) -> list[Path]:
    return list((service.maildir(ACCOUNT) / "new").glob("*"))


def wait_until_refused(address: tuple[str, int]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            socket.create_connection(address).close()
        except ConnectionRefusedError:
            return
        time.sleep(0.02)
    pytest.fail(f"{address} still accepts connections")


def test_a_transaction_in_flight_is_finished(tmp_path: Path) -> None:
    service = Service(tmp_path / "data", (f"{ACCOUNT}:secret",))
    with service, in_data(service) as smtp:
        service.process.send_signal(signal.SIGTERM)
        wait_until_refused(service.smtp)
        wait_until_refused(service.pop3)
        service.process.send_signal(signal.SIGTERM)
        assert service.process.poll() is None
        smtp.send(MESSAGE[5000:] + b".\r\n")
        assert smtp.reply().startswith(b"250 2.")
        assert smtp.reply().startswith(b"421 4.3.2")
        assert smtp.file.read() == b""
        smtp.close()
        assert service.process.wait(30) == 0
        (path,) = delivered(service)
        assert path.read_bytes().endswith(MESSAGE)


def test_idle_connections_are_told(tmp_path: Path) -> None:
    service = Service(tmp_path / "data", (f"{ACCOUNT}:secret",))
    with service, Dialogue(service.smtp) as smtp, Dialogue(service.pop3) as pop3:
        assert smtp.reply().startswith(b"220")
        assert pop3.line().startswith(b"+OK")
        service.process.send_signal(signal.SIGTERM)
        assert smtp.reply().startswith(b"421 4.3.2")
        assert smtp.file.read() == b""
        pop3.file.read()
        smtp.close()
        pop3.close()
        assert service.process.wait(30) == 0


def test_grace_ends(tmp_path: Path) -> None:
    service = Service(tmp_path / "data", (f"{ACCOUNT}:secret",),
                      ("--set", "service.grace_seconds=0.2"))
    with service, in_data(service) as smtp:
        service.process.send_signal(signal.SIGTERM)
        # RFC 5321 §3.8: not without a word.
        assert smtp.reply().startswith(b"421 4.3.2")
        assert smtp.file.read() == b""
        assert service.process.wait(30) == 0
        assert delivered(service) == []
        assert list((service.maildir(ACCOUNT) / "tmp").glob("*")) == []


def test_what_was_acknowledged_is_there_after_a_restart(tmp_path: Path) -> None:
    accounts = (f"{ACCOUNT}:secret",)
    with Service(tmp_path / "data", accounts) as service:
        submit(service, MESSAGE, (ACCOUNT,))
    with Service(tmp_path / "data", accounts) as service:
        (message,) = fetch(service, ACCOUNT)
        assert message.endswith(MESSAGE)
