"""What every mailbox store keeps: the executable form of IMailboxStore, IDelivery and IMaildrop.

It knows nothing of how a store keeps its mail.  A new store joins by a line in
``tests.stores.FACTORIES``.
"""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred, DeferredList, gatherResults
from zope.interface.verify import verifyObject

from mailsvc.errors import MailboxFull, MessageTooLarge
from mailsvc.interfaces import IDelivery, IMailboxStore, IMaildrop
from mailsvc.mail import Account, new_id
from tests import stores
from tests.stores import (
    ALICE,
    BOB,
    CAROL,
    FACTORIES,
    Sink,
    blocks_of,
    contents,
    deliver,
    pause,
    read,
    write,
)

store = stores.every_store

HEADER = b"From: <a@example.org>\r\nSubject: test\r\n"
BODY = b"one\r\ntwo\r\n\r\nfour\r\n"
MESSAGE = HEADER + b"\r\n" + BODY
LARGE = HEADER + b"\r\n" + b"".join(
    b"%07d %s\r\n" % (number, b"x" * (number % 90)) for number in range(24_000))

#: What is written, and what RETR sends of it where that differs.
MESSAGES = {
    "ordinary": (MESSAGE, MESSAGE),
    "empty": (b"", b""),
    "one line end": (b"\r\n", b"\r\n"),
    "header only": (HEADER, HEADER),
    "header and the empty line": (HEADER + b"\r\n", HEADER + b"\r\n"),
    "empty header": (b"\r\nbody\r\n", b"\r\nbody\r\n"),
    "only dots": (b".\r\n..\r\n...\r\n", b".\r\n..\r\n...\r\n"),
    "dots after the empty line": (b"A: b\r\n\r\n.\r\n.\r\n", b"A: b\r\n\r\n.\r\n.\r\n"),
    "no final CRLF": (MESSAGE + b"end", MESSAGE + b"end\r\n"),
    "CR at the end": (MESSAGE + b"end\r", MESSAGE + b"end\r\r\n"),
    "all octets": (b"A: b\r\n\r\n" + bytes(set(range(256)) - {10, 13}) + b"\r\n",
                   b"A: b\r\n\r\n" + bytes(set(range(256)) - {10, 13}) + b"\r\n"),
    "CR amid a line": (b"A: b\r\n\r\na\rb\r\r\n", b"A: b\r\n\r\na\rb\r\r\n"),
    "a line of 1 MiB": (b"A: b\r\n\r\n" + b"y" * 2**20 + b"\r\n",
                        b"A: b\r\n\r\n" + b"y" * 2**20 + b"\r\n"),
    "more than 1 MiB": (LARGE, LARGE),
    "more than 1 MiB without final CRLF": (LARGE + b"end", LARGE + b"end\r\n"),
}
assert len(LARGE) > 2**20


# ---- interfaces -------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_everything_provides_what_it_says(store: Any) -> None:
    assert verifyObject(IMailboxStore, store)
    delivery = store.begin((ALICE,), new_id())
    assert verifyObject(IDelivery, delivery)
    delivery.abort()
    maildrop = await store.open_maildrop(ALICE)
    assert verifyObject(IMaildrop, maildrop)
    assert not maildrop.lost.called
    maildrop.release()


# ---- delivery ---------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_nothing_is_visible_before_commit(store: Any) -> None:
    delivery = store.begin((ALICE, BOB), new_id(), len(LARGE))
    assert await contents(store) == []
    await write(delivery, blocks_of(LARGE, 50_000))
    assert await contents(store) == []
    assert await contents(store, BOB) == []
    assert await delivery.commit() is None
    assert await contents(store) == [LARGE]
    assert await contents(store, BOB) == [LARGE]


@pytest.mark.parametrize("message", [b"", MESSAGE, LARGE], ids=["empty", "short", "long"])
@pytest_twisted.ensureDeferred
async def test_an_aborted_message_is_forgotten(store: Any, message: bytes) -> None:
    delivery = store.begin((ALICE,), new_id())
    if message:
        await write(delivery, blocks_of(message, 50_000))
    assert delivery.abort() is None
    delivery.abort()
    await pause()
    assert await contents(store) == []
    await deliver(store, MESSAGE)
    assert await contents(store) == [MESSAGE]


