"""The benchmark's own eyes: its load clients and verifiers see what a faulty server does.

A tiny server of each protocol serves a real maildir with at most one fault; every fault must be
reported, and without one there must be none.  No test here depends on how long anything takes.
"""

from __future__ import annotations

import re
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from tests.bench import fetching, keeper, load, maildirs, plot, receiving
from tests.bench import run as bench
from tests.bench.__main__ import main
from tests.bench.machine import this_machine
from tests.bench.messages import LARGE, SMALL, TINY, AlteredMessage, Template, ident
from tests.bench.peers import Aiosmtpd, Mailsvc, Server, Site
from tests.bench.process import ServerFailed, ServerProcess, free_port
from tests.bench.report import Report
from tests.bench.scenario import HANDFUL, Bed, Measurement

NAME = ident("test", 7, 42)


# Messages

@pytest.mark.parametrize("template", [TINY, SMALL, LARGE, *map(Template, range(300, 450))])
def test_messages_have_the_size_they_should_and_lines_end_in_crlf(template: Template) -> None:
    plain = template.plain(NAME)
    assert len(plain) == template.size
    assert plain.endswith(b"\r\n")
    assert b"\r" not in plain.replace(b"\r\n", b"") and b"\n" not in plain.replace(b"\r\n", b"")


def test_wire_form_is_the_stuffed_plain_form() -> None:
    stuffed = b"".join(b"." + line if line.startswith(b".") else line
                       for line in SMALL.plain(NAME).splitlines(keepends=True))
    assert stuffed != SMALL.plain(NAME)
    assert SMALL.wire(NAME) == stuffed + b".\r\n"


@pytest.mark.parametrize("stored", [
    SMALL.plain(NAME),
    SMALL.plain(NAME).replace(b"\r\n", b"\n"),
    b"Return-Path: <a@b>\r\nReceived: from c\r\n\tby d\r\n" + SMALL.plain(NAME),
    SMALL.plain(NAME).replace(b"\r\n\r\n", b"\r\nX-Peer: e\r\n\r\n", 1),
])
def test_a_stored_message_is_recognised(stored: bytes) -> None:
    assert SMALL.identify(stored) == NAME


@pytest.mark.parametrize("spoil", [
    lambda text: text[:-1],
    lambda text: text[:-2],
    lambda text: text + b"\r\n",
    lambda text: text[:2000] + text[2072:],
    lambda text: text.replace(b"fox", b"fix", 1),
    lambda text: text.replace(b"\r\n.The", b"\r\n..The", 1),
    lambda text: text.replace(b"\r\n.The", b"\r\nThe", 1),
    lambda text: text.replace(b"Subject", b"subject", 1),
    lambda text: text.replace(b"Message-ID", b"Message-Id", 1),
    lambda text: text.replace(b"0000042", b"0000043", 1),
    lambda text: text + text,
    lambda text: b"",
])
def test_an_altered_message_is_not(spoil: Callable[[bytes], bytes]) -> None:
    altered = spoil(SMALL.plain(NAME))
    assert altered != SMALL.plain(NAME)
    with pytest.raises(AlteredMessage):
        SMALL.identify(altered)


# Servers with a fault

class FaultyServer(socketserver.ThreadingTCPServer):
    """A mail server over a :class:`Site`'s maildirs that does one thing wrong, or nothing."""

    daemon_threads = True
    request_queue_size = 50

    def __init__(self, handler: type[socketserver.StreamRequestHandler], site: Site,
                 fault: str) -> None:
        self.site = site
        self.fault = fault
        self.faults_left = 1
        self.written = 0
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), handler)

    def errs(self, fault: str) -> bool:
        """Whether to do this *fault* now: the first time it is asked for."""
        with self.lock:
            if fault == self.fault and self.faults_left:
                self.faults_left = 0
                return True
            return False


