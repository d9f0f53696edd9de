"""mailsvc.queue.receipts: what next hosts have taken is known, whoever is killed and when."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from mailsvc.mail import Address
from mailsvc.queue import receipts
from mailsvc.queue.attempts import After
from mailsvc.queue.message import RELAYED, WAITING, QueuedMessage, QueuedRecipient
from mailsvc.queue.receipts import Receipts
from mailsvc.queue.recovery import settle
from mailsvc.queue.spool import Draft, Spool
from mailsvc.queue.wake import WakeFactory
from tests.exchanger import Exchanger
from tests.relay import queued, relaying, submit, until
from tests.relaying import Relaying
from tests.service import Service
from tests.test_queue_workers import owner_of, sent_to, together
from tests.test_workers import alive


def a_message(id: str, *names: str) -> QueuedMessage:
    recipients = [QueuedRecipient(Address(name, "far.example"), Address(name, "far.example"))
                  for name in names or ("bob", "carol", "dave")]
    return QueuedMessage(id, 1_700_000_000.0, Address("alice", "a.example"), recipients)


def a_spool(path: Path, *messages: QueuedMessage) -> Spool:
    spool = Spool(path)
    spool.make()
    for each in messages:
        draft = Draft(each)
        draft.add(b"Subject: x\r\n\r\nbody\r\n")
        spool.commit(draft)
    return spool


def take(message: QueuedMessage, *places: int) -> list[QueuedRecipient]:
    taken = [message.recipients[place] for place in places]
    for each in taken:
        each.state, each.status, each.reply = RELAYED, "2.0.0", 'ok "\u00e9"'
        each.host, each.tried, each.reported = "mx.far.example", 12.5, True
    return taken


def files(spool: Spool) -> list[Path]:
    return sorted((spool.root / "receipts").glob("*"))


#: Another process: notes what it is told, line by line, and says so.
OTHER = """
import sys
from pathlib import Path
from types import SimpleNamespace
from mailsvc.queue.spool import Spool
from tests.test_queue_receipts import take
spool = Spool(Path(sys.argv[1]))
for line in sys.stdin:
    verb, id, *places = line.split()
    if verb == "claim":
        assert spool.claims.take(id)
    elif verb == "note":
        message = spool.load(id)
        spool.receipts.note(message, take(message, *map(int, places)))
    elif verb == "settled":
        spool.receipts.settled(id)
    print("done", flush=True)
