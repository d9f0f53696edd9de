"""Log lines: readable, parseable, and not to be forged."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import (
    FilteringLogObserver,
    ILogObserver,
    LegacyLogObserverWrapper,
    Logger,
    LogLevel,
    LogPublisher,
)
from twisted.python import log as legacy
from zope.interface.verify import verifyObject

from mailsvc.log import (
    ByTurns,
    LogSettings,
    SharedLogFile,
    json_line,
    json_to_stdout,
    observer,
    pass_on,
    text_line,
    text_to_stdout,
)
from mailsvc.turn import at_end_of_turn

HOSTILE = ("x\n2026-01-01T00:00:00.000+00:00 info  mailsvc: forged", "\r\n", "\x1b[2J\x1b]0;t\x07",
           "\x00", "\x7f\x85\x9b1m", "\u2028\u2029", "\u202egnp.exe", "\ud800", "{password}", "%s",
           '"}\n{"level": "info"}', "\\")


def event(text: str = "said {hello}", **fields: Any) -> dict[str, Any]:
    return {"log_time": 1_767_225_600.25, "log_level": LogLevel.info, "log_namespace": "mailsvc.x",
            "log_format": text, **fields}


def published(settings: LogSettings, *log: Any, namespace: str = "mailsvc.x") -> list[str]:
    stream = io.StringIO()
    logger = Logger(namespace=namespace, observer=LogPublisher(observer(settings, stream)))
    for level, text, fields in log:
        logger.emit(level, text, **fields)
    return stream.getvalue().splitlines()


# ---- text ---------------------------------------------------------------------------------------


def test_text_is_time_level_namespace_message() -> None:
    line = text_line(event(hello="mx.example"))
    assert line is not None
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.250[+-]\d\d:\d\d info  mailsvc\.x: "
                        r"said mx\.example\n", line)


def test_text_time_is_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "XXX-05:30")
    time.tzset()
    try:
        assert str(text_line(event(hello=""))).startswith("2026-01-01T05:30:00.250+05:30 ")
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("hello", HOSTILE)
def test_text_cannot_be_forged(hello: str) -> None:
    line = text_line(event(hello=hello))
    assert line is not None
    assert line.endswith("\n")
    assert line.count("\n") == 1
    assert line[:-1].isprintable()
    line.encode()


def test_text_escapes_are_readable() -> None:
    assert str(text_line(event(hello="a\tb\r\n\x1b\x85\u2028ä"))).endswith(
        "said a\\tb\\r\\n\\x1b\\x85\\u2028ä\n")


def failing_event(text: str) -> dict[str, Any]:
    events: list[Any] = []
    try:
        raise ValueError(text)
    except ValueError:
        Logger(namespace="mailsvc.x", observer=events.append).failure("it broke")
    return dict(events[0])


@pytest.mark.parametrize("text", HOSTILE)
def test_text_traceback_is_indented(text: str) -> None:
    head, *rest = str(text_line(failing_event(text))).removesuffix("\n").split("\n")
    assert head.endswith(" critical mailsvc.x: it broke")
    assert "Traceback" in rest[0]
    assert any("ValueError" in line for line in rest)
    assert all(line.startswith("    ") and line.isprintable() for line in rest)


def test_text_of_nothing_is_nothing() -> None:
    assert text_line({"log_time": 0.0, "log_level": LogLevel.info, "log_namespace": "x"}) is None


# ---- JSON ---------------------------------------------------------------------------------------


def test_json_fields() -> None:
    class Unprintable:
        def __str__(self) -> str:
            raise RuntimeError

    line = json_line(event(hello="mx", octets=3, ratio=0.5, infinite=float("inf"), done=True,
                           none=None, raw=b"a\xff", many=(1, {"k": {2}}), odd=Unprintable(),
                           level="mine", isError=0, system="-", log_source=object()))
    assert json.loads(line) == {
        "time": "2026-01-01T00:00:00.250000Z", "level": "info", "namespace": "mailsvc.x",
        "message": "said mx", "hello": "mx", "octets": 3, "ratio": 0.5, "infinite": "inf",
        "done": True, "none": None, "raw": "a\\xff", "many": [1, {"k": [2]}],
        "odd": "<unprintable Unprintable>"}


@pytest.mark.parametrize("hello", HOSTILE)
def test_json_cannot_be_forged(hello: str) -> None:
    line = json_line(event(hello=hello))
    assert line.endswith("\n")
    assert line[:-1].isascii()
    assert line[:-1].isprintable()
    assert json.loads(line)["hello"] == hello


@given(st.dictionaries(st.text(), st.text() | st.binary() | st.floats() | st.integers()))
def test_any_fields_make_one_line_of_each(fields: dict[str, Any]) -> None:
    odd = {key: value for key, value in fields.items() if not key.startswith("log_")}
    entry = json.loads(json_line(event("{!r}", **odd)), parse_constant=pytest.fail)
    assert entry["level"] == "info"
    line = text_line(event("".join(f"{value!s}" for value in odd.values()), **odd))
    assert line is None or line.splitlines(keepends=True) == [line]


def test_json_traceback() -> None:
    entry = json.loads(json_line(failing_event("why\nnot")))
    assert entry["level"] == "critical"
    assert entry["message"] == "it broke"
    assert "ValueError: why\nnot" in entry["traceback"]


def test_json_without_what_legacy_observers_add() -> None:
    log_event = event(hello="mx")
    LegacyLogObserverWrapper(lambda _: None)(log_event)
    assert set(json.loads(json_line(log_event))) == {
        "time", "level", "namespace", "message", "hello"}


# ---- credentials --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["password", "secret", "credentials", "digest"])
@pytest.mark.parametrize("line", [text_line, json_line])
def test_credentials_are_masked(name: str, line: Any) -> None:
    shown = line(event(f"{{{name}}}", **{name: "correct horse", "user": "u"}))
    assert "correct horse" not in shown
    assert "(hidden)" in shown


# ---- observers ----------------------------------------------------------------------------------


def test_format_is_chosen() -> None:
    log = (LogLevel.info, "hello", {})
    assert published(LogSettings(format="text"), log)[0].endswith("mailsvc.x: hello")
    assert json.loads(published(LogSettings(format="json"), log)[0])["message"] == "hello"


def test_levels_filter() -> None:
    lines = [(level, level.name, {}) for level in LogLevel.iterconstants()]

    def shown(settings: LogSettings, namespace: str) -> list[str]:
        written = published(settings, *lines, namespace=namespace)
        return [line.rpartition(" ")[2] for line in written]

    assert shown(LogSettings(), "mailsvc.x") == ["info", "warn", "error", "critical"]
    assert shown(LogSettings(), "twisted.internet.tcp") == ["warn", "error", "critical"]
    assert shown(LogSettings(level="error"), "mailsvc") == ["error", "critical"]
    settings = LogSettings(levels={"mailsvc.smtp": "debug"})
    assert len(shown(settings, "mailsvc.smtp.server")) == 5
    assert len(shown(settings, "mailsvc.pop3.server")) == 4


def test_levels_are_checked() -> None:
    check = LogSettings.__dataclass_fields__["levels"].metadata["check"]
    assert check({"a": "debug"}) is None
    assert "a = one of debug, info" in check({"b": "warn", "a": "loud"})


@pytest.mark.parametrize("factory", [text_to_stdout, json_to_stdout])
def test_factories_write_to_standard_output(
    factory: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    made = factory()
    assert isinstance(made, FilteringLogObserver)
    verifyObject(ILogObserver, made)
    made(event(hello="there"))
    assert "said there" in capsys.readouterr().out


def test_legacy_messages_pass() -> None:
    stream = io.StringIO()
    publisher = legacy.LogPublisher(publishPublisher=LogPublisher(
        observer(LogSettings(format="json", levels={}), stream)))
    publisher.msg("an old\nmessage")
    assert json.loads(stream.getvalue())["message"] == "an old\nmessage"


def test_twistd_takes_the_json_factory(tmp_path: Any) -> None:
    application = tmp_path / "app.py"
    application.write_text(
        "from twisted.application.service import Application\n"
        "from twisted.internet import reactor\n"
        "from twisted.logger import Logger\n"
        "application = Application('x')\n"
        "reactor.callWhenRunning(Logger(namespace='mailsvc.x').info, 'said {hello}', "
        "hello='a\\nb')\n"
        "reactor.callWhenRunning(reactor.stop)\n")
    done = subprocess.run(
        [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "--nodaemon",
         "--pidfile=", "--logger=mailsvc.log.json_to_stdout", f"--python={application}"],
        capture_output=True, text=True, timeout=60, check=True)
    entries = [json.loads(line) for line in done.stdout.splitlines()]
    assert [entry["hello"] for entry in entries if entry["namespace"] == "mailsvc.x"] == ["a\nb"]


def test_a_log_file_that_logrotate_has_moved(tmp_path: Path) -> None:
    file = SharedLogFile.fromFullPath(str(tmp_path / "log"))
    file.write("one\n")
    file.rotate()
    file.write("two\n")
    (tmp_path / "log").rename(tmp_path / "log-20261128")
    file.rotate()
    file.write("three\n")
    # As well when logrotate has made another, which is not to be put aside.
    (tmp_path / "log").rename(tmp_path / "log-20261129")
    (tmp_path / "log").touch()
    file.rotate()
    file.write("four\n")
    file.close()
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {
        "log.1": "one\n", "log-20261128": "two\n", "log-20261129": "three\n", "log": "four\n"}


# ---- by turns -----------------------------------------------------------------------------------


class Writes:
    """A stream that keeps what it was given at a time, or takes nothing."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.full = False

    def write(self, text: str) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        self.taken.append(text)

    def flush(self) -> None:
        pass


