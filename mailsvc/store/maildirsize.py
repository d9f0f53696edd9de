"""The Maildir++ quota file, ``maildirsize``: how much a maildir holds, kept without reading it all.

::

    10000000S,1000C        the quota: octets and messages; either may be missing
           41230 17        octets and messages, to be summed up; a line for each change
           4096 1
          -4096 -1

Courier, Dovecot, Exim and others keep the same file.  Every change is appended in one write; nobody
locks.  So the sums may drift, and the rules make up for it: the file is made anew from the maildir
when it is missing, 5,120 octets long, malformed or for another quota than ours, and when it says
that there is no room while it has several lines or is 15 minutes old.

What counts is every message in new/ and cur/ of the maildir and of its folders (``.Name/``), except
the folder ``.Trash`` and messages flagged as deleted (T).

A quota kept so is a soft one: messages that several processes take at the same moment can take a
maildir past it (:mod:`mailsvc.store.quota`).

All functions do blocking I/O, and raise OSError where not said otherwise.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from twisted.logger import Logger

from mailsvc.store import filenames

_log = Logger()

_LIMIT = 5120
_STALE_SECONDS = 15 * 60

_DEFINITION = re.compile(rb"[0-9]{1,19}[A-Z](,[0-9]{1,19}[A-Z])*")
_ENTRY = re.compile(rb"\s*(-?[0-9]{1,19})\s+(-?[0-9]{1,19})\s*")


class Amount(NamedTuple):
    """A quota (0 is no limit) or a usage."""

    octets: int
    messages: int


NOTHING = Amount(0, 0)


class _Sums(NamedTuple):
    """What a sound ``maildirsize`` says."""

    quota: Amount
    usage: Amount
    lines: int
    changed: float


def has_room(home: bytes, quota: Amount, octets: int, coming: Amount = NOTHING) -> bool:
    """Whether the maildir *home* may take one more message of *octets* (0 when unknown).

    :param coming: what is on its way there, and not counted yet.
    """
    sums = _read(home)
    if sums is not None and sums.quota == quota:
        if fits(_sum(sums.usage, coming), quota, octets):
            return True
        if sums.lines == 1 and time.time() - sums.changed < _STALE_SECONDS:
            return False
    return fits(_sum(recalculate(home, quota), coming), quota, octets)


def record(home: bytes, octets: int, messages: int) -> None:
    """Add to the sums, if *home* has any.  Never fails: a file that cannot be kept is removed."""
    path = home + b"/maildirsize"
    line = b"%d %d" % (octets, messages)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
        try:
            # Padded as Courier does it, so that most lines are equally long.
            line = line.rjust(13) + b"\n"
            if os.write(fd, line) < len(line):
                os.unlink(path)
        finally:
            os.close(fd)
    except FileNotFoundError:
        pass
    except OSError as error:
        _log.warn("{path!r} will be made anew: {error}", path=path, error=error)
        with suppress(OSError):
            os.unlink(path)


def count(home: bytes) -> Amount:
    """What *home* holds; nothing when there is no such maildir."""
    octets = messages = 0
    for directory in _directories(home):
        for size in _sizes(directory):
            octets += size
            messages += 1
    return Amount(octets, messages)


def problem(home: bytes, quota: Amount) -> str:
    """What is wrong with the file that *home* has; empty when nothing is."""
    sums = _read(home)
    if sums is None:
        return "is malformed, or too long"
    if sums.quota != quota:
        return (f"is for another quota, {sums.quota.octets} octets and {sums.quota.messages} "
                "messages")
    there = count(home)
    if sums.usage != there:
        return (f"says {sums.usage.octets} octets in {sums.usage.messages} messages, and there are "
                f"{there.octets} in {there.messages}")
    return ""


def recalculate(home: bytes, quota: Amount) -> Amount:
    """Count what *home* holds, and write the file."""
    before = {path: _changed(path) for path in _directories(home)}
    usage = count(home)
    try:
        _write(home, quota, usage)
        # Somebody changed something meanwhile, counted or not: do not keep the result.
        if before != {path: _changed(path) for path in _directories(home)}:
            os.unlink(home + b"/maildirsize")
    except FileNotFoundError:
        pass  # no maildir yet, or another process recalculates as well
    return usage


def fits(usage: Amount, quota: Amount, octets: int) -> bool:
    """Whether one more message of *octets* (0 when unknown) fits beside *usage*."""
    wanted = Amount(max(octets, 1), 1)
    return all(not most or used + more <= most
               for used, more, most in zip(usage, wanted, quota, strict=True))


def _sum(one: Amount, other: Amount) -> Amount:
    return Amount(one.octets + other.octets, one.messages + other.messages)


def _read(home: bytes) -> _Sums | None:
    try:
        fd = os.open(home + b"/maildirsize", os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        changed = os.fstat(fd).st_mtime
        content = os.read(fd, _LIMIT)
    finally:
        os.close(fd)
    definition, *lines = content.split(b"\n")
    if len(content) == _LIMIT or len(lines) < 2 or lines.pop() or not _DEFINITION.fullmatch(
            definition):
        return None
    parts = {part[-1:]: int(part[:-1]) for part in definition.split(b",")}
    entries = [_ENTRY.fullmatch(line) for line in lines]
    octets = messages = 0
    for entry in entries:
        if entry is None:
            return None
        octets += int(entry[1])
        messages += int(entry[2])
    if octets < 0 or messages < 0:
        return None
    return _Sums(Amount(parts.get(b"S", 0), parts.get(b"C", 0)), Amount(octets, messages),
                 len(entries), changed)


def _write(home: bytes, quota: Amount, usage: Amount) -> None:
    definition = b",".join(
        b"%d%b" % (most, kind) for most, kind in zip(quota, (b"S", b"C"), strict=True) if most)
    temporary = b"%b/tmp/%d.P%dT%d.maildirsize" % (
        home, time.time_ns(), os.getpid(), threading.get_ident())
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(fd, definition + b"\n" + (b"%d %d" % usage).rjust(13) + b"\n")
        os.rename(temporary, home + b"/maildirsize")
    except OSError:
        os.unlink(temporary)
        raise
    finally:
        os.close(fd)


def _directories(home: bytes) -> Iterator[bytes]:
    """new/ and cur/ of the maildir and of every folder but the Trash, whether there or not."""
    yield home + b"/new"
    yield home + b"/cur"
    with suppress(FileNotFoundError), os.scandir(home) as entries:
        for entry in entries:
            if (entry.name.startswith(b".") and entry.name != b".Trash"
                    and entry.is_dir(follow_symlinks=False)):
                yield entry.path + b"/new"
                yield entry.path + b"/cur"


def _changed(directory: bytes) -> int:
    with suppress(FileNotFoundError):
        return os.stat(directory).st_mtime_ns
    return 0


def _sizes(directory: bytes) -> Iterator[int]:
    with suppress(FileNotFoundError), os.scandir(directory) as entries:
        for entry in entries:
            name = entry.name
            if (name.startswith(b".") or filenames.is_trashed(name)
                    or not entry.is_file(follow_symlinks=False)):
                continue
            size = filenames.stored_octets(name)
            if size is None:
                # It may have gone since.
                with suppress(FileNotFoundError):
                    yield entry.stat(follow_symlinks=False).st_size
            else:
                yield size
