"""A write-ahead journal: records that are durable when :meth:`Journal.append` returns.

Many records become durable by one write and one flush, in files that are mostly overwritten in
place, so that a flush has no metadata to write.  What the records mean is their owner's business:
he does what they say, makes that durable at leisure, and then frees the segment they are in.

On disk::

    DIR/lock             held while somebody recovers or takes a slot
    DIR/0.lock           held by the process whose segments are 0.0, 0.1, …; the same for 1, 2, …
    DIR/0.0              a segment

A process takes the first slot that nobody holds.  flock(2) goes with the process that holds it, so
segments of a slot without holder are orphans: :meth:`Journal.open` gives them to be replayed,
before it takes any slot, and frees them.

A segment in use begins with a block that holds a header: magic, whether it is settled, the boot of
the machine in which it was begun, a random salt, a checksum.  A free one begins with zeros.  Behind
it lie batches, each at the beginning of a block of 4,096 octets, so that no block that is durable
is written again::

    record   length (4), number in the segment (8), CRC-32 of salt, number and payload (4), payload
    batch    records, then zeros to the end of the block

Reading ends at the first thing that is no record with the number that must come next: a batch that
was torn by a power loss, or what an earlier use of the segment left, which has another salt.  Only
the last batch can be torn, because nothing is appended to a segment behind one that failed.  After
a write or flush that fails, the kernel may have dropped pages that it calls clean: the segment is
ended, and whoever tries again does so in another.

All methods block.  One thread may append while another frees.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from uuid import UUID

BLOCK = 4096
#: A segment grows by this, written with zeros, so that most flushes find its size unchanged.
STEP = 1024 * 1024

_MAGIC = b"mailsvc"
_HEADER = struct.Struct("<7s?16s8sI")
_RECORD = struct.Struct("<IQI")
_NUMBER = struct.Struct("<Q")
_LENGTH = struct.Struct("<I")
_FILE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW


class JournalFull(OSError):
    """Every segment is in use."""

    def __init__(self) -> None:
        super().__init__(errno.EAGAIN, "every segment of the journal waits for its checkpoint")


@dataclass(eq=False, slots=True)
class Segment:
    """A segment in use.

    :ivar path: its file.
    :ivar salt: what tells this use of it from others.
    """

    path: bytes
    fd: int
    salt: bytes
    at: int = BLOCK
    records: int = 0


@dataclass(frozen=True, slots=True)
class Orphan:
    """What a process that is gone left in a segment.

    :ivar path: the segment's file.
    :ivar rebooted: whether the machine was started anew since: only then can anything that was
        written, to whatever file, have been lost.
    :ivar settled: whether :meth:`Journal.settle` was called.
    :ivar payloads: of its records, in order.
    """

    path: bytes
    rebooted: bool
    settled: bool
    payloads: tuple[bytes, ...]


def this_boot() -> bytes:
    """What identifies the time since the machine was started; 16 octets."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return UUID(file.read().strip()).bytes


