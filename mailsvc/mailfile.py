"""Where fetched mail goes: a maildir, an mbox, or a stream; on disk before it counts.

``with place.message() as write:`` takes a message block by block, lines ending in CRLF.  When the
block ends the message is durable; when it fails, nothing of it is left.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from mailsvc.mail import new_id

Write = Callable[[bytes], object]


class Maildir:
    """Files of their own, written to tmp/, synced, and renamed into new/."""

    durable = True

    def __init__(self, path: Path) -> None:
        self._path = path
        for part in ("tmp", "new", "cur"):
            (path / part).mkdir(parents=True, exist_ok=True, mode=0o700)

    @contextlib.contextmanager
    def message(self) -> Iterator[Write]:
        host = socket.gethostname().replace("/", r"\057").replace(":", r"\072")
        name = f"{int(time.time())}.{new_id()}.{host}"
        temporary, final = self._path / "tmp" / name, self._path / "new" / name
        try:
            with temporary.open("xb") as file:
                os.chmod(file.fileno(), 0o600)
                yield file.write
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(final)
            _sync_directory(final.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


class Mbox:
    """One file, ``From `` lines in the text quoted (mboxrd), line ends as LF; locked while written.

    The locks are those of fcntl(2) and flock(2), as Python's mailbox and most programs use them.
    """

    durable = True

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextlib.contextmanager
    def message(self) -> Iterator[Write]:
        new = not self._path.exists()
        with self._path.open("ab") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            fcntl.flock(file, fcntl.LOCK_EX)
            start = file.seek(0, os.SEEK_END)
            try:
                stamp = time.strftime("%a %b %d %H:%M:%S %Y", time.gmtime())
                file.write(f"From MAILER-DAEMON {stamp}\n".encode())
                lines = Lines(file)
                yield lines.write
                lines.finish()
                file.flush()
                os.fsync(file.fileno())
            except BaseException:
                with contextlib.suppress(OSError):
                    file.flush()
                os.ftruncate(file.fileno(), start)
                raise
        if new:
            _sync_directory(self._path.parent)


class Stream:
    """Standard output, CRLF as it came; nothing there is durable."""

    durable = False

    @contextlib.contextmanager
    def message(self) -> Iterator[Write]:
        blocks: list[bytes] = []
        yield blocks.append
        sys.stdout.buffer.write(b"".join(blocks))
        sys.stdout.buffer.flush()


class Lines:
    """Writes the text of one message to *file* as an mbox has it; its From line is there."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._held = b""

    def write(self, block: bytes) -> None:
        lines, _, self._held = (self._held + block).rpartition(b"\n")
        if lines or _:
            self._put(lines + b"\n")

    def finish(self) -> None:
        self._put((self._held + b"\n" if self._held else b"") + b"\n")

    def _put(self, lines: bytes) -> None:
        self._file.write(re.sub(rb"(?m)^(>*From )", rb">\1", lines.replace(b"\r\n", b"\n")))


Place = Maildir | Mbox | Stream


def place(text: str) -> Place:
    """The place that *text* names: ``maildir:DIR``, ``mbox:FILE`` or ``-``.

    :raises ValueError: it names none.
    :raises OSError: it cannot be made.
    """
    scheme, _, path = text.partition(":")
    if text == "-":
        return Stream()
    if path and scheme == "maildir":
        return Maildir(Path(path))
    if path and scheme == "mbox":
        return Mbox(Path(path))
    raise ValueError(f"{text!r} is no place for mail; expected maildir:DIR, mbox:FILE or -")


class Seen:
    """The unique-ids that were fetched, in a file with one a line; written before they count."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: set[str] = set()
        if path.exists():
            self._known = set(path.read_text("ascii", "replace").split())

    def __contains__(self, unique_id: str) -> bool:
        return unique_id in self._known

    def add(self, unique_id: str) -> None:
        """Remember *unique_id*, durably."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(unique_id + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._known.add(unique_id)

    def keep(self, present: set[str]) -> None:
        """Forget what is not on the server any more."""
        if self._known <= present:
            return
        temporary = self._path.with_name(self._path.name + ".new")
        with temporary.open("w") as file:
            file.writelines(each + "\n" for each in sorted(self._known & present))
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self._path)
        self._known &= present


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
