"""What a power loss took from the queue is put back, from the journals of processes that are gone.

* The machine is still the one that ran then: whatever was written is there.  Nothing is replayed.
* It was started anew since: a message that was accepted and has not ended is put into the queue if
  it is not there, and replaced if it is not whole; one that has ended is removed.

What became of recipients is not in the journal: ``state/ID`` was synced before anything else.  To
be stopped in the middle and done again changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from twisted.logger import Logger

from mailsvc.journal import Orphan
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