class Turning(Clock):
    """A reactor that runs, and what it is to do when it stops."""

    running = True

    def __init__(self) -> None:
        super().__init__()
        self.triggers: list[Any] = []

    def addSystemEventTrigger(self, phase: str, event: str, act: Any) -> None:
        assert (phase, event) == ("during", "shutdown")
        self.triggers.append(act)

    def stop(self) -> None:
        self.running = False
        for act in self.triggers:
            act()


@pytest.fixture
def turning(monkeypatch: pytest.MonkeyPatch) -> Turning:
    reactor = Turning()
    monkeypatch.setitem(sys.modules, "twisted.internet.reactor", reactor)
    monkeypatch.setattr("mailsvc.log.isInIOThread", lambda: True)
    monkeypatch.setattr("mailsvc.turn._due", [])
    return reactor


def by_turns() -> tuple[ByTurns, Writes]:
    stream: Any = Writes()
    return ByTurns(stream), stream


def test_the_lines_of_a_turn_are_written_at_once_before_what_else_ends_it(turning: Turning) -> None:
    lines, stream = by_turns()
    seen: list[list[str]] = []
    at_end_of_turn(turning, lambda: seen.append(list(stream.taken)))
    lines.write("one\n")
    lines.write("two\n")
    assert not stream.taken
    turning.advance(0)
    assert stream.taken == ["one\ntwo\n"] == seen[0]
    lines.write("three\n")
    turning.advance(0)
    assert stream.taken == ["one\ntwo\n", "three\n"]


