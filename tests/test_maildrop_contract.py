"""What every maildrop keeps, whatever its store: the rest of IMaildrop, beside reading.

``test_store_contract.py`` has the stores themselves.
"""

from __future__ import annotations

from array import array
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, DeferredList
from zope.interface.verify import verifyObject

from mailsvc.errors import (
    MaildropInUse,
    MessageVanished,
    SomeNotRemoved,
)
from mailsvc.interfaces import IView
from tests import stores
from tests.stores import (
    ALICE,
    BOB,
    CAROL,
    contents,
    deliver,
    pause,
    read,
)

store = stores.every_store

MESSAGE = b"Subject: test\r\n\r\none\r\ntwo\r\n"


# ---- the lock ---------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_maildrop_is_open_once(store: Any) -> None:
    await deliver(store, MESSAGE)
    maildrop = await store.open_maildrop(ALICE)
    with pytest.raises(MaildropInUse):
        await store.open_maildrop(ALICE)
    other = await store.open_maildrop(BOB)
    other.release()
    with pytest.raises(MaildropInUse):
        await store.open_maildrop(ALICE)
    assert maildrop.release() is None
    maildrop = await store.open_maildrop(ALICE)
    assert await read(maildrop, 1) == MESSAGE
    maildrop.release()


@pytest_twisted.ensureDeferred
async def test_releasing_twice_does_not_take_anothers_lock(store: Any) -> None:
    first = await store.open_maildrop(ALICE)
    first.release()
    second = await store.open_maildrop(ALICE)
    first.release()
    with pytest.raises(MaildropInUse):
        await store.open_maildrop(ALICE)
    second.release()


@pytest_twisted.ensureDeferred
async def test_of_several_at_once_one_gets_the_lock(store: Any) -> None:
    results = await DeferredList(
        [store.open_maildrop(ALICE) for _ in range(8)], consumeErrors=True)
    assert sorted(success for success, _ in results) == [False] * 7 + [True]
    for success, result in results:
        if success:
            result.release()
        else:
            assert result.check(MaildropInUse)


@pytest_twisted.ensureDeferred
async def test_a_cancelled_opening_leaves_no_lock(store: Any) -> None:
    opening = store.open_maildrop(ALICE)
    opening.addErrback(lambda failure: failure.trap(CancelledError))
    opening.addCallback(lambda maildrop: getattr(maildrop, "release", int)())
    opening.cancel()
    for _ in range(500):
        await pause(0.01)
        try:
            maildrop = await store.open_maildrop(ALICE)
        except MaildropInUse:
            continue
        maildrop.release()
        return
    raise AssertionError("the lock was never given back")


@pytest_twisted.ensureDeferred
async def test_an_account_that_never_got_mail_has_an_empty_maildrop(store: Any) -> None:
    maildrop = await store.open_maildrop(CAROL)
    assert len(maildrop.sizes) == 0
    assert maildrop.octets == 0
    with pytest.raises(IndexError):
        maildrop.uidl(1)
    await maildrop.update(())
    await deliver(store, MESSAGE, CAROL)
    assert await contents(store, CAROL) == [MESSAGE]


# ---- numbers and unique-ids -------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_messages_are_numbered_in_order_of_delivery(store: Any) -> None:
    for number in range(20):
        await deliver(store, b"Number: %d\r\n" % number)
    assert await contents(store) == [b"Number: %d\r\n" % number for number in range(20)]


@pytest_twisted.ensureDeferred
async def test_numbers_are_fixed_at_opening(store: Any) -> None:
    await deliver(store, b"A: 1\r\n")
    maildrop = await store.open_maildrop(ALICE)
    await deliver(store, b"A: 22\r\n")
    assert maildrop.sizes == array("Q", [6])
    assert maildrop.octets == 6
    assert await read(maildrop, 1) == b"A: 1\r\n"
    with pytest.raises(IndexError):
        maildrop.uidl(2)
    await maildrop.update([1])
    assert await contents(store) == [b"A: 22\r\n"]


@pytest_twisted.ensureDeferred
async def test_there_is_no_message_0(store: Any) -> None:
    await deliver(store, MESSAGE)
    maildrop = await store.open_maildrop(ALICE)
    for number in (0, -1, 2):
        with pytest.raises(IndexError):
            maildrop.uidl(number)
        with pytest.raises(IndexError):
            await maildrop.update([1, number])
    assert await read(maildrop, 1) == MESSAGE
    maildrop.release()


@pytest_twisted.ensureDeferred
async def test_unique_ids_are_sound_and_distinct(store: Any) -> None:
    for _ in range(30):
        await deliver(store, MESSAGE, ALICE, BOB)
    maildrop = await store.open_maildrop(ALICE)
    ids = [maildrop.uidl(number) for number in range(1, 31)]
    assert list(maildrop.uidls(1, 31)) == ids
    assert list(maildrop.uidls(7, 9)) == ids[6:8]
    assert list(maildrop.uidls(5, 5)) == []
    for id in ids:
        assert 1 <= len(id) <= 70
        assert all(0x21 <= octet <= 0x7E for octet in id)
    assert len(set(ids)) == 30
    maildrop.release()


