"""Messages from a POP3 server, with the unique-ids that its clients know.

Nothing is deleted there.  POP3 tells no dates: those of the newest Received field are taken.  Where
the server offers PIPELINING, sixteen messages are on their way at once.

Everything here blocks; the connection lives in the reactor's thread (:mod:`mailsvc.blocking`).
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import chain, repeat
from typing import Any

from mailsvc.blocking import run
from mailsvc.fetching import Fetcher, FetchFailure
from mailsvc.importing.source import Offer, SourceFailure, keyed
from mailsvc.store import filenames

_AHEAD = 16
_BLOCK = 256 * 1024
#: How much of a message is kept in memory.
_SMALL = 1024 * 1024

#: A function that dials and logs in, in the reactor's thread.
Connect = Callable[[], Any]


class POP3:
    """A maildrop, once *connect* has logged in to it.

    :param name: of user and server.
    :raises FetchFailure: it could not.
    """

    def __init__(self, name: str, connect: Connect) -> None:
        self.name = name
        self.notes: list[str] = []
        self._client: Fetcher = run(connect)

    def offers(self) -> Sequence[Offer]:
        async def ask() -> tuple[list[tuple[int, str]], dict[int, int]]:
            return await self._client.unique_ids(), await self._client.sizes()

        try:
            listed, sizes = run(ask)
        except FetchFailure as failure:
            if failure.kind == "refused":
                raise SourceFailure(
                    f"the server does not tell unique-ids ({failure.text}), so messages could not "
                    "be told apart; get them with `mailsvc fetch --into mbox:FILE`, and import that"
                ) from None
            raise SourceFailure(failure.text) from None
        found = []
        for (key, first), (number, id) in zip(
                keyed(id for _, id in listed), listed, strict=True):
            # RFC 1939 §7 forbids that two have one id; both are brought all the same.
            unique_id = id.encode("ascii", "replace")
            found.append(Offer(key, sizes.get(number, 0), place=number,
                               unique_id=unique_id if first and filenames.is_unique_id(unique_id)
                               else None))
        return found

    def fetch(self, offers: Iterable[Offer]) -> Iterator[tuple[Offer, Iterable[bytes]]]:
        ahead = _AHEAD if "PIPELINING" in self._client.capabilities else 1
        waiting: deque[tuple[Offer, Any, Future[None]]] = deque()
        more: Iterable[Offer | None] = chain(offers, repeat(None))
        for offer in more:
            if offer is not None:
                waiting.append((offer, *run(self._begin, offer.place)))
            if not waiting:
                return
            if offer is None or len(waiting) >= ahead:
                first, file, arrived = waiting.popleft()
                with file:
                    try:
                        arrived.result()
                    except FetchFailure as failure:
                        raise SourceFailure(f"message {first.place}: {failure.text}") from None
                    file.seek(0)
                    yield first, iter(partial(file.read, _BLOCK), b"")

    def close(self) -> None:
        async def quit() -> None:
            try:
                await self._client.quit()
            except FetchFailure:
                self._client.close()

        run(quit)

    def _begin(self, number: int) -> tuple[Any, Future[None]]:
        file = tempfile.SpooledTemporaryFile(_SMALL)  # noqa: SIM115 - fetch() closes it
        arrived: Future[None] = Future()
        asked = self._client.retrieve(number, file.write)
        asked.addCallbacks(lambda _: arrived.set_result(None),
                           lambda failure: arrived.set_exception(failure.value))
        return file, arrived
