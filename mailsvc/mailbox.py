"""A mailbox as its owner sees it beside POP3: in the console, and by the API.

Reading takes no lock and changes nothing: a POP3 session that is open sees nothing of it, and
whoever reads sees the messages as they are at that moment.  Deletion is POP3's: it opens the
maildrop, with its lock, removes the message and closes it.  What was deleted is put back under that
lock as well: no mail program finds something there in the middle of its session, and what is asked
for twice comes back once.  While another session has it, nothing is deleted or put back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IReactorTime
from twisted.internet.task import deferLater
from zope.interface import implementer

from mailsvc.errors import MessageVanished
from mailsvc.interfaces import IMailboxStore, IView
from mailsvc.mail import Account
from mailsvc.store.threads import Threads
from mailsvc.store.undeletion import Undeletion

#: Most octets of a header that are read.
_HEADER_OCTETS = 65_536
#: How many headers are read in one turn of the reactor.
_TURN = 5


@implementer(IConsumer)
class _Gathered:
    """Gathers a message, one block in each turn of the reactor.

    :param most: octets that are kept of it.
    """

    def __init__(self, most: int, clock: IReactorTime) -> None:
        self.data = bytearray()
        self._most = most
        self._clock = clock
        self._producer: Any = None

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self._producer = producer
        self._go_on()

    def unregisterProducer(self) -> None:
        self._producer = None

    def write(self, data: bytes) -> None:
        self.data += data[:max(0, self._most - len(self.data))]
        if self._producer is not None:
            self._clock.callLater(0, self._go_on)

    def _go_on(self) -> None:
        if self._producer is not None:
            self._producer.resumeProducing()


class Mailbox:
    """The mailbox of *account*, who receives mail.

    :param threads: where whatever looks at all messages is done.
    """

    def __init__(self, store: IMailboxStore, account: Account, threads: Threads,
                 reactor: Any) -> None:
        self._store = store
        self._account = account
        self._threads = threads
        self._reactor = reactor

    async def view(self) -> IView:
        """What is there now; raises TemporaryFailure."""
        return await self._store.view(self._account)

    async def find(self, unique_id: str) -> tuple[IView, int]:
        """What is there, and the number of the message that is meant.

        :raises MessageVanished: it is gone.
        """
        view = await self.view()
        return view, await self._threads.run(_number_of, view, unique_id)

    async def header(self, view: IView, number: int) -> bytes:
        """A message's header; that of one that has gone meanwhile is empty."""
        gathered = _Gathered(_HEADER_OCTETS, self._reactor)
        read: Deferred[Any] = view.read(number, gathered, 0)
        read.addErrback(lambda failure: failure.trap(MessageVanished))
        await read
        return bytes(gathered.data)

    async def headers(self, view: IView, numbers: Iterable[int]) -> list[bytes]:
        """Those of several."""
        headers = []
        for number in numbers:
            headers.append(await self.header(view, number))
            if len(headers) % _TURN == 0:
                await deferLater(self._reactor, 0)
        return headers

    async def whole(self, view: IView, number: int, most: int) -> bytes:
        """A message, or its first *most* octets; raises MessageVanished."""
        gathered = _Gathered(most, self._reactor)
        await view.read(number, gathered)
        return bytes(gathered.data)

    async def delete(self, unique_id: str) -> None:
        """Remove a message.

        :raises MessageVanished: it is gone.
        :raises mailsvc.errors.MaildropInUse: a session has the mailbox.
        """
        maildrop = await self._store.open_maildrop(self._account)
        try:
            number = await self._threads.run(_number_of, maildrop, unique_id)
            await maildrop.update({number})
        finally:
            maildrop.release()

    async def put_back(self, undeletion: Undeletion, unique_ids: Collection[str]) -> list[str]:
        """Put deleted messages of this account back; the unique-ids of those that there were.

        :raises OSError: some are not back.
        :raises mailsvc.errors.MaildropInUse: a session has the mailbox.
        """
        def do() -> list[str]:
            meant = [each for each in undeletion.messages() if each.unique_id in unique_ids]
            undeletion.put_back(meant)
            return [each.unique_id for each in meant]

        maildrop = await self._store.open_maildrop(self._account)
        try:
            return await self._threads.run(do)
        finally:
            maildrop.release()


def _number_of(view: IView, unique_id: str) -> int:
    """The number of the message with that unique-id.  It looks at all."""
    uidls: list[bytes] = view.uidls(1, len(view.sizes) + 1)
    try:
        return uidls.index(unique_id.encode()) + 1
    except ValueError:
        raise MessageVanished("it is gone") from None