"""


class Other:
    """Another process that sends from *spool*."""

    def __init__(self, spool: Spool) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", OTHER, str(spool.root)], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> Other:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()

    def say(self, line: str) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(30)


def test_what_a_process_that_was_killed_noted_is_the_state(tmp_path: Path) -> None:
    spool = a_spool(tmp_path, a_message("A1"), a_message("B2"), a_message("C3"))
    with Other(spool) as other:
        other.say("claim A1")
        other.say("note A1 0 2")
        other.say("note B2 1")
        other.say("note A1 1")
        other.kill()
    settle(spool)
    message = spool.load("A1")
    assert message.waiting == [] and message.saved
    assert all((each.status, each.reply, each.host, each.tried, each.reported)
               == ("2.0.0", 'ok "\u00e9"', "mx.far.example", 12.5, True)
               for each in message.recipients)
    assert [each.state for each in spool.load("B2").recipients] == [WAITING, RELAYED, WAITING]
    assert not spool.load("C3").saved
    assert files(spool) == []
    assert spool.claims.take("A1")


def test_of_a_process_that_is_there_nothing_is_touched(tmp_path: Path) -> None:
    spool = a_spool(tmp_path, a_message("A1"))
    with Other(spool) as other:
        other.say("note A1 0")
        settle(spool, patience=0.1)
        assert not spool.load("A1").saved and len(files(spool)) == 1
    settle(spool)
    assert spool.load("A1").saved and files(spool) == []


def test_who_is_about_to_end_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = a_spool(tmp_path, a_message("A1"))
    with Other(spool) as other:
        other.say("note A1 0")
        naps: list[float] = []

        def nap(seconds: float) -> None:
            naps.append(seconds)
            if len(naps) == 3:
                other.kill()

        monkeypatch.setattr(receipts.time, "sleep", nap)
        settle(spool, patience=60)
        assert len(naps) >= 3 and spool.load("A1").saved


def test_a_line_of_no_use_does_no_harm(tmp_path: Path) -> None:
    """As when its message has been tried again since, has ended, or is being worked on."""
    spool = a_spool(tmp_path, a_message("A1"), a_message("B2"))
    with Other(spool) as other:
        for id in "A1", "B2":
            other.say(f"note {id} 0")
            other.say(f"settled {id}")
        message = spool.load("A1")
        message.recipients[0].state, message.recipients[0].reply = RELAYED, "as it was said"
        message.attempts, message.recipients[1].reply = 7, "try later"
        spool.save(message)
        spool.end(spool.load("B2"))
    settle(spool)
    assert spool.load("A1") == message
    assert spool.ids() == {"A1"} and files(spool) == []
    assert not (tmp_path / "state" / "B2").exists()


@pytest.mark.parametrize("spoilt", [b"\0" * 300, b'{"id": "A1", "taken": [[0, "2', b"[]\n", b"7\n",
                                    b'{"id": "A1"}\n', b'{"id": "A1", "taken": [[0]]}\n',
                                    b'{"id": "A1", "taken": 3}\n', b"\xff\xfe\n",
                                    b'{"id": "A1", "taken": [[99, "", "", "", 1, true]]}\n',
                                    b'{"id": "../lock", "taken": [[0, "", "", "", 1, true]]}\n',
                                    b'{"id": [1], "taken": []}\n'],
                         ids=lambda each: ascii(each[:34]))
def test_octets_that_mean_nothing_are_passed_over(tmp_path: Path, spoilt: bytes) -> None:
    spool = a_spool(tmp_path, a_message("A1"), a_message("B2"))
    good = json.dumps({"id": "B2", "taken": [[1, "2.0.0", "ok", "mx", 3, True]]}).encode()
    (tmp_path / "receipts" / "7-abc").write_bytes(good + b"\n" + spoilt)
    settle(spool)
    assert not spool.load("A1").saved
    assert [each.state for each in spool.load("B2").recipients] == [WAITING, RELAYED, WAITING]
    assert files(spool) == []


def test_what_is_settled_takes_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipts, "_EMPTIED", 1000)
    monkeypatch.setattr(receipts, "_RENEWED", 4000)
    spool = a_spool(tmp_path)
    stays = a_message("STAYS")
    noted = Receipts(os.fsencode(tmp_path))
    sizes = set()
    for number in range(300):
        if number == 100:
            noted.note(stays, take(stays, 0))
        message = a_message(f"M{number}")
        noted.note(message, take(message, 0, 1, 2))
        noted.settled(message.id)
        noted.settled(message.id)
        [file] = files(spool)
        sizes.add(file.stat().st_size)
        assert (b"STAYS" in file.read_bytes()) == (number >= 100)
    assert 0 in sizes and 3000 < max(sizes) < 4000
    noted.settled("STAYS")
    noted.close()
    noted.close()
    assert files(spool) == [] and list((tmp_path / "incoming").iterdir()) == []


def test_at_a_stop_it_stays_if_it_is_of_use(tmp_path: Path) -> None:
    message = a_message("A1")
    spool = a_spool(tmp_path, message)
    noted = Receipts(os.fsencode(tmp_path))
    noted.note(message, take(message, 2))
    noted.close()
    settle(spool)
    assert [each.state for each in spool.load("A1").recipients] == [WAITING, WAITING, RELAYED]


def test_a_state_that_cannot_be_written_is_remembered(tmp_path: Path) -> None:
    message = a_message("A1")
    spool = a_spool(tmp_path, message)
    spool.receipts.note(message, take(message, 1))
    again = spool.load("A1")
    spool.receipts.recall(again)
    assert [each.state for each in again.recipients] == [WAITING, RELAYED, WAITING]
    spool.receipts.settled("A1")
    again = spool.load("A1")
    spool.receipts.recall(again)
    assert len(again.waiting) == 3


def test_a_full_disk_is_told_of_and_keeps_nobody(tmp_path: Path) -> None:
    message = a_message("A1")
    noted = Receipts(os.fsencode(tmp_path / "nowhere"))
    noted.note(message, take(message, 0))
    again = a_message("A1")
    noted.recall(again)  # in memory it is known all the same
    assert len(again.waiting) == 2
    noted.settled("A1")
    noted.close()


def test_a_disk_that_is_full_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written when there is room again can be read."""
    messages = [a_message(f"M{number}") for number in range(4)]
    spool = a_spool(tmp_path, *messages)
    write, room = os.write, [True, False, False, True]

    def some(fd: int, data: bytes) -> int:
        return write(fd, data if room.pop(0) else data[:20])

    noted = Receipts(os.fsencode(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(receipts.os, "write", some)
        for message in messages:
            noted.note(message, take(message, 0))
    assert not room
    noted.close()
    settle(spool)
    assert [len(spool.load(each.id).waiting) for each in messages] == [2, 3, 3, 2]
    assert list((tmp_path / "incoming").iterdir()) == []


# ---- the whole service ---------------------------------------------------------------------------


def kill(service: Service, *pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    if service.pid in pids:
        service.process.wait(30)
        service.stop()
    until(lambda: not any(map(alive, pids)), service)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_slow_host_does_not_have_the_others_get_it_twice(tmp_path: Path, workers: int) -> None:
    """One host has taken it, the other thinks it over, and the process is killed: only the other
    is asked again."""
    with Exchanger("127.0.0.1", 0, "") as quick, \
            Exchanger("127.0.0.1", 0, "hang=end", "") as slow:
        settings = (f'relay.routes={{"quick.example"="127.0.0.1:{quick.port}", '
                    f'"slow.example"="127.0.0.1:{slow.port}"}}',)

        def begin() -> Service:
            return (together(tmp_path / "a", workers, *settings) if workers > 1
                    else relaying(tmp_path / "a", *settings))

        service = begin()
        try:
            submit(service, ["bob@slow.example", "bob@quick.example", "carol@quick.example"])
            until(lambda: quick.messages and slow.lines[-1:] == ["DATA"], service)
            until(lambda: list((tmp_path / "a" / "queue" / "receipts").iterdir()), service)
            if workers > 1:
                kill(service, owner_of(service))
            else:
                kill(service, service.pid)
                service = begin()
            until(lambda: not queued(service), service)
        finally:
            service.stop()
        assert sorted(sent_to(quick)) == ["bob@quick.example", "carol@quick.example"]
        assert sent_to(slow) == ["bob@slow.example"]
        assert list((tmp_path / "a" / "queue" / "receipts").iterdir()) == []


def test_a_kill_before_the_end_is_on_disk(tmp_path: Path) -> None:
    """The next host has taken it, and the process has read so: it does not get it again."""
    first = Relaying(tmp_path)
    first.put(b"Subject: x\r\n\r\nbody\r\n")
    first.runner.start()
    for _ in range(100):
        first.clock.advance(0)
        if sum(sink.messages for sink in first.sinks):
            break
        first.threads.turn()
        for sink in first.sinks:
            sink.answer()
    [id] = first.spool.ids()
    [sink] = first.sinks
    while sink.answer():
        pass
    # Nothing that threads were to do is done any more, and the kernel gives the locks back.
    first.spool.claims.give_back(id)
    if first.spool.receipts._fd is not None:
        os.close(first.spool.receipts._fd)
    after = Relaying(tmp_path)
    assert after.run() == 0
    assert after.spool.ids() == set() and files(after.spool) == []


def test_what_a_helper_did_is_known_before_others_do_it() -> None:
    """Its connection is lost: what it has sent is found out before anything is tried again."""
    known: Deferred[None] = Deferred()
    runner = SimpleNamespace(helped_by=lambda _: None, left_by=lambda _: None,
                             abandoned=lambda: known)
    wake = WakeFactory(runner, lambda: None, Clock())  # type: ignore[arg-type]
    hearing = wake.buildProtocol(None)
    hearing.makeConnection(StringTransport())
    hearing.dataReceived(b"ready to try\n")
    trying = [hearing.begin("A1"), hearing.begin("B2")]
    hearing.dataReceived(b"tried B2 - 0 0\n")
    hearing.connectionLost(Failure(ConnectionLost()))
    assert [each.called for each in trying] == [False, True]
    known.callback(None)
    assert [each.called for each in trying] == [True, True]
    assert trying[0].result == After(0.0) and trying[1].result == After(None)
