"""Messages out of an mbox file.

A message begins behind a line ``From SENDER DATE`` at the start of the file or anywhere later, and
ends before the empty line in front of the next.  ``>From `` in its text loses one ">" (mboxrd, and
mboxo as far as that can be undone).  The date is that of the From line; flags are those of the
fields ``Status`` and ``X-Status``.  The message in which UW-IMAP keeps its own data is left out.

The file is read twice: to see what there is, and to bring it.  A message's key is a hash of it, so
the file may grow, and lose messages, between imports.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from email.utils import mktime_tz, parsedate_tz
from pathlib import Path

from mailsvc.importing.source import Offer, SourceFailure, keyed

_LINE = 65_536

_FROM = re.compile(
    rb"From .*?((?:Mon|Tue|Wed|Thu|Fri|Sat|Sun),? +[A-Za-z0-9]{1,3} +[A-Za-z0-9]{1,3} +"
    rb"\d{1,2}:\d\d.*\b\d{4}\b.*)\r?\n")
_QUOTED = re.compile(rb">+From ")
_STATUS = re.compile(rb"(?:X-)?Status:[ \t]*([A-Za-z]*)[ \t]*\r?\n", re.IGNORECASE)
_FLAGS = {"R": "S", "A": "R", "F": "F", "T": "D"}
_INTERNAL = b"Subject: DON'T DELETE THIS MESSAGE -- FOLDER INTERNAL DATA"


class Mbox:
    """The mbox file *path*, kept from changing by the locks of fcntl(2) and flock(2) meanwhile.

    :raises OSError: it cannot be opened.
    :raises SourceFailure: another program has it locked.
    """

    def __init__(self, path: Path) -> None:
        self.name = f"mbox:{path.resolve()}"
        self.notes: list[str] = []
        self._path = path
        self._file = path.open("rb")
        try:
            fcntl.lockf(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise SourceFailure(f"{path} is in use by another program; try again later") from None

    def offers(self) -> Sequence[Offer]:
        found = list(self._index())
        return [Offer(key, octets, when, flags, place=(start, octets))
                for (key, _), (_, start, octets, when, flags) in zip(
                    keyed(each[0] for each in found), found, strict=True)]

    def fetch(self, offers: Iterable[Offer]) -> Iterator[tuple[Offer, Iterable[bytes]]]:
        for offer in offers:
            yield offer, self._text(*offer.place)

    def close(self) -> None:
        self._file.close()

    def _index(self) -> Iterator[tuple[str, int, int, float | None, str]]:
        """Hash, start, octets, date and flags of each message."""
        self._file.seek(0)
        first = self._file.readline(_LINE)
        if not first:
            return
        if not (separator := _FROM.fullmatch(first)):
            raise SourceFailure(f"{self._path} is no mbox: it begins with {first[:40]!r}, expected "
                                "a line such as \"From a@example.org Sat Jan  3 01:05:34 1996\"")
        while separator:
            when = _date(separator[1])
            digest = hashlib.sha256(separator[0])
            start = at = self._file.tell()
            flags: set[str] = set()
            in_header = whole = True  # whole: the line begins here
            internal, blank, separator = False, 0, None
            ends = b""  # line ends, which count only when something follows
            while line := self._file.readline(_LINE):
                if whole and line.startswith(b"From ") and (separator := _FROM.fullmatch(line)):
                    break
                if whole and in_header:
                    in_header = bool(line.strip(b"\r\n"))
                    internal |= line.startswith(_INTERNAL)
                    if status := _STATUS.fullmatch(line):
                        flags |= {_FLAGS[each] for each in status[1].decode() if each in _FLAGS}
                text = line.rstrip(b"\r\n")
                if text:
                    digest.update(ends + text)
                    ends = b""
                ends += line[len(text):]
                at += len(line)
                blank = len(line) if whole and line in (b"\n", b"\r\n") else 0
                whole = line.endswith(b"\n")
            if internal:
                self.notes.append("left out: a message in which another program keeps its own data")
            else:
                yield (digest.hexdigest(), start, at - start - blank, when,
                       "".join(sorted(flags)))

    def _text(self, start: int, octets: int) -> Iterator[bytes]:
        self._file.seek(start)
        whole = True
        while octets and (line := self._file.readline(min(octets, _LINE))):
            octets -= len(line)
            yield line[1:] if whole and _QUOTED.match(line) else line
            whole = line.endswith(b"\n")


def _date(text: bytes) -> float | None:
    # parsedate_tz wants the zone behind the year, and knows asctime(3) too.
    found = parsedate_tz(re.sub(rb"([+-]\d{4}) (\d{4})", rb"\2 \1", text).decode("latin-1"))
    try:
        return None if found is None else float(mktime_tz(found))
    except (ValueError, OverflowError):
        return None
