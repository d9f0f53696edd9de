"""``mailsvc.pop3.server``: messages, listings and QUIT, on transports without a network."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IProtocolFactory, IPushProducer
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from zope.interface.verify import verifyObject

from mailsvc.errors import MessageVanished, SomeNotRemoved, TemporaryFailure
from mailsvc.interfaces import IMaildrop
from mailsvc.pop3 import server
from mailsvc.pop3.retrieval import Retrieval
from mailsvc.pop3.server import POP3Factory
from tests.maildrops import FakeMaildrop, FakeProducer, message
from tests.pop3 import (
    HOSTNAME,
    LONG,
    SECRET,
    USER,
    Client,
    Pipe,
    Realm,
    Valve,
    authenticator,
    log,
    portal,
    settings,
    two,
    wire,
)

# ---- interfaces ----


def test_interfaces() -> None:
    client = Client()
    assert verifyObject(IProtocolFactory, client.factory)
    assert verifyObject(IPushProducer, client.protocol)
    assert verifyObject(IConsumer, Retrieval(client.protocol))
    assert verifyObject(IMaildrop, two())


def test_to_listen_is_not_logged() -> None:
    # The service tells where it listens, once for all.
    with capturedLogs() as caught:
        factory = Client().factory
        factory.doStart()
        factory.doStop()
    assert caught == []


def test_a_connection_begins() -> None:
    client = Client()
    assert client.news() == ["+OK dbc.mtview.ca.us POP3 server ready"]
    assert client.transport.no_delay is True
    assert client.transport.streaming is True
    client.transport.producer.stopProducing()
    client.hang_up()


def test_a_transport_without_tcp() -> None:
    class Plain(Pipe):
        setTcpNoDelay = None  # type: ignore[assignment]
        loseWriteConnection = None  # type: ignore[assignment]

    client = Client(transport=Plain(), errors=1)
    assert client.ask("x")[-1].startswith("-ERR Too many")
    assert client.transport.disconnecting


def test_a_turn_is_one_write() -> None:
    client = Client()
    written = []
    client.transport.write = written.append  # type: ignore[method-assign]
    client.say(f"USER {USER}\r\nPASS {SECRET}\r\nSTAT\r\nRETR 1\r\nRETR 2\r\nDELE 1\r\nQUIT\r\n"
               .encode())
    assert len(written) == 1
    assert written[0].count(b"\r\n.\r\n") == 2


# ---- messages ----


@pytest.mark.parametrize("way", ["at hand", "at once", "pull", "push"])
def test_the_ways_of_a_message(way: str) -> None:
    text = b".a: b\r\n\r\n" + b".\r\n" * 2000 + b"x\r\n"
    maildrop = FakeMaildrop([text])
    maildrop.way = way
    client = Client(maildrop).log_in()
    client.news()
    client.say(b"RETR 1\r\nSTAT\r\n")
    for producer in maildrop.producers:
        while way == "push" and producer.left:
            assert not client.reading
            producer.arrive(777)
    assert "\r\n".join(client.news()) == (
        f"+OK {len(text)} octets\r\n{wire(text)}+OK 1 {len(text)}")
    assert client.reading
    client.hang_up()
    assert client.realm.open == 0


def test_a_message_whose_blocks_come_late() -> None:
    # As from a disk: a pull producer is asked once for each block, however late it comes.
    maildrop = FakeMaildrop([message(2500)])
    maildrop.way = "late pull"
    client = Client(maildrop).log_in()
    assert client.ask("RETR 1") == []
    (producer,) = maildrop.producers
    assert producer.asked == 1
    producer.arrive()
    assert producer.asked == 2
    producer.arrive()
    assert producer.asked == 3
    producer.arrive()
    assert "\r\n".join(client.news()) + "\r\n" == "+OK 2500 octets\r\n" + wire(message(2500))


@pytest.mark.parametrize("way", ["at hand", "at once", "pull", "push", "late pull"])
def test_a_message_goes_at_the_peers_pace(way: str) -> None:
    maildrop = FakeMaildrop([LONG])
    maildrop.way = way
    valve = Valve(room=10_000)
    client = Client(maildrop, transport=valve).log_in()
    valve.take_all()
    client.news()
    client.say(b"RETR 1\r\nSTAT\r\n")
    most = 0
    for _ in range(2000):
        for producer in maildrop.producers:
            if way == "late pull" and producer.left and producer.asked > 0:
                producer.asked = 0
                producer.arrive()
            while way == "push" and producer.state == "producing" and producer.left:
                producer.arrive()
        most = max(most, valve.held)
        assert client.protocol.writable == (valve.held <= valve.room)
        if not valve.held:
            break
        valve.take()
    if way not in ("at hand", "at once"):
        # Amid a turn up to 64 KiB gather.
        assert most < 67_000
    assert "\r\n".join(client.news()) == (
        f"+OK 300000 octets\r\n{wire(LONG)}+OK 1 300000")
    client.hang_up()


def test_a_push_producer_begins_paused_when_the_peer_is_full() -> None:
    class Full(FakeMaildrop):
        def read(self, number: int, consumer: Any, lines: int | None = None) -> Any:
            consumer.write(LONG)
            return super().read(number, consumer, lines)

    maildrop = Full([message(5000)])
    maildrop.way = "push"
    valve = Valve()
    client = Client(maildrop, transport=valve).log_in()
    client.say(b"RETR 1\r\n")
    (producer,) = maildrop.producers
    assert producer.state == "paused"
    valve.take()
    assert producer.state == "producing"
    client.hang_up()


def test_pipelined_messages_are_gathered_up_to_64_kib() -> None:
    maildrop = FakeMaildrop([message(4096, number) for number in range(1, 101)])
    valve = Valve()
    client = Client(maildrop, transport=valve).log_in()
    valve.take_all()
    sizes = []
    write = valve.write

    def spy(data: bytes) -> None:
        sizes.append(len(data))
        write(data)

    valve.write = spy  # type: ignore[method-assign]
    client.say(b"".join(b"RETR %d\r\n" % number for number in range(1, 101)))
    # The first write fills the transport; then only the last message's end is to come.
    assert 65_536 <= sizes[0] < 65_536 + 4200
    assert sizes[1:] == [5]
    assert len(maildrop.happened) < 20
    assert not client.reading
    valve.take_all()
    assert len(sizes) == 13
    assert len(maildrop.happened) == 100
    client.flow()
    assert client.reading


def test_short_commands_with_long_answers_go_at_the_peers_pace() -> None:
    valve = Valve()
    client = Client(FakeMaildrop([message(30)] * 1000), transport=valve).log_in()
    valve.take_all()
    client.news()
    client.say(b"LIST\r\n" * 1000)
    for _ in range(1000):
        assert valve.held < 65_536 + 20_000
        valve.take()
        client.flow()
    assert client.news().count(".") == 1000


@pytest.mark.parametrize("chunk", [b"STAT\r\n", b"ST"])
def test_reading_goes_on_until_a_chunk_waits(chunk: bytes) -> None:
    valve = Valve()
    client = Client(FakeMaildrop([LONG]), transport=valve).log_in()
    client.say(b"RETR 1\r\n")
    assert not client.protocol.writable
    assert client.reading
    client.say(chunk)
    assert not client.reading
    valve.take_all()
    assert client.reading
    client.say(b"AT\r\n")
    assert b"\r\n.\r\n" in client.heard()


def test_only_one_producer_at_a_time() -> None:
    retrieval = Retrieval(Client().protocol)
    producer = FakeProducer(b"x", retrieval, push=True, late=False)
    retrieval.registerProducer(producer, True)
    with pytest.raises(RuntimeError, match="registered already"):
        retrieval.registerProducer(producer, True)
    retrieval.unregisterProducer()
    retrieval.pause()
    retrieval.resume()
    assert producer.state == "producing"
    assert producer.asked == 0


def test_a_message_whose_reading_has_not_begun_may_be_given_up() -> None:
    client = Client()
    client.news()
    retrieval = Retrieval(client.protocol)
    retrieval.stop()
    retrieval.write(b"too late")
    client.flow()
    assert client.news() == []


@pytest.mark.parametrize("late", [False, True])
def test_a_message_that_cannot_be_read(late: bool) -> None:
    maildrop = two()
    maildrop.spoilt["read"] = MessageVanished("Gone")
    maildrop.late = {"read"} if late else set()
    client = Client(maildrop).log_in()
    answers = client.ask("RETR 1", "STAT")
    if late:
        assert answers == []
        maildrop.go_on()
        client.flow()
        answers = client.news()
    assert answers == ["-ERR Gone", "+OK 2 320"]


def test_a_bug_in_the_store() -> None:
    maildrop = two()
    maildrop.read = None  # type: ignore[method-assign,assignment]
    client = Client(maildrop).log_in()
    with log() as lines:
        answers = client.ask("RETR 1", "STAT")
    assert answers == ["-ERR [SYS/TEMP] Local error; try again later", "+OK 2 320"]
    assert lines == ["could not answer"]


def test_a_message_that_fails_half_way() -> None:
    maildrop = FakeMaildrop([message(5000)])
    maildrop.way = "push"
    client = Client(maildrop).log_in()
    client.news()
    client.say(b"DELE 1\r\nRSET\r\nRETR 1\r\nQUIT\r\n")
    (producer,) = maildrop.producers
    producer.arrive()
    with log() as lines:
        producer.fail(TemporaryFailure("The disk is gone"))
    said = client.heard()
    assert b"+OK 5000 octets\r\n" in said
    assert not said.endswith(b".\r\n")
    assert client.closed
    assert lines == ["logged out user='mrose' retrieved=0 deleted=0 client=198.51.100.7: message "
                     "cut short"]
    assert maildrop.happened == [("read", 1, None)]


def test_a_connection_lost_amid_a_message() -> None:
    maildrop = FakeMaildrop([message(5000)])
    maildrop.way = "push"
    client = Client(maildrop).log_in()
    client.say(b"RETR 1\r\n")
    (producer,) = maildrop.producers
    producer.arrive()
    heard = client.heard()
    client.hang_up()
    assert producer.state == "stopped"
    assert client.realm.open == 0
    producer.consumer.write(b"more")
    assert client.heard() == heard


def test_a_connection_lost_before_a_message() -> None:
    maildrop = two()
    maildrop.late = {"read"}
    client = Client(maildrop).log_in()
    assert client.ask("RETR 1") == []
    with log() as lines:
        client.hang_up()
    assert maildrop.happened == [("read", 1, None), "read cancelled"]
    assert lines == ["logged out user='mrose' retrieved=0 deleted=0 client=198.51.100.7: "
                     "connection lost"]
    assert client.realm.open == 0


def test_a_store_that_reads_on_when_it_was_cancelled() -> None:
    maildrop = two()
    maildrop.read = lambda *_: Deferred(  # type: ignore[method-assign]
        lambda reading: reading.callback(None))
    client = Client(maildrop).log_in()
    client.ask("RETR 1")
    client.hang_up()
    assert client.news() == []
    assert client.realm.open == 0


def test_a_bug_behind_a_message_cuts_the_session_off() -> None:
    maildrop = two()
    maildrop.late = {"read"}
    maildrop.uidls = None  # type: ignore[method-assign,assignment]
    client = Client(maildrop).log_in()
    client.ask("DELE 1", "RETR 2", "UIDL", "QUIT")
    with log() as lines:
        maildrop.go_on()
    assert lines == ["is cut off", "logged out user='mrose' retrieved=1 deleted=0 "
                     "client=198.51.100.7: internal error"]
    assert client.transport.disconnected
    assert maildrop.happened == [("read", 2, None)]
    assert client.realm.open == 0
    client.hang_up()


# ---- listings ----


@pytest.mark.parametrize("verb", ["LIST", "UIDL"])
def test_a_long_listing_goes_at_the_peers_pace(verb: str) -> None:
    maildrop = FakeMaildrop([message(30 + n % 10) for n in range(30_000)])
    valve = Valve()
    client = Client(maildrop, transport=valve)
    client.say(f"USER {USER}\r\nPASS {SECRET}\r\nDELE 2\r\n".encode())
    valve.take_all()
    client.news()
    client.say(f"{verb}\r\nSTAT\r\n".encode())
    rounds = 0
    while valve.held:
        assert valve.held < 65_536 + 40_000
        assert client.reading == client.protocol.writable
        valve.take()
        client.flow()
        rounds += 1
    assert rounds > 3
    lines = client.news()
    assert len(lines) == 1 + 29_999 + 1 + 1
    assert lines[1] == ("1 31" if verb == "UIDL" else "1 30").replace("31", "uid-1")
    assert lines[2].startswith("3 ")
    assert lines[-3:-1] == [lines[-3], "."]
    assert lines[-1].startswith("+OK 29999 ")
    client.hang_up()


@pytest.mark.parametrize("vanished", [False, True])
def test_listings_and_messages_behind_each_other(vanished: bool) -> None:
    # What is over has no part in the pace of what follows.
    maildrop = FakeMaildrop([LONG] + [message(30)] * 20_000)
    if vanished:
        maildrop.spoilt["read"] = MessageVanished("Gone")
    valve = Valve()
    client = Client(maildrop, transport=valve).log_in()
    valve.take_all()
    client.news()
    client.say(b"RETR 1\r\nLIST\r\nRETR 1\r\nUIDL\r\nSTAT\r\n")
    valve.take_all()
    message_lines = ["-ERR Gone"] if vanished else [
        "+OK 300000 octets", *wire(LONG).removesuffix("\r\n").split("\r\n")]
    assert client.news() == [
        *message_lines,
        "+OK 20001 messages (900000 octets)", "1 300000",
        *(f"{n} 30" for n in range(2, 20_002)), ".",
        *message_lines,
        "+OK Unique-ids follow", *(f"{n} uid-{n}" for n in range(1, 20_002)), ".",
        "+OK 20001 900000",
    ]
    client.hang_up()


def test_a_connection_lost_amid_a_listing() -> None:
    maildrop = FakeMaildrop([message(30)] * 20_000)
    client = Client(maildrop, transport=Valve()).log_in()
    client.say(b"LIST\r\n")
    assert client.protocol._listing is not None
    client.hang_up()
    assert client.protocol._listing is None
    assert client.realm.open == 0


# ---- update ----


def test_quit_updates_and_then_gives_back() -> None:
    maildrop = two()
    maildrop.late = {"update"}
    client = Client(maildrop).log_in()
    with log() as lines:
        assert client.ask("RETR 2", "TOP 1 0", "DELE 2", "QUIT", "RETR 1")[-1] == (
            "+OK Message 2 deleted")
        assert client.realm.open == 1
        assert not client.closed
        maildrop.go_on()
    assert client.news() == ["+OK dbc.mtview.ca.us signing off (1 message left)"]
    assert maildrop.happened[-1] == ("update", {2})
    assert client.closed
    assert not client.transport.half_closed
    assert client.realm.open == 0
    assert lines == ["logged out user='mrose' retrieved=1 deleted=1 client=198.51.100.7: quit"]
    client.hang_up()


def test_a_connection_lost_amid_an_update() -> None:
    # QUIT was said, so what was marked goes; the maildrop is given back when it is done.
    maildrop = two()
    maildrop.late = {"update"}
    client = Client(maildrop).log_in()
    client.ask("DELE 1", "QUIT")
    client.hang_up()
    assert client.realm.open == 1
    with log() as lines:
        maildrop.go_on()
    assert client.realm.open == 0
    assert lines == ["logged out user='mrose' retrieved=0 deleted=1 client=198.51.100.7: quit"]


@pytest.mark.parametrize(("failure", "answer", "outcome"), [
    (SomeNotRemoved("Some deleted messages not removed", (2,)),
     "-ERR [SYS/TEMP] Some deleted messages not removed",
     "deleted=1 client=198.51.100.7: Some deleted messages not removed"),
    (ZeroDivisionError("a bug"), "-ERR [SYS/TEMP] Local error; try again later",
     "deleted=0 client=198.51.100.7: Local error; try again later"),
])
def test_an_update_that_fails(failure: Exception, answer: str, outcome: str) -> None:
    maildrop = two()
    maildrop.spoilt["update"] = failure
    client = Client(maildrop).log_in()
    with log() as lines:
        assert client.ask("DELE 1", "DELE 2", "QUIT")[-1] == answer
    assert lines[-1] == f"logged out user='mrose' retrieved=0 {outcome}"
    assert client.closed
    assert client.realm.open == 0


def test_a_bug_in_giving_back_cuts_the_session_off() -> None:
    def log_out() -> None:
        raise ZeroDivisionError("a bug")

    client = Client()
    client.realm._log_out = log_out  # type: ignore[method-assign]
    client.log_in()
    with log() as lines:
        client.ask("QUIT")
    assert lines == ["is cut off"]
    assert client.transport.disconnected
    client.hang_up()


# ---- what becomes of each message ----


def test_who_got_what_is_told_to_the_debug_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_TOLD", 2)
    client = Client(FakeMaildrop([message(120, n) for n in range(1, 6)])).log_in()
    with log("debug") as lines:
        client.ask("RETR 1", "TOP 2 1", "RETR 3", "RETR 4")
        client.clock.advance(2)
        client.ask("RETR 5", "DELE 1", "DELE 3", "DELE 5", "QUIT")
    assert [line.partition("]")[0] for line in lines] == [
        "retrieved [b'uid-1', b'uid-3'", "retrieved [b'uid-4'", "retrieved [b'uid-5'",
        "removed [b'uid-1', b'uid-3'", "removed [b'uid-5'"]
    assert {line.partition("] ")[2] for line in lines} == {"user=mrose client=198.51.100.7"}


def test_what_was_retrieved_is_told_when_the_connection_is_lost() -> None:
    client = Client().log_in()
    with log("debug") as lines:
        client.ask("RETR 1", "DELE 1")
        client.hang_up()
    assert lines == ["retrieved [b'uid-1'] user=mrose client=198.51.100.7"]


def test_many_removals_are_told_in_several_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_TOLD", 2)
    monkeypatch.setattr(server, "_TOLD_A_TURN", 4)
    client = Client(FakeMaildrop([message(120, n) for n in range(1, 8)])).log_in()
    with log("debug") as lines:
        client.ask(*(f"DELE {n}" for n in range(1, 8)), "QUIT")
    assert [line.partition("]")[0] for line in lines] == [
        "removed [b'uid-1', b'uid-2'", "removed [b'uid-3', b'uid-4'"]
    with log("debug") as lines:
        client.clock.advance(0)
    assert [line.partition("]")[0] for line in lines] == [
        "removed [b'uid-5', b'uid-6'", "removed [b'uid-7'"]


# ---- memory ----


def test_an_idle_connection_is_small() -> None:
    class Nothing:
        """A transport that costs nothing itself."""

        def __getattr__(self, name: str) -> Any:
            return lambda *_: IPv4Address("TCP", "198.51.100.7", 40_000)

    factory = POP3Factory(authenticator(portal(Realm(two()))),
                          settings(connections_per_address=10_000), HOSTNAME, Clock())
    nothing: Any = Nothing()

    def connect(number: int) -> list[Any]:
        protocols = [factory.buildProtocol(nothing.getPeer()) for _ in range(number)]
        for protocol in protocols:
            protocol.makeConnection(nothing)
            protocol.dataReceived(b"CAPA\r\n")
        return protocols

    connect(10)
    tracemalloc.start()
    kept = connect(500)
    octets = tracemalloc.get_traced_memory()[0] / len(kept)
    tracemalloc.stop()
    assert octets < 4096