def test_a_turn_without_an_end_writes_too_and_what_is_said_after_it(turning: Turning) -> None:
    lines, stream = by_turns()
    lines.write("last\n")
    turning.stop()
    lines.write("afterwards\n")
    assert stream.taken == ["last\n", "afterwards\n"]
    turning.advance(0)
    assert len(stream.taken) == 2


def test_another_thread_writes_at_once_behind_what_was_before(
    turning: Turning, monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines, stream = by_turns()
    lines.write("before\n")
    monkeypatch.setattr("mailsvc.log.isInIOThread", lambda: False)
    lines.write("from a thread\n")
    assert "".join(stream.taken) == "before\nfrom a thread\n"
    turning.advance(0)
    assert len(stream.taken) == 1


def test_no_reactor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "twisted.internet.reactor", raising=False)
    lines, stream = by_turns()
    lines.write("at once\n")
    assert stream.taken == ["at once\n"]


def test_many_lines_in_pieces_that_a_pipe_takes_whole(turning: Turning) -> None:
    lines, stream = by_turns()
    given = ["ü" * 700 + f"{n}\n" for n in range(9)] + ["y" * 5000 + "\n", "end\n"]
    for line in given:
        lines.write(line)
    turning.advance(0)
    assert "".join(stream.taken) == "".join(given)
    assert all(piece.endswith("\n") for piece in stream.taken)
    # Two of 1,402 octets each go into 4,096, the one of 5,001 into none.
    assert [len(piece.encode()) for piece in stream.taken] == [*[2804] * 4, 1402, 5001, 4]


def test_a_full_disk_loses_lines_and_nothing_else(turning: Turning) -> None:
    lines, stream = by_turns()
    stream.full = True
    lines.write("lost\n")
    turning.advance(0)
    assert not turning.getDelayedCalls()  # nothing that would fail in each turn to come
    stream.full = False
    lines.write("found\n")
    turning.advance(0)
    assert stream.taken == ["found\n"]


def test_a_process_that_was_forked_writes_none_of_its_parents_lines(turning: Turning) -> None:
    lines, stream = by_turns()
    lines.write("the parent's\n")
    pid = os.fork()
    if not pid:
        # Its own turn: mailsvc.turn has forgotten the parent's.
        lines.write("mine\n")
        turning.advance(0)
        os._exit(0 if stream.taken == ["mine\n"] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    turning.advance(0)
    assert stream.taken == ["the parent's\n"]


def test_before_somebody_is_told_in_another_way(turning: Turning) -> None:
    lines, stream = by_turns()
    lines.write("listens\n")
    pass_on()
    assert stream.taken == ["listens\n"]
    turning.advance(0)
    assert len(stream.taken) == 1