@pytest_twisted.ensureDeferred
async def test_unique_ids_are_permanent(store: Any) -> None:
    async def ids() -> dict[bytes, bytes]:
        maildrop = await store.open_maildrop(ALICE)
        found = {}
        for number in range(1, len(maildrop.sizes) + 1):
            found[await read(maildrop, number)] = maildrop.uidl(number)
        maildrop.release()
        return found

    for number in range(6):
        await deliver(store, b"A: %d\r\n" % number)
    before = await ids()
    maildrop = await store.open_maildrop(ALICE)
    await maildrop.update({2, 3, 6})
    await deliver(store, b"A: late\r\n")
    after = await ids()
    late = after.pop(b"A: late\r\n")
    assert after == {message: before[message]
                     for message in (b"A: 0\r\n", b"A: 3\r\n", b"A: 4\r\n")}
    assert late not in before.values()


@pytest_twisted.ensureDeferred
async def test_unique_ids_are_never_reused(store: Any) -> None:
    used: set[bytes] = set()
    for _ in range(10):
        await deliver(store, MESSAGE)
        maildrop = await store.open_maildrop(ALICE)
        assert maildrop.uidl(1) not in used
        used.add(maildrop.uidl(1))
        await maildrop.update([1])


# ---- update -----------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_update_removes_what_it_is_told_and_releases(store: Any) -> None:
    for number in range(5):
        await deliver(store, b"A: %d\r\n" % number)
    maildrop = await store.open_maildrop(ALICE)
    assert await maildrop.update([5, 1, 5]) is None
    assert await contents(store) == [b"A: 1\r\n", b"A: 2\r\n", b"A: 3\r\n"]


@pytest_twisted.ensureDeferred
async def test_update_of_nothing_releases(store: Any) -> None:
    await deliver(store, MESSAGE)
    maildrop = await store.open_maildrop(ALICE)
    assert await maildrop.update(frozenset()) is None
    assert await contents(store) == [MESSAGE]


@pytest_twisted.ensureDeferred
async def test_release_removes_nothing(store: Any) -> None:
    await deliver(store, MESSAGE)
    maildrop = await store.open_maildrop(ALICE)
    maildrop.release()
    assert await contents(store) == [MESSAGE]


@pytest_twisted.ensureDeferred
async def test_without_the_lock_nothing_is_removed(store: Any) -> None:
    await deliver(store, MESSAGE)
    await deliver(store, MESSAGE)
    maildrop = await store.open_maildrop(ALICE)
    maildrop.release()
    with pytest.raises(SomeNotRemoved) as caught:
        await maildrop.update([2, 1])
    assert caught.value.numbers == (1, 2)
    assert len(await contents(store)) == 2
    await maildrop.update([])


@pytest_twisted.ensureDeferred
async def test_update_goes_on_without_the_client(store: Any) -> None:
    """A connection lost after QUIT: what was asked for is done, then the lock is given back."""
    for _ in range(3):
        await deliver(store, MESSAGE)
    maildrop = await store.open_maildrop(ALICE)
    updating = maildrop.update([1, 2])
    updating.addErrback(lambda failure: failure.trap(CancelledError))
    updating.cancel()
    maildrop.release()
    for _ in range(500):
        try:
            maildrop = await store.open_maildrop(ALICE)
        except MaildropInUse:
            await pause(0.01)
            continue
        assert len(maildrop.sizes) == 1
        maildrop.release()
        return
    raise AssertionError("the lock was never given back")


# ---- without the lock -------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_view_needs_no_lock_and_takes_none(store: Any) -> None:
    assert list((await store.view(ALICE)).sizes) == []
    await deliver(store, MESSAGE)
    maildrop = await store.open_maildrop(ALICE)
    view = await store.view(ALICE)
    verifyObject(IView, view)
    assert (list(view.sizes), view.octets) == ([len(MESSAGE)], len(MESSAGE))
    assert view.uidl(1) == maildrop.uidl(1)
    assert view.uidls(1, 2) == maildrop.uidls(1, 2)
    assert await read(view, 1) == MESSAGE
    assert await read(view, 1, 0) == b"Subject: test\r\n\r\n"
    maildrop.release()
    again = await store.open_maildrop(ALICE)
    again.release()


@pytest_twisted.ensureDeferred
async def test_a_view_is_of_one_moment(store: Any) -> None:
    for number in range(3):
        await deliver(store, b"Subject: %d\r\n\r\n" % number)
    view = await store.view(ALICE)
    await deliver(store, MESSAGE)
    maildrop = await store.open_maildrop(ALICE)
    await maildrop.update([2])
    assert len(view.sizes) == 3
    assert await read(view, 3) == b"Subject: 2\r\n\r\n"
    with pytest.raises(MessageVanished):
        await read(view, 2)
    later = await store.view(ALICE)
    assert [await read(later, number) for number in (1, 2, 3)] == [
        b"Subject: 0\r\n\r\n", b"Subject: 2\r\n\r\n", MESSAGE]
