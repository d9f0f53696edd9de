"""The octets of a queued message, for whoever sends, signs or returns them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO

from mailsvc.headers import HeaderScan

#: Messages up to this size are kept in memory while they are worked on; larger ones are read as
#: they are sent.
SMALL = 256 * 1024
_BLOCK = 64 * 1024


class Content:
    """A message in *stream*, which stands where it begins and belongs to this now; a file, if the
    message is more than ``SMALL``.

    Any number may read at once, each from its own place.

    :ivar size: octets.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream: BinaryIO | None = stream
        self._start = stream.tell()
        self.size = stream.seek(0, os.SEEK_END) - self._start
        self._small: bytes | None = None
        if self.size <= SMALL:
            stream.seek(self._start)
            self._small = stream.read()
            self.close()

    def head(self, most: int) -> bytes:
        """At most *most* octets of its beginning."""
        return self._read(0, most) if self._small is None else self._small[:most]

    def whole(self) -> bytes:
        """All of it."""
        return b"".join(self._blocks(b"")) if self._small is None else self._small

    def message(self, prefix: bytes) -> bytes | Iterator[bytes]:
        """*prefix* and all of it, to be sent."""
        return self._blocks(prefix) if self._small is None else prefix + self._small

    def is_ascii(self) -> bool:
        """Whether no octet of it is above 127.  Reads all of it."""
        return all(map(bytes.isascii, self._blocks(b"")) if self._small is None
                   else (self._small.isascii(),))

    def has_ascii_headers(self) -> bool:
        """Whether no octet of its headers is, those of its parts included.  Reads all of it."""
        scan = HeaderScan()
        return all(map(scan.feed, self._blocks(b"") if self._small is None else (self._small,)))

    def close(self) -> None:
        """Let go of the file.  May be called again."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def _blocks(self, prefix: bytes) -> Iterator[bytes]:
        if prefix:
            yield prefix
        position = 0
        while block := self._read(position, _BLOCK):
            yield block
            position += len(block)

    def _read(self, position: int, most: int) -> bytes:
        assert self._stream is not None
        return os.pread(self._stream.fileno(), most, self._start + position)
