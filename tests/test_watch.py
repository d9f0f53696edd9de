"""mailsvc.watching, mailsvc.live, `mailsvc watch`: who is shown what, and for how long."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from mailsvc.live import MOST_SECONDS, Follower, Live
from mailsvc.smtp.mode import SUBMISSION
from mailsvc.watching import CONNECTIONS, WATCHES, Watch, Watches
from tests.pop3 import SECRET, USER, Client
from tests.postoffice import Line
from tests.readable import readable
from tests.service import PATIENCE, Dialogue, Service
from tests.test_smtp_server import HELO, RECIPIENT, SENDER

ALICE, PASSWORD = "alice@example.org", "correct-horse-battery"
BOB = "bob@example.org"


class Spectator:
    """Watches in this process.

    :ivar said: what it was told, without ids.
    """

    def __init__(self, *lines: Line | Client, text: bool = False, **chosen: str) -> None:
        self.said: list[str] = []
        self.watches = Watches({id(each): each for each in (
            one.factory.connections for one in lines)}.values())
        self.watch = Watch(lambda id, mark, line: self.said.append(f"{mark}: {line}"), text=text,
                           **chosen)
        self.watches.begin(self.watch)
        for one in lines:
            self.watches.look(one.protocol)

    def news(self) -> list[str]:
        news, self.said[:] = list(self.said), []
        return news


def untouched(one: Line | Client) -> bool:
    """Whether a connection is as it was before anybody watched."""
    return (one.protocol.transport is one.transport
            and not {"dataReceived", "connectionLost"} & set(vars(one.protocol)))


def another(line: Line, **how: Any) -> Line:
    return Line(factory=line.factory, **how)


# ---- who is chosen -------------------------------------------------------------------------------


def test_an_address_from_the_first_octet_on() -> None:
    first = Line(host="192.0.2.7")
    spectator = Spectator(first, address="192.0.2.0/24")
    assert spectator.news() == ["*: smtp, client 192.0.2.7: the client is 192.0.2.7"]
    first.say(b"NOOP\r\n")
    assert spectator.news() == ["C: NOOP", "S: 250 2.0.0 Nothing done"]
    second, third = another(first, host="192.0.2.8"), another(first, host="198.51.100.7")
    assert [each[:7] for each in spectator.news()] == ["*: smtp", "S: 220 "]
    third.say(HELO)
    second.say(b"QUIT\r\n")
    assert [each[:6] for each in spectator.news()] == ["C: QUI", "S: 221"]
    second.protocol.connectionLost()
    assert spectator.news() == ["*: closed"]
    assert untouched(third) and not untouched(first)
    first.say(b"NO")
    spectator.watches.end(spectator.watch)
    assert untouched(first)
    first.say(b"OP\r\n")
    assert first.codes()[-1] == "250 2.0.0"
    assert spectator.news() == []
    assert first.factory.connections.look is None
    third.protocol.connectionLost()
    first.hang_up()


def test_a_recipient_from_rcpt_on() -> None:
    line = Line()
    spectator = Spectator(line, recipient="Alice@example.org")
    line.say(HELO + SENDER + RECIPIENT)
    first, *answers = spectator.news()
    assert first == "*: smtp, client 198.51.100.7: mail for alice@example.org"
    assert answers[-1].startswith("S: 250 2.1.5")
    assert all(each.startswith("S: ") for each in answers)
    line.say(b"DATA\r\n")
    line.say(b"Subject: hi\r\n\r\nsecret\r\n.\r\n")
    assert [each[:6] for each in spectator.news()] == [
        "C: DAT", "S: 354", "C: (23", "C: .", "S: 250"]
    line.hang_up()


@pytest.mark.parametrize("said", [
    "alice@example.org", "ALICE@Example.org", "alice+lists@example.org"])
def test_how_a_recipient_may_be_written(said: str) -> None:
    line = Line()
    spectator = Spectator(line, recipient="alice@example.org")
    line.say(HELO + SENDER + f"RCPT TO:<{said}>\r\n".encode())
    assert f"mail for {said.partition('@')[0]}@" in spectator.news()[0]
    line.hang_up()


def test_other_recipients_are_not_shown() -> None:
    line = Line()
    spectator = Spectator(line, recipient="nobody-else@example.org")
    line.say(HELO + SENDER + RECIPIENT + b"DATA\r\nhi\r\n.\r\nQUIT\r\n")
    assert spectator.news() == [] and untouched(line)
    line.hang_up()


def test_an_account_from_its_login_on() -> None:
    client = Client()
    spectator = Spectator(client, account=USER.upper())
    client.log_in()
    client.ask("LIST", "RETR 1", "NOOP")
    news = spectator.news()
    assert news[0] == f"*: pop3, client 198.51.100.7: {USER} logs in"
    assert [each for each in news if each.startswith("C")] == ["C: LIST", "C: RETR 1", "C: NOOP"]
    assert news[-1].startswith("S: +OK")
    assert any(re.fullmatch(r"S: \(\d+ octets of a message\)", each) for each in news)
    assert SECRET not in "".join(news)
    client.hang_up()
    assert spectator.news()[-1] == "*: closed"


def test_a_wrong_login_is_one_too() -> None:
    client = Client()
    spectator = Spectator(client, account=USER)
    client.ask(f"USER {USER}", "PASS wrong-password")
    news = spectator.news()
    assert news[0].endswith(f"{USER} logs in") and news[-1].startswith("S: -ERR [AUTH]")
    assert "wrong-password" not in "".join(news)
    client.hang_up()


def test_a_protocol_alone() -> None:
    line, client = Line(mode=SUBMISSION), Client()
    spectator = Spectator(line, client, address="198.51.100.7", protocol="smtp")
    assert not untouched(line) and untouched(client)
    spectator.watches.end(spectator.watch)
    spectator = Spectator(line, client, address="198.51.100.7", protocol="pop3")
    assert untouched(line) and not untouched(client)
    line.hang_up()
    client.hang_up()


def test_two_who_watch_do_not_disturb_each_other() -> None:
    line = Line()
    spectator = Spectator(line, address="198.51.100.7")
    said: list[str] = []
    second = Watch(lambda id, mark, text: said.append(text), recipient="c@example.org")
    spectator.watches.begin(second)
    line.say(HELO)
    assert not said and spectator.news()
    spectator.watches.end(spectator.watch)
    assert untouched(line) and line.factory.connections.look is not None
    spectator.watches.end(second)
    assert line.factory.connections.look is None
    line.hang_up()


def test_what_follows_starttls_is_shown_too() -> None:
    line = Line(tls=object())
    spectator = Spectator(line, address="198.51.100.7")
    line.say(b"EHLO me\r\n")
    line.say(b"STARTTLS\r\nNOOP injected\r\n")
    line.say(b"EHLO me\r\n")
    said = [each for each in spectator.news() if each.startswith("C")]
    assert said == ["C: EHLO me", "C: STARTTLS", "C: NOOP injected", "C: EHLO me"]
    line.hang_up()


def test_a_fault_of_ours_does_not_touch_the_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line()
    spectator = Spectator(line, address="198.51.100.7")

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("mailsvc.watching.SMTPTranscript.received", broken)
    line.say(HELO)
    assert untouched(line) and line.codes()[-1] == "250"
    assert spectator.watch.count == 0
    line.hang_up()


def test_watches_and_their_connections_are_bounded() -> None:
    line = Line()
    watches = Watches([line.factory.connections])
    for _ in range(WATCHES):
        watches.begin(Watch(lambda *_: None, address="203.0.113.1"))
    with pytest.raises(ValueError, match="watches go on already"):
        watches.begin(Watch(lambda *_: None, address="203.0.113.1"))
    spectator = Spectator(line, address="198.51.100.7")
    spectator.watch.count = CONNECTIONS
    spectator.said.clear()
    one_more = another(line)
    assert untouched(one_more) and spectator.said == [
        f"*: not shown, though the client is 198.51.100.7: {CONNECTIONS} connections are watched "
        "already"]
    one_more.protocol.connectionLost()
    line.hang_up()


@pytest.mark.parametrize(("chosen", "problem"), [
    ({}, "choose by one of"),
    ({"address": "192.0.2.7", "account": ALICE}, "choose by one of"),
    ({"address": "example.org"}, "is no IP address"),
    ({"account": ALICE, "protocol": "imap"}, "choose smtp or pop3"),
], ids=["nothing", "two", "a name", "IMAP"])
def test_what_cannot_be_watched(chosen: dict[str, str], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Watch(lambda *_: None, **chosen)


# ---- over the socket, by a clock of its own ------------------------------------------------------


class Asking:
    """Somebody at the socket of a process that has *line*."""

    def __init__(self, line: Line, path: Path, **request: object) -> None:
        self.clock = Clock()
        self.live = Live([line.factory.connections], path, self.clock)
        self.transport = StringTransport()
        self.protocol: Any = self.live._factory.buildProtocol(None)
        self.protocol.makeConnection(self.transport)
        self.ask(**request)

    def ask(self, **request: object) -> None:
        self.protocol.dataReceived(json.dumps(request).encode() + b"\n")

    def news(self) -> list[dict[str, Any]]:
        data = self.transport.value()
        self.transport.clear()
        return [json.loads(each) for each in data.splitlines()]


def test_it_ends_by_itself(tmp_path: Path) -> None:
    line = Line()
    asking = Asking(line, tmp_path, action="watch", address="198.51.100.7", seconds=60)
    first, chosen = asking.news()
    assert first == {"watching": os.getpid()}
    assert chosen["mark"] == "*" and chosen["id"] == line.protocol.id
    line.say(HELO)
    assert [each["mark"] for each in asking.news()] == ["C", "S"]
    asking.clock.advance(59)
    assert not asking.transport.disconnecting
    asking.clock.advance(1)
    assert asking.news() == [{"over": "time is up"}]
    assert asking.transport.disconnecting and untouched(line) and not asking.live.asked
    line.say(b"NOOP\r\n")
    assert asking.news() == []
    line.hang_up()


def test_who_goes_away_is_forgotten(tmp_path: Path) -> None:
    line = Line()
    asking = Asking(line, tmp_path, action="watch", address="198.51.100.7", seconds=60)
    asking.protocol.connectionLost()
    assert untouched(line) and not asking.live.asked and not asking.clock.getDelayedCalls()
    line.hang_up()


def test_when_the_service_stops_it_is_over(tmp_path: Path) -> None:
    line = Line()
    asking = Asking(line, tmp_path, action="watch", address="198.51.100.7", seconds=60)
    asking.live.end_watches()
    assert asking.news()[-1] == {"over": "the service is stopping"}
    assert untouched(line) and not asking.clock.getDelayedCalls()
    line.hang_up()


def test_who_does_not_keep_up_misses_lines_and_nobody_waits(tmp_path: Path) -> None:
    line = Line()
    asking = Asking(line, tmp_path, action="watch", address="198.51.100.7", seconds=60)
    line.say(HELO)
    asking.news()
    assert asking.transport.producer is asking.protocol
    asking.protocol.pauseProducing()
    for _ in range(40):
        line.say(b"NOOP\r\n")
    assert asking.news() == []
    assert line.codes()[-1] == "250 2.0.0"
    asking.protocol.resumeProducing()
    line.say(b"NOOP\r\n")
    note, said, answer = asking.news()
    assert note["line"] == "80 lines dropped: they came faster than they were taken"
    assert (said["line"], answer["mark"]) == ("NOOP", "S")
    line.hang_up()


@pytest.mark.parametrize("request_", [
    {"action": "watch", "seconds": 60}, {"action": "watch", "address": "x", "seconds": 60},
    {"action": "watch", "address": "192.0.2.7", "seconds": MOST_SECONDS + 1},
    {"action": "watch", "address": "192.0.2.7"}, {"action": "no"}, {}, {"action": "end"},
    {"action": "watch", "address": "192.0.2.7", "seconds": 60, "colour": "red"},
], ids=str)
def test_what_cannot_be_answered(request_: dict[str, object], tmp_path: Path) -> None:
    line = Line()
    asking = Asking(line, tmp_path, **request_)
    told, = asking.news()
    assert list(told) == ["error"] and told["error"]
    assert asking.transport.disconnecting and not asking.clock.getDelayedCalls()
    assert line.factory.connections.look is None
    line.hang_up()


# ---- whole services ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("watch") / "data",
                 (f"{ALICE}:{PASSWORD}", f"{BOB}:{PASSWORD}"),
                 ("--workers", "2", "--submission", "127.0.0.1:0")) as running:
        yield running


class Command:
    """``mailsvc watch`` as a child process, from when both workers are watched."""

    def __init__(self, service: Service, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from mailsvc.cli import main; main()", "watch", *options,
             "--json", "--dir", str(service.directory)],
            bufsize=0, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": "1"})
        log, before = service.log, service.log.read_text().count("sessions are watched")
        deadline = time.monotonic() + PATIENCE
        while log.read_text().count("sessions are watched") < before + 2:
            assert time.monotonic() < deadline and self.process.poll() is None, self.end()
            time.sleep(0.05)

    def until(self, word: str) -> list[dict[str, Any]]:
        """The lines up to the first with *word*."""
        assert self.process.stdout is not None
        found: list[dict[str, Any]] = []
        deadline = time.monotonic() + PATIENCE
        while not found or word not in found[-1]["line"]:
            assert readable(self.process.stdout, deadline - time.monotonic()), found
            found.append(json.loads(self.process.stdout.readline()))
        return found

    def end(self) -> str:
        """Interrupt it; what it said on standard error."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        _, said = self.process.communicate(timeout=PATIENCE)
        return said.decode()