@pytest_twisted.ensureDeferred
async def test_abort_amid_writing(store: Any) -> None:
    """Also when the store has just asked to wait."""
    delivery = store.begin((ALICE,), new_id())
    for block in blocks_of(LARGE, 50_000):
        if delivery.write(block) is not None:
            break
    delivery.abort()
    await pause()
    assert await contents(store) == []


@pytest_twisted.ensureDeferred
async def test_abort_after_commit_does_nothing(store: Any) -> None:
    delivery = store.begin((ALICE,), new_id())
    delivery.write(MESSAGE)
    committed = delivery.commit()
    delivery.abort()
    await committed
    delivery.abort()
    await pause()
    assert await contents(store) == [MESSAGE]


@pytest.mark.parametrize("ending", ["commit", "abort"])
@pytest_twisted.ensureDeferred
async def test_a_delivery_is_committed_once(store: Any, ending: str) -> None:
    delivery = store.begin((ALICE,), new_id())
    delivery.write(MESSAGE)
    await (getattr(delivery, ending)() or pause())
    with pytest.raises(RuntimeError):
        await delivery.commit()
    assert len(await contents(store)) == (ending == "commit")


@pytest_twisted.ensureDeferred
async def test_every_account_gets_one_copy(store: Any) -> None:
    accounts = tuple(Account(f"r{number}", "example.org") for number in range(50))
    await deliver(store, MESSAGE, *accounts)
    await deliver(store, LARGE, ALICE, CAROL)
    for account in accounts:
        assert await contents(store, account) == [MESSAGE]
    assert await contents(store, ALICE) == [LARGE]
    assert await contents(store, CAROL) == [LARGE]
    assert await contents(store, BOB) == []


@pytest_twisted.ensureDeferred
async def test_accounts_of_one_name_in_two_domains_are_two(store: Any) -> None:
    await deliver(store, b"A: 1\r\n", Account("a", "example.org"))
    await deliver(store, b"A: 2\r\n", Account("a", "example.net"))
    assert await contents(store, Account("a", "example.org")) == [b"A: 1\r\n"]
    assert await contents(store, Account("a", "example.net")) == [b"A: 2\r\n"]


@pytest_twisted.ensureDeferred
async def test_a_sender_that_does_not_wait_loses_nothing(store: Any) -> None:
    """Waiting spares memory; order and content do not depend on it."""
    delivery = store.begin((ALICE,), new_id())
    waits = [delivery.write(block) for block in blocks_of(LARGE, 10_000)]
    await delivery.commit()
    assert await contents(store) == [LARGE]
    for wait in waits:
        assert wait is None or wait.called


@pytest_twisted.ensureDeferred
async def test_many_deliveries_at_once(store: Any) -> None:
    messages = [b"Number: %d\r\n\r\n" % number + b"z" * (number * 37 % 5000) + b"\r\n"
                for number in range(200)]
    await gatherResults([
        Deferred.fromCoroutine(
            deliver(store, blocks_of(message, 1000), *((ALICE, BOB) if number % 2 else (ALICE,))))
        for number, message in enumerate(messages)])
    assert sorted(await contents(store, ALICE)) == sorted(messages)
    assert sorted(await contents(store, BOB)) == sorted(messages[1::2])


# ---- content and sizes ------------------------------------------------------


@pytest.mark.parametrize("name", MESSAGES)
@pytest_twisted.ensureDeferred
async def test_octets_come_back_as_they_were(store: Any, name: str) -> None:
    written, sent = MESSAGES[name]
    cuts = [blocks_of(written, size) for size in (len(written) or 1, 65_537)]
    if len(written) < 1000:
        cuts.append(blocks_of(written, 1))
    for blocks in cuts:
        await deliver(store, blocks)
    maildrop = await store.open_maildrop(ALICE)
    assert maildrop.sizes == array("Q", [len(sent)] * len(cuts))
    assert maildrop.sizes.typecode == "Q"
    assert maildrop.octets == len(sent) * len(cuts)
    for number in range(1, len(cuts) + 1):
        assert await read(maildrop, number) == sent
    maildrop.release()


