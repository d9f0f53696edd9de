"""``mailsvc.tracing``: which events are kept, how they are found again, what goes when there is no
room, and that nothing that becomes of them keeps anybody waiting.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.logger import LogEvent, Logger, LogLevel, globalLogPublisher
from twisted.python.failure import Failure

from mailsvc import database, figures
from mailsvc.figures import Figures, Share
from mailsvc.mail import new_id
from mailsvc.names import DirectoryError
from mailsvc.tracing import archive, events, recorder
from mailsvc.tracing.archive import BATCH, Reader, Segment, Writer
from mailsvc.tracing.events import Entry, Kind, entry_of, folded, is_kept
from mailsvc.tracing.limits import TraceSettings
from mailsvc.tracing.recorder import Recorder

ACCEPTED = "{id} accepted sender={sender}"
NOW = 1_763_683_200.0


def event(namespace: str = "mailsvc.smtp", form: str = ACCEPTED, *, failure: Failure | None = None,
          **fields: Any) -> LogEvent:
    """An event as a Logger makes it."""
    extra = {} if failure is None else {"log_failure": failure}
    return {"log_logger": None, "log_level": LogLevel.info, "log_namespace": namespace,
            "log_source": None, "log_format": form, "log_time": NOW, **extra, **fields}


def writer_in(directory: Path) -> Writer:
    return Writer(directory, TraceSettings(), now=lambda: NOW)


def entry(when: float = NOW, **fields: Any) -> Entry:
    return Entry(when, Kind("mailsvc.smtp", "info", ACCEPTED, fields), list(fields.values()))


def ids_of(entries: list[Entry]) -> list[str]:
    return [each.fields["id"] for each in entries]


# ---- what is kept ----


@pytest.mark.parametrize(("kept", "namespace", "fields"), [
    (True, "mailsvc.smtp", {"id": "A"}),
    (True, "mailsvc.smtp", {"connection": "A"}),
    (True, "mailsvc.queue", {"id": "A"}),
    (True, "mailsvc.pop3", {"connection": "A", "messages": [b"1.A.x"]}),
    (True, "mailsvc.pop3", {"connection": "A", "retrieved": 1, "deleted": 0}),
    (True, "mailsvc.pop3", {"connection": "A", "retrieved": 0, "deleted": 1}),
    (True, "mailsvc.pop3", {"connection": "A", "reason": "wrong name or password"}),
    # A program that looks and finds nothing.
    (False, "mailsvc.pop3", {"connection": "A", "retrieved": 0, "deleted": 0}),
    (False, "mailsvc.pop3", {"connection": "A", "messages": 3, "octets": 9}),
    (False, "mailsvc.smtp", {"client": "192.0.2.7"}),
    (False, "mailsvc", {"id": "A"}),
    # The id of a policy.
    (False, "mailsvc.queue.security.policies", {"id": "A"}),
    (False, "twisted.internet", {"id": "A"}),
], ids=str)
def test_what_names_a_message_or_connection_is_kept(
        kept: bool, namespace: str, fields: dict[str, Any]) -> None:
    assert is_kept(event(namespace, **fields)) is kept
    assert not is_kept({})


@pytest.mark.parametrize(("fields", "names"), [
    ({"id": "0DJ7W4K2M1Q00F3A", "connection": "0DJ7W4K2M1Q00F3B"},
     {"0DJ7W4K2M1Q00F3A", "0DJ7W4K2M1Q00F3B"}),
    ({"id": "A", "about": "B", "delivered": "C"}, {"A", "B", "C"}),
    ({"sender": "", "client": "192.0.2.7", "message_id": "<A@b>"}, {"192.0.2.7", "<A@b>"}),
    ({"sender": "Bob@EXAMPLE.net", "recipient": "c@d.", "user": "eve@example.org"},
     {"bob@example.net", "c@d", "eve@example.org"}),
    ({"recipients": ["a@b", "c@bücher.example"], "accounts": ["A@B"], "queued": []},
     {"a@b", "c@xn--bcher-kva.example"}),
    ({"user": "Eve"}, {"eve"}),
    ({"connection": "C", "user": "a@b"}, {"C", "@C", "a@b"}),
    ({"connection": "C", "id": "A"}, {"C", "A"}),
    ({"messages": [b"1763683200.0DJ7W4K2M1Q00F3A.mx.example.org", "1.0DJ7W4K2M1Q00F3B_1.mx",
                   b".qLx", "1763683200.V801I1M2.other"]},
     {"0DJ7W4K2M1Q00F3A", "0DJ7W4K2M1Q00F3B"}),
    ({"size": 3, "hello": "x"}, set()),
])
def test_the_names_that_an_event_is_found_by(fields: dict[str, Any], names: set[str]) -> None:
    found = entry_of(event(**fields))
    assert [name for name in names if not found.is_found_by(name)] == []
    assert events.numbers_of([found]) == set(map(events.number_of, names))
    assert not found.is_found_by("")
    assert not found.is_found_by("nobody@example.org")


def test_no_credential_is_kept_and_nothing_of_twisteds() -> None:
    kept = entry_of(event(id="A", password="secret", digest=b"x", isError=0, sender="a@b"))
    assert kept.fields == {"id": "A", "sender": "a@b"}


def test_of_a_failure_the_reason_is_kept() -> None:
    kept = entry_of(event(form="{id} could not", id="A", failure=Failure(ValueError("full moon"))))
    assert kept.fields == {"id": "A", "reason": "full moon"}
    assert kept.text == "A could not"


def test_an_event_of_another_version_is_told_as_far_as_it_goes() -> None:
    told = Entry(NOW, Kind("mailsvc.smtp", "info", "{id} moved to {place}", ["id"]), ["A"]).text
    assert "moved to" in told
    assert "'A'" in told


def test_ids_of_one_time_have_few_numbers() -> None:
    """Those of a second a thousand, and of another time none of these."""
    digits = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
    ids = [f"1K1AYZV{some}{more}{micro}M0F3A" for some in digits for more in digits
           for micro in ("00", "8G", "ZZ")]
    numbers = {events.number_of(id) for id in ids}
    connections = {events.number_of(events.alone(id)) for id in ids}
    assert len(numbers) == len(connections) == 1024
    assert not numbers & connections
    assert events.number_of("1K1AYZW0000M0F3A") not in numbers
    assert max(numbers) < 1 << 37


# ---- written and found ----


def test_an_entry_is_found_by_each_of_its_names(tmp_path: Path) -> None:
    fields = {"id": new_id(), "connection": new_id(), "sender": "Bob@example.net",
              "recipients": ["alice@example.org"], "client": "192.0.2.7", "message_id": "<1@x>"}
    writer = writer_in(tmp_path)
    writer.write([entry(id=new_id(), sender="carol@example.net"), entry(**fields)])
    writer.close()
    with Reader(tmp_path) as reader:
        for name in (fields["id"], fields["connection"], "bob@example.net", "alice@example.org",
                     "192.0.2.7", "<1@x>"):
            (found,) = reader.find(name)
            assert found.fields == fields
            assert found.time == NOW
            assert found.kind.namespace == "mailsvc.smtp"
            assert found.text == f"{fields['id']} accepted sender=Bob@example.net"
        assert reader.find("nobody@example.org") == []
        assert reader.began() == NOW
        assert reader.problems == []


def test_what_has_the_same_number_by_chance_is_told_apart(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "numbers_of", lambda entries: {7})
    monkeypatch.setattr(archive, "number_of", lambda name: 7)
    writer = writer_in(tmp_path)
    writer.write([entry(id="A", sender="a@b"), entry(id="B", sender="b@b")])
    with Reader(tmp_path) as reader:
        assert ids_of(reader.find("b@b")) == ["B"]
    writer.close()


def test_the_last_are_found_and_none_that_are_too_old(tmp_path: Path) -> None:
    writer = writer_in(tmp_path)
    writer.write([entry(NOW + number, id=f"{number}", sender="a@b") for number in range(10)])
    writer.close()
    with Reader(tmp_path) as reader:
        assert ids_of(reader.find("a@b", limit=3)) == ["7", "8", "9"]
        assert ids_of(list(reader.newest("a@b", NOW + 8))) == ["9", "8"]


_texts = st.text(st.characters(codec=None), max_size=20)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.fixed_dictionaries({
    "id": st.from_regex(r"[0-9A-HJKMNP-TV-Z]{16}", fullmatch=True), "sender": _texts,
    "message_id": _texts, "reply": _texts, "recipients": st.lists(_texts, max_size=3),
    "messages": st.lists(st.binary(max_size=20), max_size=3), "size": st.integers()}), max_size=5))
def test_whatever_a_peer_says_comes_back(tmp_path_factory: pytest.TempPathFactory,
                                         said: list[dict[str, Any]]) -> None:
    directory = tmp_path_factory.mktemp("trace")
    writer = writer_in(directory)
    writer.write([entry_of(event(**each)) for each in said])
    writer.close()
    with Reader(directory) as reader:
        for each in said:
            wanted = {**each, "messages": [unique_id.decode("utf-8", "backslashreplace")
                                           for unique_id in each["messages"]]}
            for name in {each["id"], each["message_id"], folded(each["sender"]),
                         *map(folded, each["recipients"])} - {""}:
                assert wanted in [found.fields for found in reader.find(name)], name
        assert reader.problems == []


def test_what_is_written_survives_its_process(tmp_path: Path) -> None:
    id = new_id()
    child = os.fork()
    if child == 0:
        writer_in(tmp_path).write([entry(id=id)])
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    with Reader(tmp_path) as reader:
        assert ids_of(reader.find(id)) == [id]


def test_processes_write_side_by_side(tmp_path: Path) -> None:
    # So little room that the files change all the time, and so much that none goes.
    room = TraceSettings(octets=1 << 20)
    children = []
    for name in "abcd":
        child = os.fork()
        if child == 0:
            writer = Writer(tmp_path, room)
            writer.sweep = lambda: None  # type: ignore[method-assign]
            for number in range(10):
                writer.write([entry(id=f"{name}{number}.{one}", sender=f"{name}@b", reply="x" * 50)
                              for one in range(50)])
            writer.close()
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert len(list(tmp_path.glob("*.sqlite"))) > 2
    with Reader(tmp_path) as reader:
        for name in "abcd":
            assert sorted(ids_of(reader.find(f"{name}@b"))) == sorted(
                f"{name}{number}.{one}" for number in range(10) for one in range(50))


def test_files_are_for_nobody_else(tmp_path: Path) -> None:
    writer = writer_in(tmp_path / "trace")
    writer.write([entry(id="A")])
    assert (tmp_path / "trace").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "trace").iterdir()} == {0o600}
    writer.close()


# ---- room and time ----


def test_the_oldest_goes_when_there_is_no_more_room(tmp_path: Path) -> None:
    room = TraceSettings(octets=1 << 20)
    writer = Writer(tmp_path, room)
    for number in range(40):
        writer.write([entry(id=f"{number}.{one}", sender="a@b", reply="x" * 100)
                      for one in range(BATCH)])
    writer.sweep()
    writer.close()
    # The newest file may be of any size until it is seen to be full.
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2 * room.octets
    with Reader(tmp_path) as reader:
        assert reader.find("0.0") == []
        assert ids_of(reader.find("39.511")) == ["39.511"]
        assert len(reader.find("a@b", limit=100_000)) > BATCH


def test_what_is_too_old_goes_with_its_file(tmp_path: Path) -> None:
    day = 86_400.0
    now = NOW
    writer = Writer(tmp_path, TraceSettings(days=16), now=lambda: now)
    for number in range(40):
        now = NOW + number * day
        writer.write([entry(now, id=f"{number}")])
        for path in sorted(tmp_path.glob("*.sqlite"))[-2:]:
            os.utime(path, (now, now))
    writer.close()
    with Reader(tmp_path) as reader:
        kept = [number for number in range(40) if reader.find(f"{number}")]
    assert kept[-1] == 39
    assert 20 <= kept[0] <= 23
    assert kept == list(range(kept[0], 40))
    assert len(list(tmp_path.glob("*.sqlite"))) <= 18


# ---- what is wrong with a file ----


@pytest.fixture
def told() -> Iterator[list[str]]:
    """What is logged about the trace."""
    lines: list[str] = []

    def note(event: LogEvent) -> None:
        if event["log_namespace"] == "mailsvc.tracing":
            lines.append(event["log_format"].format_map(event))

    globalLogPublisher.addObserver(note)
    yield lines
    globalLogPublisher.removeObserver(note)


def _garbage(path: Path) -> None:
    path.write_bytes(b"no database at all" * 1000)


def _empty(path: Path) -> None:
    path.touch()


def _another_version(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")


def _damaged(path: Path) -> None:
    writer = writer_in(path.parent)
    writer.write([entry(id=new_id()) for _ in range(BATCH)])
    writer.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))


@pytest.mark.parametrize("spoil", [_garbage, _empty, _another_version, _damaged])
def test_a_file_that_cannot_be_used_is_left_and_the_next_one_begun(
        tmp_path: Path, told: list[str], spoil: Callable[[Path], None]) -> None:
    first = tmp_path / "00000001.sqlite"
    spoil(first)
    content = first.read_bytes()
    writer = writer_in(tmp_path)
    for id in "A", "B":
        writer.write([entry(id=id)])
    writer.close()
    assert len(told) == 1
    assert str(first) in told[0]
    assert "may be deleted" in told[0]
    assert first.read_bytes() == content
    with Reader(tmp_path) as reader:
        assert [ids_of(reader.find(id)) for id in "AB"] == [["A"], ["B"]]
        assert reader.began() is not None
        assert [str(first) in problem for problem in reader.problems] == [True]


def test_a_file_that_is_damaged_while_it_is_open_is_left(tmp_path: Path, told: list[str]) -> None:
    writer = writer_in(tmp_path)
    writer.write([entry(id=new_id()) for _ in range(BATCH)])
    segment = writer._segment
    assert segment is not None

    class Failing(Segment):
        def change(self, statement: str, *parameters: Any) -> int | None:
            raise sqlite3.DatabaseError("database disk image is malformed")

    segment.__class__ = Failing
    writer.write([entry(id="A")])
    assert "malformed" in told[0]
    writer.close()
    assert [path.name for path in sorted(tmp_path.glob("*.sqlite"))] == [
        "00000001.sqlite", "00000002.sqlite"]
    with Reader(tmp_path) as reader:
        assert ids_of(reader.find("A")) == ["A"]


def test_a_file_that_is_locked_is_waited_for_and_no_other_begun(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "CHANGE_TIMEOUT", 0.05)
    writer = writer_in(tmp_path)
    writer.write([entry(id="A")])
    with closing(sqlite3.connect(tmp_path / "00000001.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DirectoryError, match=r"locked.*see that the disk has room"):
            writer.write([entry(id="B")])
        other.execute("ROLLBACK")
    writer.write([entry(id="B")])
    writer.close()
    assert len(list(tmp_path.glob("*.sqlite"))) == 1
    with Reader(tmp_path) as reader:
        assert [ids_of(reader.find(id)) for id in "AB"] == [["A"], ["B"]]


def test_a_file_that_is_removed_while_it_is_read_is_no_problem(tmp_path: Path) -> None:
    writer = writer_in(tmp_path)
    writer.write([entry(id="A")])
    writer.close()
    with Reader(tmp_path) as reader:
        assert ids_of(reader.find("A")) == ["A"]
        for path in tmp_path.iterdir():
            path.unlink()
        assert reader.find("A") == []
        assert reader.problems == []


def test_where_nothing_was_written_nothing_is_found(tmp_path: Path) -> None:
    with Reader(tmp_path / "none") as reader:
        assert reader.find("A") == []
        assert reader.began() is None


# ---- the recorder ----


class Reactor:
    def callFromThread(self, function: Callable[..., object], *arguments: object) -> None:
        function(*arguments)


class FakeWriter(Writer):
    """A writer into a list; waits for *gate*, and raises what is in *failures* first."""

    def __init__(self) -> None:
        self.written: list[Entry] = []
        self.failures: list[Exception] = []
        self.gate = Event()
        self.gate.set()
        self.asked = Event()
        self.closed = False

    def write(self, entries: Any) -> None:
        self.asked.set()
        assert self.gate.wait(10)
        if self.failures:
            raise self.failures.pop(0)
        self.written += entries

    def close(self) -> None:
        self.closed = True


class Bench:
    """A recorder with its writer and its count."""

    def __init__(self) -> None:
        self.writer = FakeWriter()
        self.figures = Figures(1)
        self.recorder = Recorder(lambda: self.writer, Reactor(), Share(self.figures, 0))
        self.log = Logger("mailsvc.smtp")
        self.recorder.start()

    def tell(self, *ids: str) -> None:
        for id in ids:
            self.log.info("{id} accepted", id=id)

    def stop(self) -> None:
        """Stop, and wait until it has."""
        stopped = Event()
        self.recorder.stop().addCallback(lambda _: stopped.set())
        assert stopped.wait(10)
        assert self.writer.closed

    @property
    def dropped(self) -> int:
        return int(self.figures.read().total(figures.TRACE_DROPPED))  # type: ignore[arg-type]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(recorder, "_GATHER", 0.01)
    monkeypatch.setattr(recorder, "_PAUSE", 0.01)
    made = Bench()
    yield made
    made.writer.gate.set()
    made.stop()


def test_what_is_logged_is_written_in_order_before_the_end(bench: Bench) -> None:
    ids = [f"{number}" for number in range(3 * BATCH)]
    bench.tell(*ids)
    bench.log.info("nothing that names anything")
    bench.stop()
    assert ids_of(bench.writer.written) == ids
    bench.tell("late")
    assert ids_of(bench.writer.written) == ids
    bench.stop()  # may be called again
    assert bench.dropped == 0


def test_events_beyond_what_may_wait_are_dropped_and_counted(
        bench: Bench, monkeypatch: pytest.MonkeyPatch, told: list[str]) -> None:
    monkeypatch.setattr(recorder, "CAPACITY", 10)
    bench.writer.gate.clear()
    bench.tell("0")
    assert bench.writer.asked.wait(10)
    began = time.monotonic()
    bench.tell(*map(str, range(1, 15)))
    assert time.monotonic() - began < 5, "whoever logs never waits"
    bench.writer.gate.set()
    bench.stop()
    assert ids_of(bench.writer.written) == [f"{number}" for number in range(10)]
    assert bench.dropped == 5
    assert told == ["5 events were not traced, since they could not be written as fast"]


def test_what_cannot_be_written_now_is_written_later_and_told_of_once(
        bench: Bench, told: list[str]) -> None:
    bench.writer.failures = [DirectoryError("the disk is full", "make room") for _ in range(3)]
    bench.tell("A")
    deadline = time.monotonic() + 10
    while not bench.writer.written and time.monotonic() < deadline:
        bench.tell("B")
        time.sleep(0.01)
    bench.stop()
    assert ids_of(bench.writer.written)[:2] == ["A", "B"]
    assert [line.partition(":")[0] for line in told] == [
        "messages cannot be traced now, and are taken all the same", "messages are traced again"]
    assert "the disk is full; make room; or set trace.enabled = false" in told[0]
    assert bench.dropped == 0


def test_one_strange_event_does_not_keep_the_others(bench: Bench) -> None:
    bench.writer.failures = [ValueError("no JSON")]
    bench.tell("A")
    assert bench.writer.asked.wait(10)
    deadline = time.monotonic() + 10
    while not bench.writer.written and time.monotonic() < deadline:
        bench.tell("B")
        time.sleep(0.01)
    assert set(ids_of(bench.writer.written)) == {"B"}
    assert bench.dropped >= 1