def test_in_all_workers_by_both_protocols(service: Service) -> None:
    """Many connections, so that each worker has some; no secret and no text in what is shown."""
    command = Command(service, "--account", ALICE)
    ids: set[str] = set()
    try:
        for number in range(16):
            with Dialogue(service.pop3) as pop3:
                pop3.reply()
                pop3.ask(b"USER " + ALICE.encode())
                assert pop3.ask(b"PASS " + PASSWORD.encode()).startswith(b"+OK")
                pop3.ask(b"NOOP")
                assert pop3.ask(b"QUIT").startswith(b"+OK")
            told = command.until("closed")
            ids |= {each["id"] for each in told}
            assert len(ids) == number + 1
            assert [each["line"] for each in told if each["mark"] == "C"] == ["NOOP", "QUIT"]
            assert PASSWORD not in str(told)
    finally:
        said = command.end()
    assert command.process.returncode == 0 and "interrupted" in said
    # An id ends with the process that made it.
    assert len({id[11:] for id in ids}) == 2, "by chance 1 in 30,000 is of one worker"


def test_an_address_over_smtp(service: Service) -> None:
    command = Command(service, "--address", "127.0.0.0/8", "--protocol", "smtp")
    try:
        with Dialogue(service.smtp) as smtp:
            smtp.reply()
            for each in (b"EHLO me", b"MAIL FROM:<x@example.net>", b"RCPT TO:<bob@example.org>",
                         b"DATA", b"Subject: hi\r\n\r\nsecret\r\n.", b"QUIT"):
                smtp.say(each)
        told = command.until("closed")
    finally:
        command.end()
    assert [each["line"] for each in told if each["mark"] == "C"] == [
        "EHLO me", "MAIL FROM:<x@example.net>", "RCPT TO:<bob@example.org>", "DATA",
        "(23 octets of a message)", ".", "QUIT"]
    assert next(each["line"] for each in told if each["mark"] == "S").startswith("220 ")
    assert "secret" not in str(told)


