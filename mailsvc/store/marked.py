"""Marked names of message files: sorted, and taken many at a time.

A name is *marked* with a NUL, which no file name has, behind its unique part.  Sorted like this,
all names with one unique part stand together, whatever fields and flags follow.

No step holds the interpreter lock for more than a few milliseconds: names are read and sorted in
runs, and what thousands of them say is found by one regular expression, where all are as most are.
"""

from __future__ import annotations

import operator
import os
import re
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from itertools import groupby, islice

from mailsvc.store import filenames

#: How many names are sorted at a time.
RUN = 4096

#: Names joined by "/", each with a ",S=", no "," or ":" before it and no "." in the beginning.
_SIZE_FIRST = re.compile(rb"(?!\.)[^/,:]*,S=[^/]*(?:/(?!\.)[^/,:]*,S=[^/]*)*+")
#: A marked name and a "/", when it is as most are: stored octets, sent octets.  As
#: ``filenames.unique_id`` and its neighbours have it.
_USUAL = re.compile(
    rb"(?<![^/])[\x21-\x2e\x30-\x7e]{1,70}\0,S=([0-9]{1,18}),W=([0-9]{1,18})"
    rb"(?:,UIDL=[\w-]*)?(?::[^/]*)?/")
#: The same of a message that is sent as it is stored, which takes half the time.
_UNCHANGED = re.compile(
    rb"(?<![^/])[\x21-\x2e\x30-\x7e]{1,70}\0,S=([0-9]{1,18}),W=\1"
    rb"(?:,UIDL=[\w-]*)?(?::[^/]*)?/")


def mark(name: bytes) -> bytes:
    """*name*, marked."""
    cut = len(filenames.unique_part(name))
    return name[:cut] + b"\0" + name[cut:]


def marks(names: list[bytes]) -> list[bytes]:
    """The marked names of those that are messages', which begin with no "."."""
    joined = b"/".join(names)
    # Where the first "," or ":" of each begins its one ",S=", the mark belongs before that.
    if _SIZE_FIRST.fullmatch(joined) and joined.count(b",S=") == len(names):
        return joined.replace(b",S=", b"\0,S=").split(b"/")
    return [mark(name) for name in names if not name.startswith(b".")]


def unmark(marked: bytes) -> bytes:
    """The name as the file has it."""
    return marked.replace(b"\0", b"")


def comes_with_id(marked: bytes) -> bool:
    """Whether its message came with a unique-id of its own."""
    return b",UIDL=" in marked


def head_of(marked: bytes) -> bytes:
    """The unique part of a name."""
    return marked.partition(b"\0")[0]


def runs_of(directory: bytes) -> Iterator[list[bytes]]:
    """The marked names of the messages in *directory*, in sorted lists of bounded length."""
    with os.scandir(directory) as entries:
        while some := list(islice(entries, RUN)):
            run = [entry.name for entry in some if entry.is_file(follow_symlinks=False)]
            marked = marks(run)
            marked.sort()
            yield marked


def merged(runs: list[list[bytes]]) -> list[bytes]:
    """All names of sorted lists, sorted: two lists at a time, so that no step takes long."""
    while len(runs) > 1:
        # sort() finds that there are two runs, and merges them.
        if len(runs) % 2:
            runs.append([])
        runs = [sorted(one + other) for one, other in zip(runs[::2], runs[1::2], strict=True)]
    return runs[0] if runs else []


def usual_sizes(names: list[bytes]) -> array[int] | None:
    """The sizes of sorted, marked *names* that are all as most are; None if one is not.

    As most are: with ``,S=`` and ``,W=`` and no further field behind a unique part that no other
    name has and that will do for a unique-id.
    """
    sizes = array("Q")
    last = b""
    for start in range(0, len(names), RUN):
        run = names[start : start + RUN]
        # No head stands twice, since each is less than the next.
        heads = [name.partition(b"\0")[0] for name in run]
        if last == heads[0] or any(map(operator.eq, heads, heads[1:])):
            return None
        last = heads[-1]
        octets = _usual_octets(b"/".join(run) + b"/", len(run))
        if octets is None:
            return None
        sizes += octets
    return sizes


def _usual_octets(joined: bytes, number: int) -> array[int] | None:
    """The sizes in so many marked names, a "/" behind each; None if one is not as most are."""
    unchanged = _UNCHANGED.findall(joined)
    if len(unchanged) == number:
        return array("Q", map(int, unchanged))
    found = [(int(stored), int(sent)) for stored, sent in _USUAL.findall(joined)]
    if len(found) != number or not all(
            stored <= sent <= 2 * stored + 2 for stored, sent in found):
        return None
    return array("Q", (sent for _, sent in found))


def holds(run: list[bytes], name: bytes) -> bool:
    """Whether *name* is in a sorted list."""
    place = bisect_left(run, name)
    return place < len(run) and run[place] == name


def of_one_id(names: list[bytes], given: bool) -> list[list[bytes]]:
    """Of sorted, marked *names* those that make one unique-id, together.

    :param given: whether a message came with its unique-id, so that any two can have the same.
    """
    shared = []
    for same in [names] if given else _of_one_head(names):
        ids = [filenames.unique_id(unmark(marked)) for marked in same]
        if len(set(ids)) < len(ids):
            by_id: dict[bytes, list[bytes]] = {}
            for id, marked in zip(ids, same, strict=True):
                by_id.setdefault(id, []).append(marked)
            shared += [each for each in by_id.values() if len(each) > 1]
    return shared


def _of_one_head(names: list[bytes]) -> Iterator[list[bytes]]:
    """Of sorted, marked *names* those that have one unique part, where several have it."""
    for _, group in groupby(names, head_of):
        same = list(group)
        if len(same) > 1:
            yield same