class SMTPSession(socketserver.StreamRequestHandler):
    """Delivers to the maildirs named in RCPT before it answers 250."""

    server: FaultyServer

    def handle(self) -> None:
        self.wfile.write(b"220 here\r\n")
        recipients: list[str] = []
        while line := self.rfile.readline():
            verb = line[:4].upper()
            if verb == b"EHLO":
                self.wfile.write(b"250-here\r\n250 PIPELINING\r\n")
            elif verb == b"RCPT":
                refused = self.server.errs("refuse a recipient")
                self.wfile.write(b"550 no\r\n" if refused else b"250 ok\r\n")
                recipients.append(re.search(rb"<(.*)@", line)[1].decode())  # type: ignore[index]
            elif verb == b"DATA":
                self.wfile.write(b"354 go\r\n")
                self._deliver(recipients, b"".join(
                    line.removeprefix(b".") for line in iter(self.rfile.readline, b".\r\n")))
                recipients = []
                self.wfile.write(b"250 stored\r\n" * (1 + self.server.errs("answer twice")))
            elif verb == b"QUIT":
                self.wfile.write(b"221 bye\r\n")
                return
            else:
                self.wfile.write(b"250 ok\r\n")
                if verb == b"MAIL" and self.server.errs("hang up"):
                    return

    def _deliver(self, recipients: list[str], text: bytes) -> None:
        if self.server.errs("alter a message"):
            text = text.replace(b"fox", b"fix")
        if self.server.errs("misdeliver"):
            recipients = ["u04" if recipients == ["u03"] else "u03"]
        for recipient in recipients:
            if self.server.errs("lose a message"):
                continue
            for _ in range(1 + self.server.errs("deliver twice")):
                with self.server.lock:
                    self.server.written += 1
                    name = f"{self.server.written}.here"
                (self.server.site.maildir(recipient) / "new" / name).write_bytes(text)


class POP3Session(socketserver.StreamRequestHandler):
    """Serves what lies in new/ of the account."""

    server: FaultyServer

    def handle(self) -> None:
        self.wfile.write(b"+OK here\r\n")
        messages: list[Path] = []
        deleted: list[Path] = []
        while line := self.rfile.readline():
            verb, _, argument = line.rstrip().decode().partition(" ")
            reply = "+OK"
            if verb == "USER":
                new = self.server.site.maildir(argument.partition("@")[0]) / "new"
                messages = sorted(new.iterdir())
            elif verb == "STAT":
                octets = sum(path.stat().st_size for path in messages)
                reply = f"+OK {len(messages)} {octets + self.server.errs('wrong sum')}"
            elif verb == "LIST":
                reply = self._listing([str(path.stat().st_size + self.server.errs("wrong size"))
                                       for path in messages])
            elif verb == "UIDL":
                ids = [path.name[:40] for path in messages]
                if self.server.errs("same unique-id"):
                    ids[0] = ids[-1]
                if self.server.fault == "new unique-ids":
                    ids[0] = f"port-{self.client_address[1]}"
                reply = self._listing(ids)
            elif verb == "CAPA":
                reply = self._listing(["UIDL"])
            elif verb == "RETR":
                self._retrieve(messages, int(argument))
                continue
            elif verb == "DELE" and not self.server.errs("forget to delete"):
                deleted.append(messages[int(argument) - 1])
            elif verb == "QUIT":
                for path in deleted:
                    path.unlink()
            self.wfile.write(f"{reply}\r\n".encode())

    @staticmethod
    def _listing(items: list[str]) -> str:
        lines = ["+OK", *(f"{n} {item}" for n, item in enumerate(items, start=1)), "."]
        return "\r\n".join(lines)

    def _retrieve(self, messages: list[Path], number: int) -> None:
        if self.server.errs("wrong message"):
            number = number % len(messages) + 1
        text = messages[number - 1].read_bytes()
        if not self.server.errs("forget to stuff"):
            text = text.replace(b"\r\n.", b"\r\n..")
        if self.server.errs("alter a message"):
            text = text.replace(b"fox", b"fix")
        if self.server.errs("add a line"):
            text += b"\r\n"
        self.wfile.write(b"+OK\r\n" + text + b".\r\n")


class NoProcess:
    """Stands in for the process of a server that is a thread of ours."""

    def cpu(self) -> float:
        return 0.0


@contextmanager
def serving(handler: type[socketserver.StreamRequestHandler], directory: Path, fault: str
            ) -> Iterator[Bed]:
    """A bed with a server of one protocol and one fault."""
    site = Site(directory / "site", HANDFUL.local_parts())
    site.make_maildirs(None)
    source = directory / "source"
    maildirs.make(source)
    maildirs.fill(source, fetching.source_idents(HANDFUL.listing), TINY, part="new")
    with FaultyServer(handler, site, fault) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        address = ("127.0.0.1", server.server_address[1])
        process: Any = NoProcess()
        try:
            yield Bed(Server(process, site, smtp=address, pop3=address), HANDFUL, source)
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "DELIVERY_TIMEOUT", 0.3)
    monkeypatch.setattr(load, "SILENCE", 2.0)