def test_without_a_service(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from mailsvc.cli import main; main()", "watch", "--address",
         "192.0.2.7", "--dir", str(tmp_path)], check=False, capture_output=True, text=True,
        timeout=PATIENCE)
    assert done.returncode == 1 and "no service runs" in done.stderr


def test_a_follower_ends_when_there_is_nobody_any_more(tmp_path: Path) -> None:
    clock = _Dialling()
    (tmp_path / "live-0").touch()
    follower = Follower(tmp_path, {"address": "192.0.2.7"}, 3600, lambda told: None, clock)
    why: list[str] = []
    follower.over.addCallback(why.append)
    follower.start()
    for _ in range(20):
        clock.advance(1)
    assert why == ["no service runs any more"]
    assert not clock.getDelayedCalls() and 8 <= clock.dialled <= 12


class _Dialling(Clock):
    """A clock with a reactor's way to Unix sockets.

    :ivar dialled: how often it was gone; *open*: who is at the other end of each, by name; nobody
        unless *answers*.
    """

    def __init__(self, *, answers: bool = False) -> None:
        super().__init__()
        self.dialled = 0
        self._answers = answers
        self.open: dict[str, Any] = {}

    def connectUNIX(self, address: str, factory: Any) -> None:
        self.dialled += 1
        if not self._answers:
            factory.clientConnectionFailed(None, None)
            return
        protocol = self.open[address.rpartition("/")[2]] = factory.buildProtocol(None)
        protocol.makeConnection(StringTransport())