@pytest.mark.parametrize(("lines", "body"), [
    (0, b""), (1, b"one\r\n"), (2, b"one\r\ntwo\r\n"), (3, b"one\r\ntwo\r\n\r\n"), (4, BODY),
    (5, BODY), (10**20, BODY)])
@pytest_twisted.ensureDeferred
async def test_top_gives_the_header_and_some_lines(store: Any, lines: int, body: bytes) -> None:
    await deliver(store, MESSAGE)
    maildrop = await store.open_maildrop(ALICE)
    assert await read(maildrop, 1, lines) == HEADER + b"\r\n" + body
    maildrop.release()


@pytest.mark.parametrize(("name", "lines", "expected"), [
    ("empty", 1, b""),
    ("header only", 0, HEADER),
    ("header only", 9, HEADER),
    ("empty header", 0, b"\r\n"),
    ("empty header", 1, b"\r\nbody\r\n"),
    ("no final CRLF", 5, MESSAGE + b"end\r\n"),
    ("more than 1 MiB", 0, HEADER + b"\r\n"),
    ("more than 1 MiB", 2, HEADER + b"\r\n0000000 \r\n0000001 x\r\n"),
    ("more than 1 MiB", 24_000, LARGE),
])
@pytest_twisted.ensureDeferred
async def test_top_of_odd_messages(store: Any, name: str, lines: int, expected: bytes) -> None:
    await deliver(store, MESSAGES[name][0])
    maildrop = await store.open_maildrop(ALICE)
    assert await read(maildrop, 1, lines) == expected
    maildrop.release()


# ---- reading at the consumer's pace -----------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_short_message_is_written_at_once(store: Any) -> None:
    await deliver(store, MESSAGE + b"end")
    maildrop = await store.open_maildrop(ALICE)
    sink = Sink(patient=True)
    await maildrop.read(1, sink)
    assert sink.blocks == [MESSAGE + b"end\r\n"]
    assert sink.registrations == 0
    maildrop.release()


@pytest_twisted.ensureDeferred
async def test_a_short_message_is_at_hand(store: Any) -> None:
    for text in (b"", MESSAGE, MESSAGE + b"end", LARGE):
        await deliver(store, text)
    maildrop = await store.open_maildrop(ALICE)
    # Whether a disk must be waited for, nobody can promise.
    for number, expected in enumerate((b"", MESSAGE, MESSAGE + b"end\r\n"), start=1):
        assert maildrop.text(number) in (expected, None)
    assert maildrop.text(4) is None
    assert await read(maildrop, 4) == LARGE
    for number in (0, 5):
        with pytest.raises(IndexError):
            maildrop.text(number)
    maildrop.release()


async def _given(sink: Sink, blocks: int) -> None:
    """Wait until *sink* has been given so many blocks; fail when that takes more than 5 s."""
    for _ in range(500):
        if len(sink.blocks) >= blocks:
            return
        await pause(0.01)
    raise AssertionError(f"{len(sink.blocks)} of {blocks} blocks came")


@pytest_twisted.ensureDeferred
async def test_a_long_message_comes_as_it_is_asked_for(store: Any) -> None:
    await deliver(store, LARGE)
    maildrop = await store.open_maildrop(ALICE)
    sink = Sink(patient=True)
    reading = maildrop.read(1, sink)
    while not reading.called:
        had = len(sink.blocks)
        await pause(0.002)
        assert len(sink.blocks) == had
        sink.ask()
        await _given(sink, had + 1)
        assert len(sink.blocks) == had + 1
        assert len(sink.blocks[-1]) <= 256 * 1024
    await reading
    assert sink.data == LARGE
    assert len(sink.blocks) > 4
    assert sink.producer is None
    maildrop.release()


