"""Acting on the queue from another process: a Unix socket, one JSON object each way.

Only the process that holds the queue's lock changes its files.  ``mailsvc queue`` takes the lock
when nobody has it, and otherwise asks the one that does, at ``queue/control``: a request is one
line, ``{"action": …, "filter": [words], "route": …}``, and so is the answer, ``{"ids": [those
changed], "busy": [those being sent at this moment]}`` or ``{"error": …}``.

The socket belongs to the service's user, and nobody else may connect.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from twisted.logger import Logger

from mailsvc.journal import Journal
from mailsvc.localsocket import Answers
from mailsvc.queue import filter
from mailsvc.queue.claims import Ownership
from mailsvc.queue.message import QueuedMessage, Unreadable
from mailsvc.queue.recovery import recover, settle
from mailsvc.queue.routes import parse_route
from mailsvc.queue.runner import Runner
from mailsvc.queue.spool import Spool
from mailsvc.store import entries

_log = Logger("mailsvc.queue")

#: How long an answer is waited for, seconds; and until somebody who has the lock can be asked.
_PATIENCE, _TAKING_OVER = 120, 10
#: How many messages are removed together.
_GROUP = 1000


def answers(runner: Runner) -> Answers:
    """Who answers requests with *runner*."""
    async def answer(line: bytes) -> dict[str, Any]:
        try:
            action, words, route = read(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            return {"error": str(error)}
        ids, busy = await runner.act(action, words, route)
        _log.info("queue {action} filter={filter} messages={messages}", action=action,
                  filter=" ".join(words), messages=len(ids))
        return {"ids": ids, "busy": busy}

    return Answers(answer)


def read(request: dict[str, Any]) -> tuple[str, list[str], str]:
    """Action, filter and route of a request.

    :raises ValueError: it cannot be done; the text says why.
    """
    action, words, route = request["action"], list(request["filter"]), request.get("route", "")
    if action not in filter.ACTIONS:
        raise ValueError(f"no such action: {action!r}")
    filter.parse(words)
    if action == "reroute" and route:
        parse_route(route)
    return action, words, route


def request(root: Path, action: str, words: list[str], route: str, now: float
            ) -> tuple[list[str], list[str]]:
    """Do it: ourselves when no service has the queue, else through the one that has.

    :returns: the messages changed, and those that are being sent at this moment.
    :raises ValueError: it cannot be done.
    :raises OSError: the queue cannot be used, or its service does not answer.
    """
    read({"action": action, "filter": words, "route": route})
    ownership, deadline = Ownership(root), time.monotonic() + _TAKING_OVER
    while True:
        if ownership.acquire():
            try:
                return _directly(Spool(root), action, words, route, now)
            finally:
                ownership.release()
        try:
            return _asked(root, action, words, route)
        except (ConnectionError, FileNotFoundError):
            # Whoever had it has ended, or whoever has it has only begun.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _directly(spool: Spool, action: str, words: list[str], route: str, now: float
              ) -> tuple[list[str], list[str]]:
    meant = filter.parse(words)
    changed: list[str] = []
    busy: list[str] = []
    ended: list[QueuedMessage] = []
    with _journal(spool):
        settle(spool)
        for id in sorted(spool.ids()):
            claimed = spool.claims.take(id)
            try:
                message = spool.load(id)
                if meant(message, now):
                    (changed if claimed else busy).append(id)
                    if claimed and filter.act(message, action, route, now):
                        spool.save(message)
                    elif claimed:
                        ended.append(message)
                        claimed = False
            except (FileNotFoundError, Unreadable):
                continue
            finally:
                if claimed:
                    spool.claims.give_back(id)
        for start in range(0, len(ended), _GROUP):
            spool.end(*ended[start : start + _GROUP])
        for each in ended:
            spool.claims.give_back(each.id)
    return changed, busy


@contextmanager
def _journal(spool: Spool) -> Iterator[None]:
    """Have the queue as it was before a power loss, and remember what is removed from it."""
    journal = Journal(spool.journal)
    journal.open(partial(recover, spool))

    def removed(homes: Collection[bytes], places: Sequence[bytes],
                told: Callable[[bool], object]) -> None:
        journal.append([entries.removed(places)])
        told(True)

    spool.removed = removed
    try:
        yield
    finally:
        segment = journal.end()
        if segment is not None:
            # It stays for the sake of processes that took these messages and have not ended.
            journal.settle(segment)
        journal.close()


def _asked(root: Path, action: str, words: list[str], route: str) -> tuple[list[str], list[str]]:
    # By way of a descriptor: the path of a Unix socket has at most 107 octets.
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_PATIENCE)
            connection.connect(f"/proc/self/fd/{directory}/control")
            connection.sendall(json.dumps(
                {"action": action, "filter": words, "route": route}).encode() + b"\n")
            with connection.makefile("rb") as stream:
                line = stream.readline()
    finally:
        os.close(directory)
    if not line:
        raise ConnectionResetError(errno.ECONNRESET, "the service ended before it answered")
    answer = json.loads(line)
    if "error" in answer:
        raise ValueError(answer["error"])
    return answer["ids"], answer["busy"]