@dataclass(slots=True)
class Journal:
    """The journal of one process in *directory*, which other processes may share.

    :param most: how many octets a segment may have.
    :param segments: how many segments there may be.
    :param boot: the time since the machine was started.
    """

    directory: bytes
    most: int = 16 * STEP
    segments: int = 4
    boot: bytes = field(default_factory=this_boot)
    _slot: int = -1
    _lock: int = -1
    _active: Segment | None = None
    _free: list[bytes] = field(default_factory=list)
    _freeing: threading.Condition = field(default_factory=threading.Condition)

    @property
    def in_use(self) -> int:
        """How many segments hold what is not durable without them."""
        return self.segments - len(self._free) if self._lock >= 0 else 0

    def open(self, replay: Callable[[Sequence[Orphan]], object]) -> None:
        """Have orphans replayed, free them, and take a slot.

        Others that open a journal in this directory meanwhile wait.

        :param replay: is given all orphans at once, when there are some, and has made durable what
            they say when it returns.  What it raises is raised here, and the orphans stay.
        """
        with suppress(FileExistsError):
            os.mkdir(self.directory, 0o700)
            _sync_directory(os.path.dirname(self.directory))
        with _locked(self.directory + b"/lock"):
            unheld = self._unheld()
            try:
                paths = [path for slot in unheld for path in self._paths(slot)]
                orphans = [orphan for path in paths if (orphan := self._read(path)) is not None]
                if orphans:
                    replay(orphans)
                    # In two rounds: another power loss amid them must not leave what one says and
                    # forget what another says of the same.
                    for change in self._settle_orphan, _erase:
                        for orphan in orphans:
                            with _opened(orphan.path) as fd:
                                change(fd)
                slot = min(unheld)
                self._free = [b"%b/%d.%d" % (self.directory, slot, n)
                              for n in range(self.segments)]
                for path in self._free:
                    os.close(os.open(path, _FILE, 0o600))
                _sync_directory(self.directory)
                self._slot, self._lock = slot, unheld.pop(slot)
            finally:
                for lock in unheld.values():
                    os.close(lock)

    def fits(self, octets: int) -> bool:
        """Whether the segment in use can take a batch with payloads of so many octets, records
        counted at 16 more; where there is none, whether any could.
        """
        at = BLOCK if self._active is None else self._active.at
        return at + octets <= self.most

    def append(self, payloads: Sequence[bytes]) -> Segment:
        """Make *payloads* durable; return the segment they are in.

        :raises JournalFull: when there is no segment free; nothing was written.
        :raises OSError: they may be durable or not.  :meth:`end` the segment.
        """
        try:
            if self._active is None:
                self._active = self._begin()
            self._write(self._active, payloads)
        except OSError as error:
            if error.filename is None:
                error.filename = self.directory
            raise
        return self._active

    def end(self) -> Segment | None:
        """Append no more to the segment in use, and return it, to be freed some time."""
        segment, self._active = self._active, None
        return segment

    def settle(self, segment: Segment) -> None:
        """Note in *segment*, durably, that it is kept for the sake of others only.

        What that means is its owner's business; here it is then none of the :meth:`others`.
        """
        write_at(segment.fd, self._header(segment, settled=True), 0)
        os.fdatasync(segment.fd)

    def _settle_orphan(self, fd: int) -> None:
        """As :meth:`settle`, of a segment that somebody else began."""
        _, _, _, salt, _ = _HEADER.unpack(os.pread(fd, _HEADER.size, 0))
        self.settle(Segment(b"", fd, salt))

    def free(self, segment: Segment) -> None:
        """Forget what is in *segment*, durably; it has been ended.

        :raises OSError: it is not free, and this may be tried again.
        """
        _erase(segment.fd)
        os.close(segment.fd)
        with self._freeing:
            self._free.append(segment.path)
            self._freeing.notify_all()

    def wait(self, seconds: float) -> bool:
        """Wait for a segment to be freed; whether there is one."""
        with self._freeing:
            return self._freeing.wait_for(lambda: bool(self._free), seconds)

    def others(self) -> set[tuple[bytes, bytes]]:
        """The segments of other slots that are in use and not settled: path and salt.

        Those that have no process count until somebody has recovered them.
        """
        ours = b"%d." % self._slot
        found = set()
        for name in os.listdir(self.directory):
            if name.startswith(ours) or name.endswith(b"lock"):
                continue
            path = self.directory + b"/" + name
            with open(path, "rb") as file:
                header = file.read(_HEADER.size)
            if len(header) == _HEADER.size and header.strip(b"\0"):
                _, settled, _, salt, _ = _HEADER.unpack(header)
                if not settled:
                    found.add((path, salt))
        return found

    def awaits_recovery(self) -> bool:
        """Whether a segment is of before the machine was started anew: nobody has replayed it."""
        with suppress(FileNotFoundError):
            for name in os.listdir(self.directory):
                with open(self.directory + b"/" + name, "rb") as file:
                    header = file.read(_HEADER.size)
                if len(header) == _HEADER.size and header.startswith(_MAGIC):
                    _, _, boot, _, checksum = _HEADER.unpack(header)
                    if boot != self.boot and checksum == zlib.crc32(header[:-4]):
                        return True
        return False

    def close(self) -> None:
        """Give the slot back; what has not been freed is an orphan then."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # ---- writing ----

    def _begin(self) -> Segment:
        with self._freeing:
            if not self._free:
                raise JournalFull
            path = self._free.pop(0)
        try:
            return Segment(path, os.open(path, _FILE, 0o600), os.urandom(8))
        except BaseException:
            with self._freeing:
                self._free.append(path)
            raise

    def _write(self, segment: Segment, payloads: Sequence[bytes]) -> None:
        blocks = []
        at, records = segment.at, segment.records
        if not records:
            blocks.append(self._header(segment, settled=False))
            at = 0
        for number, payload in enumerate(payloads, records):
            blocks += _RECORD.pack(len(payload), number,
                                   _checksum(segment.salt, number, payload)), payload
        data = b"".join(blocks)
        end = -(-(at + len(data)) // BLOCK) * BLOCK
        size = os.fstat(segment.fd).st_size
        # Past its end it grows, once in a while, with zeros behind the records.
        until = max(end, min(self.most, end + STEP)) if end > size else end
        write_at(segment.fd, data.ljust(until - at, b"\0"), at)
        os.fdatasync(segment.fd)
        segment.at, segment.records = end, records + len(payloads)

    def _header(self, segment: Segment, *, settled: bool) -> bytes:
        header = _HEADER.pack(_MAGIC, settled, self.boot, segment.salt, 0)[:-4]
        return (header + _LENGTH.pack(zlib.crc32(header))).ljust(BLOCK, b"\0")

    # ---- reading ----

    def _unheld(self) -> dict[int, int]:
        """The slots that nobody holds, held now, at least one: number -> descriptor."""
        slots = {int(name.split(b".")[0]) for name in os.listdir(self.directory)
                 if name.endswith(b".lock")}
        unheld: dict[int, int] = {}
        slot = 0
        while slots or not unheld:
            lock = os.open(b"%b/%d.lock" % (self.directory, slot), _FILE, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
            else:
                unheld[slot] = lock
            slots.discard(slot)
            slot += 1
        return unheld

    def _paths(self, slot: int) -> list[bytes]:
        prefix = b"%d." % slot
        return [self.directory + b"/" + name for name in sorted(os.listdir(self.directory))
                if name.startswith(prefix) and not name.endswith(b".lock")]

    def _read(self, path: bytes) -> Orphan | None:
        with open(path, "rb") as file:
            data = file.read()
        if len(data) < BLOCK:
            return None
        magic, settled, boot, salt, checksum = _HEADER.unpack_from(data)
        if magic != _MAGIC or checksum != zlib.crc32(data[:_HEADER.size - 4]):
            return None
        return Orphan(path, boot != self.boot, settled, tuple(_payloads(data, salt)))


def _payloads(data: bytes, salt: bytes) -> Iterator[bytes]:
    at, expected = BLOCK, 0
    while at + _RECORD.size <= len(data):
        length, number, checksum = _RECORD.unpack_from(data, at)
        payload = data[at + _RECORD.size : at + _RECORD.size + length]
        if (number == expected and length == len(payload)
                and checksum == _checksum(salt, number, payload)):
            yield payload
            at += _RECORD.size + length
            expected += 1
        elif at % BLOCK:
            at = -(-at // BLOCK) * BLOCK  # the batch ends; there may be another
        else:
            return


def _checksum(salt: bytes, number: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(salt + _NUMBER.pack(number)))


def write_at(fd: int, data: bytes, at: int = 0) -> None:
    """Write *data* at that octet of *fd*, an open file."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(fd, rest, at)
        rest, at = rest[written:], at + written


def _erase(fd: int) -> None:
    """Make the segment a free one, durably."""
    write_at(fd, bytes(BLOCK), 0)
    os.fdatasync(fd)


@contextmanager
def _opened(path: bytes) -> Iterator[int]:
    fd = os.open(path, _FILE, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _locked(path: bytes) -> Iterator[None]:
    with _opened(path) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield


def _sync_directory(path: bytes) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
