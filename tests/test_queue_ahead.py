"""The envelope of a message leaves with the end of the one before, and nothing comes of it but
speed: whatever the host does then, each message arrives once, or is told of once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mailsvc.mail import Address, new_id
from mailsvc.queue.message import QueuedMessage, QueuedRecipient
from mailsvc.queue.spool import Draft
from tests.relaying import ACCEPTED, HELLO, TAKEN, Relaying, Sink

#: Messages, all to one host over one connection.
MESSAGES = 12

End = Callable[[bytes], bytes]


def text(number: int) -> bytes:
    return b"Subject: x\r\nX-Number: %d\r\n\r\n.body" % number


def number_of(message: bytes) -> int:
    return int(message.split(b"\r\n")[1].split(b" ")[1])


def relay(directory: Path, end: End = lambda message: TAKEN, *, connections: int = 1,
          wait: float = 0.0, names: tuple[str, ...] = ("bob",), hello: bytes = HELLO,
          rcpt: End = lambda line: ACCEPTED, sink: type[Sink] = Sink, **settings: Any) -> Relaying:
    """Send the messages until nothing is left to do; each answer takes *wait* seconds."""
    relaying = Relaying(directory, partial(sink, end, hello, rcpt), retry_jitter=0,
                        connections_per_destination=connections, **settings)
    for number in range(MESSAGES):
        relaying.put(text(number) + b"\r\n", *names)
    relaying.runner.start()
    idle = 0
    for _ in range(4000):
        relaying.clock.advance(wait)
        done = [relaying.threads.turn(), *[sink.answer() for sink in relaying.sinks]]
        idle = 0 if any(done) else idle + 1
        if idle > 1:
            if not relaying.spool.ids():
                break
            relaying.clock.advance(60)
    assert relaying.spool.ids() == set()
    return relaying


def arrived(relaying: Relaying) -> Counter[int]:
    """How often each message was taken."""
    return Counter(number_of(message) for sink in relaying.sinks for message in sink.taken)


def ahead(relaying: Relaying) -> int:
    """How many messages were begun in the same breath with the end of another."""
    return sum(b"\r\n.\r\nMAIL FROM:" in said for sink in relaying.sinks for said in sink.said)


ALL = Counter(range(MESSAGES))


def test_a_message_takes_one_round_trip(tmp_path: Path) -> None:
    relaying = relay(tmp_path)
    assert arrived(relaying) == ALL
    [sink] = relaying.sinks
    # The first tells how quick the host is, and behind the last there is nothing.
    assert ahead(relaying) == MESSAGES - 2
    for said in sink.said:
        if b"\r\n.\r\n" in said:
            assert said.split(b"\r\n.\r\n")[1].split(b" ")[0] in (b"", b"MAIL")
    assert sink.taken == [text(number).replace(b"\r\n.", b"\r\n..") for number in range(MESSAGES)]
    assert len(sink.said) <= MESSAGES + 6


@pytest.mark.parametrize("wait, sent_ahead", [(0.1, True), (0.6, False)])
def test_behind_a_slow_host_nothing_waits(tmp_path: Path, wait: float, sent_ahead: bool) -> None:
    relaying = relay(tmp_path, wait=wait)
    assert arrived(relaying) == ALL
    assert bool(ahead(relaying)) is sent_ahead


@pytest.mark.parametrize("hello", [HELLO.replace(b"PIPELINING", b"X-NOTHING"),
                                   HELLO.replace(b"PIPELINING", b"PIPELINING\r\n250-CHUNKING")],
                         ids=["commands one by one", "chunks"])
def test_not_where_it_cannot_be_said(tmp_path: Path, hello: bytes) -> None:
    relaying = Relaying(tmp_path, partial(OneByOne, hello=hello), connections_per_destination=1)
    for number in range(MESSAGES):
        relaying.put(text(number))
    assert relaying.run() == MESSAGES
    assert ahead(relaying) == 0


class OneByOne(Sink):
    """Takes single commands, and chunks."""

    def answer(self) -> bool:
        said = b"".join(self.written)
        if b"BDAT " in said:
            assert said.count(b"MAIL FROM:") == said.count(b"BDAT ") == 1
            self.written.clear()
            self.said.append(said)
            self.messages += 1
            self.line.dataReceived(b"250 2.1.0 Ok\r\n" + ACCEPTED + TAKEN)
            return True
        return super().answer()


@pytest.mark.parametrize("most", [1, 2, 5])
def test_a_connection_has_no_more_messages_than_it_may(tmp_path: Path, most: int) -> None:
    relaying = relay(tmp_path, messages_per_connection=most)
    assert arrived(relaying) == ALL
    assert max(len(sink.taken) for sink in relaying.sinks) == most


@pytest.mark.parametrize("most", [1, 2, 5])
def test_a_host_says_beforehand_how_many_it_takes(tmp_path: Path, most: int) -> None:
    """RFC 9422, MAILMAX."""
    relaying = relay(tmp_path, hello=HELLO.replace(
        b"250 SIZE", b"250-LIMITS RCPTMAX=100 MAILMAX=%d\r\n250 SIZE" % most))
    assert arrived(relaying) == ALL
    assert max(len(sink.taken) for sink in relaying.sinks) == most


@pytest.mark.parametrize("answer", [
    b"451 4.3.0 later\r\n", b"452 4.2.2 full\r\n", b"421 4.3.2 closing\r\n",
    b"421 4.7.0 too many\r\n"])
@pytest.mark.parametrize("at", [0, 1, 2, 5, MESSAGES - 2, MESSAGES - 1])
def test_one_that_is_put_off_comes_later(tmp_path: Path, answer: bytes, at: int) -> None:
    """Also when the host hangs up with the next envelope unanswered."""
    refused: list[int] = []

    def end(message: bytes) -> bytes:
        if number_of(message) == at and not refused:
            refused.append(at)
            return answer
        return TAKEN

    relaying = relay(tmp_path, end)
    assert refused and arrived(relaying) == ALL


@pytest.mark.parametrize("at", [1, 4, MESSAGES - 1])
def test_one_that_is_refused_is_told_of(tmp_path: Path, at: int) -> None:
    relaying = relay(tmp_path, lambda message: (
        b"554 5.7.1 spam\r\n" if number_of(message) == at else TAKEN))
    assert arrived(relaying) == ALL - Counter([at])
    reports: Any = relaying.told.reports
    assert [kind for _, kind, _ in reports] == ["failed"]


def test_one_that_cannot_be_said_is_told_of_and_keeps_up_nobody(tmp_path: Path) -> None:
    relaying = Relaying(tmp_path, partial(Sink, hello=HELLO.replace(
        b"PIPELINING", b"PIPELINING\r\n250-DSN")), connections_per_destination=1)
    now, bob = relaying.clock.rightNow, Address("bob", "far.example")
    for number in range(MESSAGES):
        draft = Draft(QueuedMessage(
            new_id(), now, Address("alice", "a.example"),
            [QueuedRecipient(bob, bob, orcpt="no type" if number == 4 else "")], due=now))
        draft.add(text(number))
        relaying.spool.commit(draft)
    relaying.runner.start()
    relaying.clock.advance(0)
    while any([relaying.threads.turn(), *[sink.answer() for sink in relaying.sinks]]):
        relaying.clock.advance(0)
    # At once, without a further attempt.
    assert arrived(relaying) == ALL - Counter([4])
    reports: Any = relaying.told.reports
    assert [kind for _, kind, _ in reports] == ["failed"]


@pytest.mark.parametrize("every", [1, 2, 3])
def test_a_host_that_hangs_up_again_and_again(tmp_path: Path, every: int) -> None:
    """As one that allows so many messages over a connection, and says so with 421."""
    counts: Counter[int] = Counter()

    def make() -> Sink:
        number = len(counts)
        counts[number] = 0

        def end(message: bytes) -> bytes:
            counts[number] += 1
            return TAKEN if counts[number] <= every else b"421 4.7.0 enough\r\n"

        return Sink(end)

    relaying = Relaying(tmp_path, make, connections_per_destination=1)
    for number in range(MESSAGES):
        relaying.put(text(number))
    assert relaying.run() == MESSAGES
    assert arrived(relaying) == ALL
    assert len(relaying.sinks) == -(-MESSAGES // every)


class Pondering(Sink):
    """Answers a message after nine turns, and all else at once."""

    turns = 0

    def answer(self) -> bool:
        self.turns = self.turns + 1 if any(b"\r\n.\r\n" in each for each in self.written) else 0
        if 0 < self.turns < 9:
            return True
        self.turns = 0
        return super().answer()


def pondered(directory: Path, connections: int, rate: int, messages: int, stop: int = 0
             ) -> Relaying:
    """Relay to such a host, or until a stop."""
    directory.mkdir(exist_ok=True)
    relaying = Relaying(directory, Pondering, connections_per_destination=connections,
                        messages_per_minute=rate, retry_jitter=0)
    for number in range(messages):
        relaying.put(text(number))
    relaying.runner.start()
    stopped: list[object] = []
    for turn in range(1200):
        relaying.clock.advance(0.1)
        relaying.threads.turn()
        for sink in relaying.sinks:
            sink.answer()
        if turn == stop > 0:
            relaying.runner.stop().addCallback(stopped.append)
    assert bool(stopped) is (stop > 0)
    return relaying


@pytest.mark.parametrize("connections", [2, 3, 4])
@pytest.mark.parametrize("rate", [75, 200, 600, 900])
def test_others_take_the_last_while_a_worker_waits_for_its_pace(
    tmp_path: Path, connections: int, rate: int
) -> None:
    for messages in range(connections + 2, connections + 9, 2):
        relaying = pondered(tmp_path / str(messages), connections, rate, messages)
        assert arrived(relaying) == Counter(range(messages)), messages
        assert relaying.told.reports == [] and not relaying.spool.ids()


@pytest.mark.parametrize("stop", range(10, 110, 10))
def test_a_stop_while_a_worker_waits_for_its_pace(tmp_path: Path, stop: int) -> None:
    relaying = pondered(tmp_path, 1, 75, MESSAGES, stop)
    assert len(relaying.spool.ids()) == MESSAGES - sum(arrived(relaying).values()) > 0


class Forgetful(Sink):
    """Throws away what came behind a message before it was answered."""

    def answer(self) -> bool:
        said = b"".join(self.written)
        message, end, _ = said.partition(b"\r\n.\r\n")
        self.written[:] = [message + end]
        return super().answer() if said else False


def test_a_host_that_forgets_what_was_sent_ahead_costs_one_time_out(tmp_path: Path) -> None:
    relaying = relay(tmp_path, sink=Forgetful)
    assert arrived(relaying) == ALL
    assert len(relaying.sinks) == 2


class Mute(Sink):
    """Does not answer the first MAIL behind a message over its connection, which came alone."""

    def answer(self) -> bool:
        if self.messages == 1 and self.written[:1] and self.written[0].startswith(b"MAIL"):
            return False
        return super().answer()


def test_a_time_out_of_what_was_not_sent_ahead_changes_nothing(tmp_path: Path) -> None:
    mute = [Mute(), Sink()]
    relaying = Relaying(tmp_path, lambda: mute.pop(0), connections_per_destination=1)
    relaying.put(text(0))
    relaying.runner.start()

    def go(seconds: float, turns: int) -> None:
        for _ in range(turns):
            relaying.clock.advance(seconds)
            relaying.threads.turn()
            for sink in relaying.sinks:
                sink.answer()

    go(0, 20)
    for number in range(1, MESSAGES):
        relaying.put(text(number))
    relaying.runner.take(relaying.spool.ids())
    go(0, 20)
    go(100, 4)  # the reply to MAIL is late
    go(0, 60)
    assert arrived(relaying) == ALL and ahead(relaying) == MESSAGES - 3


@pytest.mark.parametrize("at", [1, 3, MESSAGES - 1])
def test_one_whose_answer_is_lost_may_come_twice_and_no_other(tmp_path: Path, at: int) -> None:
    lost: list[int] = []

    def end(message: bytes) -> bytes:
        if number_of(message) == at and not lost:
            lost.append(at)
            return b""
        return TAKEN

    relaying = relay(tmp_path, end)
    assert lost and arrived(relaying) == ALL


def test_nothing_behind_a_message_that_not_all_get(tmp_path: Path) -> None:
    """What follows then may be a transaction of its own for the rest, or RSET."""
    def rcpt(line: bytes) -> bytes:
        return b"550 5.1.1 nobody\r\n" if b"nobody" in line else ACCEPTED

    relaying = relay(tmp_path, names=("bob", "nobody"), rcpt=rcpt)
    assert arrived(relaying) == ALL and ahead(relaying) == 0
    assert len(relaying.told.reports) == MESSAGES


def test_behind_one_that_nobody_gets(tmp_path: Path) -> None:
    lines: list[bytes] = []
    refused = {3, 4, 7}

    def rcpt(line: bytes) -> bytes:
        lines.append(line)
        return b"550 5.1.1 nobody\r\n" if len(lines) - 1 in refused else ACCEPTED

    relaying = relay(tmp_path, rcpt=rcpt)
    assert arrived(relaying) == ALL - Counter(refused)
    assert len(relaying.told.reports) == len(refused)


@pytest.mark.parametrize("abruptly", [False, True])
def test_at_a_stop_what_is_unanswered_is_waited_for(tmp_path: Path, abruptly: bool) -> None:
    relaying = Relaying(tmp_path, partial(Sink, lambda message: TAKEN),
                        connections_per_destination=1)
    for number in range(MESSAGES):
        relaying.put(text(number))
    relaying.runner.start()
    relaying.go_ahead()
    [sink] = relaying.sinks
    before = len(sink.taken)
    stopped: list[object] = []
    relaying.runner.stop().addCallback(stopped.append)
    if abruptly:
        relaying.runner.abort()
        sink.hang_up()
    for _ in range(50):
        relaying.clock.advance(0)
        relaying.threads.turn()
        sink.answer()
    assert stopped
    # The one that was unanswered, and the one whose envelope had left.
    assert len(sink.taken) == before + (0 if abruptly else 2)
    assert len(relaying.spool.ids()) == MESSAGES - len(sink.taken)
