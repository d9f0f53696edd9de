"""A mailbox written to an mbox, a maildir or a tar archive, while the service runs.

The maildir, and the one in the archive, has the files as they are, under their names: so dates,
flags and unique-ids stay, and folders with them.  The mbox has LF line ends and ``From `` lines
quoted (mboxrd), the date of each message in its From line, and neither flags nor folders.

What another program removes meanwhile is left out.  A target is not there under its name before it
is complete and durable.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mailsvc.mailfile import Lines
from mailsvc.store import contents
from mailsvc.store.contents import Box
from mailsvc.store.tree import sync_directory

Progress = Callable[[int, int], None]

_BLOCK = 256 * 1024


class Target:
    """Where the mailbox whose maildir is *home* is written to.

    :param progress: is told how many of how many messages are done.
    :ivar messages: how many were written, of so many *octets*.
    """

    def __init__(self, home: bytes, progress: Progress = lambda done, of: None) -> None:
        self.messages = self.octets = 0
        self._home = home
        self._progress = progress

    def mbox(self, path: Path) -> None:
        """Write to the new file *path*.

        :raises FileExistsError: it is there.
        """
        with _new_file(path) as file:
            for _, _, source in self._each([b""]):
                when = time.gmtime(os.fstat(source.fileno()).st_mtime)
                file.write(time.strftime("From MAILER-DAEMON %a %b %d %H:%M:%S %Y\n",
                                         when).encode())
                lines = Lines(file)
                while block := source.read(_BLOCK):
                    lines.write(block)
                lines.finish()

    def maildir(self, path: Path) -> None:
        """Write to the new directory *path*; raises as :meth:`mbox`."""
        draft = _draft(path)
        folders = self._folders()
        try:
            for folder in folders:
                for part in (b"tmp", b"new", b"cur"):
                    os.makedirs(os.path.join(os.fsencode(draft), folder, part), 0o700)
            for folder, place, source in self._each(folders):
                made = os.path.join(os.fsencode(draft), folder, place)
                fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(fd, "wb") as file:
                    shutil.copyfileobj(source, file, _BLOCK)
                    file.flush()
                    status = os.fstat(source.fileno())
                    os.utime(fd, ns=(status.st_mtime_ns, status.st_mtime_ns))
                    os.fsync(fd)
            for directory, _, _ in os.walk(os.fsencode(draft)):
                sync_directory(directory)
            os.rename(draft, path)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        sync_directory(os.fsencode(path.parent))

    def tar(self, path: Path) -> None:
        """Write to the new file *path*; raises as :meth:`mbox`."""
        with _new_file(path) as file:
            self.tar_to(file)

    def tar_to(self, file: BinaryIO) -> None:
        """Write to *file*, which need not be able to seek."""
        top = os.path.basename(self._home)
        with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            for folder, place, source in self._each(self._folders()):
                status = os.fstat(source.fileno())
                entry = tarfile.TarInfo(os.fsdecode(os.path.join(top, folder, place)))
                entry.size, entry.mtime, entry.mode = status.st_size, status.st_mtime, 0o600
                archive.addfile(entry, source)

    def _folders(self) -> list[bytes]:
        return [b"", *contents.folders(self._home)]

    def _each(self, folders: list[bytes]) -> Iterator[tuple[bytes, bytes, BinaryIO]]:
        """Folder, place in it, and open file of each message, those of a folder by age."""
        boxes = [(folder, Box(os.path.join(self._home, folder).rstrip(b"/")))
                 for folder in folders]
        number = sum(len(box) for _, box in boxes)
        done = 0
        for folder, box in boxes:
            for key in box:
                fd = box.open(key)
                if fd is not None:
                    with os.fdopen(fd, "rb") as source:
                        octets = os.fstat(fd).st_size
                        yield folder, box.place(key), source
                    self.messages += 1
                    self.octets += octets
                done += 1
                self._progress(done, number)


def _draft(path: Path) -> Path:
    if os.path.lexists(path):
        raise FileExistsError(17, "is there already; name a new one", str(path))
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    draft = _draft(path)
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600),
                       "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.rename(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_directory(os.fsencode(path.parent))