@pytest_twisted.ensureDeferred
async def test_a_cancelled_reading_stops(store: Any) -> None:
    await deliver(store, LARGE)
    maildrop = await store.open_maildrop(ALICE)
    sink = Sink(patient=True)
    reading = maildrop.read(1, sink)
    sink.ask()
    await _given(sink, 1)
    reading.cancel()
    assert sink.producer is None
    with pytest.raises(CancelledError):
        await reading
    await pause()
    assert len(sink.blocks) == 1
    assert await read(maildrop, 1) == LARGE
    maildrop.release()


@pytest_twisted.ensureDeferred
async def test_a_consumer_that_goes_away_ends_the_reading(store: Any) -> None:
    await deliver(store, LARGE)
    maildrop = await store.open_maildrop(ALICE)
    sink = Sink(patient=True)
    reading = maildrop.read(1, sink)
    producer = sink.producer
    assert producer is not None
    sink.ask()
    await _given(sink, 1)
    producer.stopProducing()
    with pytest.raises(CancelledError):
        await reading
    producer.resumeProducing()
    producer.stopProducing()
    await pause()
    assert len(sink.blocks) == 1
    maildrop.release()


@pytest_twisted.ensureDeferred
async def test_readings_side_by_side(store: Any) -> None:
    await deliver(store, LARGE)
    await deliver(store, LARGE[::-1] + b"\r\n")
    maildrop = await store.open_maildrop(ALICE)
    sinks = Sink(), Sink()
    await gatherResults([maildrop.read(1, sinks[0]), maildrop.read(2, sinks[1])])
    assert sinks[0].data == LARGE
    assert len(sinks[1].data) == maildrop.sizes[1]
    maildrop.release()


# ---- quota ------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_without_a_quota_there_is_always_room(store: Any) -> None:
    assert store.room(ALICE, 10**12) is None
    assert store.room(ALICE, 0) is None


async def has_room(store: Any, account: Account, octets: int) -> bool:
    try:
        answer = store.room(account, octets)
        assert answer is None or await answer is None
    except MailboxFull as full:
        assert str(full.status) == "4.2.2"
        return False
    except MessageTooLarge as refused:
        assert str(refused.status) == "5.2.3"
        assert octets > account.quota_octets > 0
        return False
    assert octets <= account.quota_octets or not account.quota_octets
    return True


@pytest_twisted.ensureDeferred
async def test_a_quota_of_octets(store: Any) -> None:
    account = Account("q", "example.org", quota_octets=100)
    assert await has_room(store, account, 100)
    assert not await has_room(store, account, 101)
    await deliver(store, b"A: " + b"x" * 55 + b"\r\n", account)
    assert await has_room(store, account, 40)
    assert not await has_room(store, account, 41)
    assert await has_room(store, account, 0)
    await deliver(store, b"A: " + b"x" * 35 + b"\r\n", account)
    assert not await has_room(store, account, 1)
    # Of unknown size, but no message is smaller than one octet.
    assert not await has_room(store, account, 0)
    assert await has_room(store, Account("q", "example.org", quota_octets=101), 0)
    assert await has_room(store, ALICE, 100)
    maildrop = await store.open_maildrop(account)
    await maildrop.update([2])
    assert await has_room(store, account, 40)
    assert not await has_room(store, account, 41)


@pytest_twisted.ensureDeferred
async def test_a_quota_of_messages(store: Any) -> None:
    account = Account("q", "example.org", quota_messages=2)
    await deliver(store, MESSAGE, account)
    assert await has_room(store, account, 10**9)
    await deliver(store, MESSAGE, account, BOB)
    assert not await has_room(store, account, 0)
    assert not await has_room(store, account, 1)
    maildrop = await store.open_maildrop(account)
    await maildrop.update([1])
    assert await has_room(store, account, 1)


@pytest_twisted.ensureDeferred
async def test_either_quota_can_be_the_limit(store: Any) -> None:
    account = Account("q", "example.org", quota_octets=1000, quota_messages=2)
    await deliver(store, b"x" * 500, account)
    assert await has_room(store, account, 500)
    assert not await has_room(store, account, 501)
    await deliver(store, b"x", account)
    assert not await has_room(store, account, 1)