@pytest.mark.parametrize("scenario", receiving.RECEIVING, ids=lambda scenario: scenario.key)
def test_good_deliveries_are_counted(tmp_path: Path, scenario: bench.Scenario) -> None:
    with serving(SMTPSession, tmp_path, "") as bed:
        first = scenario.measure(bed, scenario.key)
        again = scenario.measure(bed, "again")
    assert (first.problem, again.problem) == ("", "")
    assert first.value is not None and first.value > 0


@pytest.mark.parametrize(("fault", "complaint"), [
    ("lose a message", "1 acknowledged and not there"),
    ("alter a message", "altered"),
    ("deliver twice", "1 delivered twice"),
    ("misdeliver", "acknowledged and not there"),
    ("refuse a recipient", "'550 no' instead of 250"),
    ("answer twice", "unasked"),
    ("hang up", "closed the connection"),
])
@pytest.mark.parametrize("scenario", receiving.RECEIVING, ids=lambda scenario: scenario.key)
def test_bad_deliveries_are_noticed(tmp_path: Path, scenario: bench.Scenario, fault: str,
                                    complaint: str) -> None:
    with serving(SMTPSession, tmp_path, fault) as bed:
        measurement = scenario.measure(bed, scenario.key)
    assert complaint in measurement.problem
    assert measurement.value is None


def test_mail_in_the_wrong_maildir_is_noticed_when_that_is_read_back(tmp_path: Path) -> None:
    audit = maildirs.Audit()
    maildirs.make(tmp_path)
    maildirs.fill(tmp_path, [NAME], SMALL)
    verdict = audit.read_back({tmp_path: ()}, SMALL)
    assert "never acknowledged" in verdict.complaint
    assert audit.read_back({tmp_path: ()}, SMALL).complaint == ""


@pytest.mark.parametrize("scenario", fetching.FETCHING, ids=lambda scenario: scenario.key)
def test_good_fetches_are_counted(tmp_path: Path, scenario: bench.Scenario) -> None:
    with serving(POP3Session, tmp_path, "") as bed:
        assert fetching.fill_and_warm_up(bed).problem == ""
        measurement = scenario.measure(bed, scenario.key)
    assert measurement.problem == ""
    assert measurement.value is not None and measurement.value > 0


SCENARIO = {scenario.key: scenario for scenario in fetching.FETCHING}


@pytest.mark.parametrize(("key", "fault", "complaint"), [
    ("sessions", "wrong sum", "instead of '+OK 20 81920'"),
    ("sessions", "wrong size", "LIST differs"),
    ("sessions", "same unique-id", "the same unique-id twice"),
    ("warm", "same unique-id", "the same unique-id twice"),
    *((key, fault, "differs from what was put there") for key in ("retr", "retrpipe", "drain")
      for fault in ("forget to stuff", "alter a message", "add a line")),
    ("retr", "wrong message", "number before"),
    ("retrpipe", "wrong message", "number before"),
    ("drain", "wrong message", "number before"),
    ("sessions", "new unique-ids", "UIDL differs"),
    ("retrbig", "alter a message", "differs from what was put there"),
    ("drain", "forget to delete", "1 messages still there"),
])
def test_bad_fetches_are_noticed(tmp_path: Path, key: str, fault: str, complaint: str) -> None:
    with serving(POP3Session, tmp_path, fault) as bed:
        fetching.fill(bed)
        measurement = SCENARIO[key].measure(bed, key)
    assert complaint in measurement.problem
    assert measurement.value is None


# Processes

def test_stopping_ends_what_the_server_left_behind(tmp_path: Path) -> None:
    orphan = tmp_path / "orphan"
    process = ServerProcess(
        ["sh", "-c", '(sh -c "echo \\$\\$ > $0.new; mv $0.new $0; exec sleep 60" &); exec sleep 60',
         str(orphan)], tmp_path / "log")
    wait_until(orphan.exists)
    pid = int(orphan.read_text())
    assert process.memory() > 0
    process.stop()
    assert pid not in keeper.parents()


def test_cpu_of_ended_grandchildren_counts(tmp_path: Path) -> None:
    done = tmp_path / "done"
    burn = "import time\nwhile time.process_time() < 0.2: pass"
    process = ServerProcess(
        ["sh", "-c", f'("$0" -c "$1" && touch {done} &); exec sleep 60', sys.executable, burn],
        tmp_path / "log")
    wait_until(done.exists)
    try:
        wait_until(lambda: process.cpu() >= 0.19)
    finally:
        process.stop()


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    process = ServerProcess(["sh", "-c", "echo no such thing >&2; exit 1"], tmp_path / "log")
    with pytest.raises(ServerFailed, match="no such thing"):
        process.wait_for(("127.0.0.1", free_port()), b"220")
    process.stop()