def test_a_follower_goes_on_in_the_processes_of_a_reload(tmp_path: Path) -> None:
    clock, told = _Dialling(answers=True), []
    (tmp_path / "live-0").touch()
    follower = Follower(tmp_path, {"address": "192.0.2.7"}, 3600, told.append, clock)
    why: list[str] = []
    follower.over.addCallback(why.append)
    follower.start()
    first = clock.open.pop("live-0")
    assert json.loads(first.transport.value())["seconds"] == 3600
    # Another serves before the first one ends, and nobody has had the time to look.
    (tmp_path / "live-1").touch()
    (tmp_path / "live-0").unlink()
    clock.advance(0.5)
    first.dataReceived(b'{"over": "the service is stopping"}\n')
    first.connectionLost()
    assert not why
    second = clock.open.pop("live-1")
    assert json.loads(second.transport.value())["seconds"] == 3599.5
    second.dataReceived(b'{"mark": "C", "line": "NOOP"}\n')
    assert told == [{"mark": "C", "line": "NOOP"}]
    (tmp_path / "live-1").unlink()
    second.dataReceived(b'{"over": "the service is stopping"}\n')
    second.connectionLost()
    assert why == ["the service is stopping"] and not clock.getDelayedCalls()


def test_a_follower_ends_by_itself_too(tmp_path: Path) -> None:
    clock = _Dialling(answers=True)
    (tmp_path / "live-0").touch()
    follower = Follower(tmp_path, {"address": "192.0.2.7"}, 60, lambda told: None, clock)
    why: list[str] = []
    follower.over.addCallback(why.append)
    follower.start()
    for _ in range(61):
        clock.advance(1)
    assert why == ["time is up"] and not clock.getDelayedCalls()
