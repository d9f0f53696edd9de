"""What was lost with processes that are gone is put back: by their journals and their receipts.

Of the journals, after a power loss:

* The machine is still the one that ran then: whatever was written is there.  Nothing is replayed.
* It was started anew since: a message that was accepted and has not ended is put into the queue if
  it is not there, and replaced if it is not whole; one that has ended is removed.

What became of recipients is not in the journal: ``state/ID`` was synced before anything else.  To
be stopped in the middle and done again changes nothing.

Of the receipts, after any end: recipients whom the next host has are not tried again.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from twisted.logger import Logger

from mailsvc.journal import Orphan
from mailsvc.queue.message import Unreadable
from mailsvc.queue.receipts import recall
from mailsvc.queue.spool import Spool
from mailsvc.store.replay import content_of, read

_log = Logger("mailsvc.queue")


def recover(spool: Spool, orphans: Sequence[Orphan]) -> None:
    """Do what *orphans* say, make it durable, and log what was done; for ``Journal.open``.

    :raises OSError: it could not all be done.
    """
    found = read(orphans, spool.path)
    restored = removed = 0
    for place, content in found.lost.items():
        path = spool.path(place)
        if content is None:
            removed += spool.unlink(path)
        elif content_of(path) != content:
            spool.restore(path, content)
            restored += 1
    spool.checkpoint((), list(map(spool.path, found.delivered)))
    _log.info(
        "recovered {entries} entries of {journals} segments of the queue's journal after {event}: "
        "messages restored {restored}, removed again {removed}",
        entries=found.entries, journals=len(orphans), restored=restored, removed=removed,
        event="the machine was restarted" if found.rebooted else "a process was killed")


def settle(spool: Spool, patience: float = 0) -> None:
    """Have the state of messages say what those processes had noted that are gone.

    :param patience: as of :meth:`mailsvc.queue.receipts.Receipts.left`.
    :raises OSError: it could not all be done; what is left is there for another time.
    """
    with spool.receipts.left(patience) as left:
        for id, taken in left.items():
            # One that somebody works on was begun after that.
            if spool.claims.take(id):
                try:
                    with suppress(FileNotFoundError, Unreadable):
                        message = spool.load(id)
                        if recall(message, taken):
                            spool.save(message)
                            _log.info("{id} had been taken by the next host", id=id)
                finally:
                    spool.claims.give_back(id)