async def taken(store: Any, message: bytes, *accounts: Account) -> str:
    """The status of a delivery."""
    try:
        await deliver(store, blocks_of(message, 50_000), *accounts)
    except (MailboxFull, MessageTooLarge) as refused:
        return str(refused.status)
    return "2.0.0"


@pytest.mark.parametrize("size", [30, 300_000], ids=["short", "long"])
@pytest_twisted.ensureDeferred
async def test_a_quota_is_kept_when_the_message_is_whole(store: Any, size: int) -> None:
    """Whatever was asked before; then nobody has the message."""
    account = Account("q", "example.org", quota_octets=3 * size)
    assert await taken(store, b"x" * (3 * size + 1), BOB, account) == "5.2.3"
    assert await taken(store, b"x" * (2 * size), account) == "2.0.0"
    assert await taken(store, b"x" * (size + 1), BOB, account) == "4.2.2"
    assert await contents(store, BOB) == []
    assert await taken(store, b"x" * (size + 1), BOB) == "2.0.0"
    assert await taken(store, b"x" * size, account) == "2.0.0"
    assert [len(each) for each in await contents(store, account)] == [2 * size + 2, size + 2]
    assert await taken(store, b"x", account) == "4.2.2"
    maildrop = await store.open_maildrop(account)
    await maildrop.update([1])
    assert await taken(store, b"x" * (2 * size), account) == "2.0.0"
    assert await taken(store, b"", Account("m", "example.org", quota_messages=1)) == "2.0.0"
    assert await taken(store, b"", Account("m", "example.org", quota_messages=1)) == "4.2.2"


@pytest_twisted.ensureDeferred
async def test_a_quota_is_passed_by_who_need_not_keep_it_and_counts(store: Any) -> None:
    account = Account("q", "example.org", quota_octets=100)
    delivery = store.begin((account, BOB), new_id(), 0, within_quota=False)
    delivery.write(b"x" * 150)
    await delivery.commit()
    assert [len(each) for each in await contents(store, account)] == [152]
    assert len(await contents(store, BOB)) == 1
    assert not await has_room(store, account, 1)
    assert await taken(store, b"x", account) == "4.2.2"


@pytest_twisted.ensureDeferred
async def test_what_is_whole_at_the_same_moment_does_not_pass_a_quota(store: Any) -> None:
    account = Account("q", "example.org", quota_octets=100)
    deliveries = []
    for _ in range(20):
        assert await has_room(store, account, 0)
        delivery = store.begin((account, BOB), new_id())
        delivery.write(b"x" * 30)
        deliveries.append(delivery)
    outcomes = await DeferredList([each.commit() for each in deliveries], consumeErrors=True)
    refused = [outcome for success, outcome in outcomes if not success]
    assert {type(each.value) for each in refused} == {MailboxFull}
    there = len(await contents(store, account))
    assert 1 <= there <= 3
    assert there == 20 - len(refused) == len(await contents(store, BOB))
    # What came to nothing takes no room.
    while there < 3:
        await deliver(store, b"x" * 30, account)
        there += 1
    assert await taken(store, b"x" * 30, account) == "4.2.2"
    assert await has_room(store, account, 10)


# ---- the rest ---------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_sweep_leaves_mail_alone(store: Any) -> None:
    await deliver(store, MESSAGE)
    delivery = store.begin((ALICE,), new_id())
    await write(delivery, blocks_of(LARGE, 50_000))
    assert await store.sweep() == 0
    await delivery.commit()
    assert await contents(store) == [MESSAGE, LARGE]


@pytest.mark.parametrize("name", FACTORIES)
@pytest_twisted.ensureDeferred
async def test_stopping_waits_for_what_was_begun(name: str, tmp_path: Path) -> None:
    it = FACTORIES[name](tmp_path)
    it.start()
    delivery = it.begin((ALICE, BOB), new_id())
    for block in blocks_of(LARGE, 100_000):
        delivery.write(block)
    committed = delivery.commit()
    assert await it.stop() is None
    assert committed.called
    await committed
    assert await it.stop() is None
