"""Fills a trace with a million events and times what ``mailsvc trace`` does with it.

    python -m tests.trace_load [EVENTS]

A message has five events: accepted, taken by the next host, done, fetched, removed.  There are a
thousand accounts and fifty thousand correspondents elsewhere.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from mailsvc.mail import new_id
from mailsvc.tracing.archive import BATCH, Reader, Writer
from mailsvc.tracing.events import Entry, Kind, folded
from mailsvc.tracing.limits import TraceSettings
from mailsvc.tracing.story import story_of, told_of

ACCOUNTS, STRANGERS = 1000, 50_000
KINDS: dict[str, Kind] = {}


def events_of_a_message(chance: random.Random, now: float) -> tuple[str, str, list[Entry]]:
    """Its id, its Message-ID, and what is logged of it."""
    id, connection, fetch = new_id(), new_id(), new_id()
    account = f"user{chance.randrange(ACCOUNTS)}@example.org"
    stranger = f"correspondent{chance.randrange(STRANGERS)}@example{chance.randrange(50)}.net"
    client = f"192.0.2.{chance.randrange(256)}"
    message_id = f"<{chance.randrange(1 << 60):x}.{chance.randrange(1 << 60):x}@mail.example.net>"
    pop3 = {"connection": fetch, "user": account, "client": client,
            "messages": [f"{int(now)}.{id}.mx.example.org"]}

    def entry(module: str, level: str, form: str, **fields: Any) -> Entry:
        kind = KINDS.setdefault(form, Kind(f"mailsvc.{module}", level, form, fields))
        return Entry(now, kind, list(fields.values()))

    return id, message_id, [
        entry("smtp", "info",
              "{id} accepted sender={sender} recipients={recipients} size={size} client={client} "
              "hello={hello} connection={connection} accounts={accounts} queued={queued}",
              accounts=[account], arriving=1200, checks=200, client=client,
              connection=connection, hello="client.example.net", id=id, message_id=message_id,
              queued=[stranger], recipients=[account, stranger], sender=stranger, size=4096,
              storing=6100, tls="", user=""),
        entry("queue", "info",
              "{id} {state} recipient={recipient} sender={sender} host={host} attempt={attempt}: "
              "{reply}", attempt=1, host="mx.example.net", id=id, recipient=stranger,
              reply=f"250 2.0.0 Ok: queued as {chance.randrange(1 << 40):X}", sender=account,
              state="relayed", status="2.0.0"),
        entry("queue", "info", "{id} done attempts={attempts}", attempts=1, id=id),
        entry("pop3", "debug", "{connection} retrieved {messages} user={user} client={client}",
              since=now, **pop3),
        entry("pop3", "debug", "{connection} removed {messages} user={user} client={client}",
              **pop3)]


def fill(directory: Path, events: int,
         chance: random.Random) -> tuple[list[tuple[str, str]], float]:
    """Write so many *events*; ids and Message-IDs of some messages, and the seconds of processor
    that it took to write.
    """
    some: list[tuple[str, str]] = []

    def all_of_them() -> Iterator[Entry]:
        while True:
            id, message_id, entries = events_of_a_message(chance, time.time())
            if chance.random() < 0.001:
                some.append((id, message_id))
            yield from entries

    source, writer = all_of_them(), Writer(directory, TraceSettings(octets=1 << 40))
    spent = 0.0
    for begun in range(0, events, BATCH):
        batch = list(islice(source, min(BATCH, events - begun)))
        began = time.process_time()
        writer.write(batch)
        spent += time.process_time() - began
    writer.close()
    return some, spent


def look_up(directory: Path, what: str, is_id: bool) -> int:
    """As the command does, files opened anew; how many steps were found."""
    with Reader(directory) as reader:
        ids = [what] if is_id else told_of(reader.newest(what), 10)
        stories = [story_of(reader, id) for id in ids]
        return sum(len(story.steps) for story in stories if story is not None)


def timed(times: int, work: Callable[[int], int]) -> str:
    spent = []
    for number in range(times):
        began = time.perf_counter()
        assert work(number), "nothing was found"
        spent.append(time.perf_counter() - began)
    spent.sort()
    return f"median {1000 * spent[times // 2]:.1f} ms, longest {1000 * spent[-1]:.1f} ms"


def main() -> None:
    events = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    chance = random.Random(1)
    with tempfile.TemporaryDirectory(dir=".") as place:
        directory = Path(place) / "trace"
        some, spent = fill(directory, events, chance)
        octets = sum(each.stat().st_size for each in directory.iterdir())
        print(f"{events:,} events, {octets / events:.0f} octets each, in "
              f"{len(list(directory.iterdir()))} files; {1e6 * spent / events:.1f} µs of "
              "processor to write one")
        times = min(100, len(some))
        chance.shuffle(some)
        print("by id:         ", timed(times, lambda n: look_up(directory, some[n][0], True)))
        print("by Message-ID: ", timed(times, lambda n: look_up(directory, some[n][1], False)))
        print("by address:    ", timed(times, lambda n: look_up(
            directory, folded(f"user{chance.randrange(ACCOUNTS)}@example.org"), False)))


if __name__ == "__main__":
    main()