def test_a_command_that_is_not_there_says_so(tmp_path: Path) -> None:
    process = ServerProcess([str(tmp_path / "absent")], tmp_path / "log")
    with pytest.raises(ServerFailed, match=r"absent: .*No such file"):
        process.wait_for(("127.0.0.1", free_port()), b"220")
    process.stop()


def wait_until(condition: Callable[[], bool]) -> None:
    """Return when *condition* holds; fail when it does not for a long time."""
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until, "it never came to be so"
        time.sleep(0.02)


# The whole

def a_report() -> Report:
    peers = [Mailsvc(), Aiosmtpd()]
    report = Report(HANDFUL, this_machine(Path("/")), peers, {"aiosmtpd": "not installed"},
                    {"mailsvc": "mailsvc 1"})
    for value in (1000.0, 3000.0, 2000.0):
        report.add(receiving.RECEIVING[0], "mailsvc", Measurement(value, cpu=0.5))
    report.add(receiving.RECEIVING[1], "mailsvc", Measurement(1.0))
    report.add(receiving.RECEIVING[1], "mailsvc", Measurement(problem="1 message lost"))
    return report


def test_a_report_has_medians_and_ranges_and_hides_nothing(tmp_path: Path) -> None:
    report = a_report()
    text = report.text()
    assert re.search(r"mailsvc +2,000 +1,000–3,000 +0.5", text)
    assert re.search(r"aiosmtpd +missing", text)
    assert "aiosmtpd: not measured, not installed." in text
    assert re.search(r"mailsvc +failed", text)
    assert "kept, mailsvc: 1 message lost" in text
    assert report.problems
    report.write(tmp_path)
    table = (tmp_path / "receiving.inc").read_text()
    assert "- | 2,000 (1,000–3,000)\n       | CPU 0.5\n     - | missing" in table
    assert "- | failed" in table
    assert "not installed" in (tmp_path / "run.inc").read_text()
    assert '"median": 2000.0' in (tmp_path / "results.json").read_text()


def test_a_report_tells_what_we_cost_beside_ourselves() -> None:
    report = Report(HANDFUL, this_machine(Path("/")), [Mailsvc()], {},
                    {"mailsvc": "mailsvc 1", "mailsvc-untraced": "mailsvc 1"})
    for scenario, rates in zip(receiving.RECEIVING, [
            [(100.0, 100.0), (90.0, 100.0), (100.0, 110.0)],
            [(100.0, 100.0), (90.0, 100.0), (110.0, 100.0)]], strict=False):
        for ours, theirs in rates:
            report.add(scenario, "mailsvc", Measurement(ours, cpu=theirs))
            report.add(scenario, "mailsvc-untraced", Measurement(theirs, cpu=ours))
    assert report.beside() == [
        "mailsvc beside mailsvc-untraced, 2 scenarios, round by round: "
        "CPU +0.0 % (+0.0 to +11.1); speed +0.0 % (-10.0 to +0.0)."]
    report.add(receiving.RECEIVING[0], "mailsvc", Measurement(problem="1 message lost"))
    report.add(receiving.RECEIVING[1], "mailsvc", Measurement(problem="1 message lost"))
    assert report.beside() == []


def test_a_picture_has_a_bar_for_each_median_and_none_for_a_failure(tmp_path: Path) -> None:
    plot.write(a_report(), tmp_path)
    picture = ElementTree.parse(tmp_path / "receiving.svg").getroot()
    words = [element.text for element in picture.iter() if element.tag.endswith("}text")]
    assert "mailsvc" in words and "2,000" in words
    assert words.count("mailsvc") == 1


def test_unknown_peers_are_refused_by_name() -> None:
    result = CliRunner().invoke(main, ["--peers", "mailsvc,qmail"])
    assert result.exit_code == 1
    assert "qmail unknown; there are mailsvc, postfix, dovecot" in result.output


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--peers", "mailsvc", "--mailsvc", "false",
                                       "--work", str(tmp_path)])
    assert result.exit_code == 1
    assert "mailsvc: its dev command fails" in result.output


def test_mailsvc_passes_every_scenario(tmp_path: Path) -> None:
    done: list[str] = []
    problems: list[str] = []

    def sink(scenario: bench.Scenario, peer: str, measurement: Measurement) -> None:
        done.append(scenario.key)
        problems.extend([f"{scenario.key}: {measurement.problem}"] * bool(measurement.problem))

    bench.run([Mailsvc()], HANDFUL, tmp_path, sink)
    assert problems == []
    assert done == [scenario.key for scenario in bench.SCENARIOS]
