"""The standard streams of a command: what is wrong with them is told in one line, if at all.

Standard output that cannot be written ends the command by :class:`SystemExit`, which no handler of
other errors takes for one of its own: with status 1 and a line on standard error that says why, or,
when nobody reads it any more, silently with 141, as programs end by SIGPIPE.  What its encoding
does not have comes out escaped.  Standard error that cannot be written is left alone.
"""

from __future__ import annotations

import codecs
import io
import os
import signal
import sys
from typing import IO, Any

#: The status of what SIGPIPE has ended, as shells tell it.
_PIPE = 128 + signal.SIGPIPE


def guard() -> None:
    """Take over the streams of this process, unless somebody else has; may be called again."""
    for descriptor, mode in (0, os.O_RDWR), (1, os.O_RDONLY), (2, os.O_RDWR):
        try:
            os.fstat(descriptor)
        except OSError:
            # It was closed, and the next file that is opened would get its number.  What is read
            # ends at once; what is written fails, as it would have.
            os.open(os.devnull, mode)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - as long as the process
    if sys.stdout is sys.__stdout__:
        sys.stdout = _text(_Output(1, "wb", closefd=False), sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(_Errors(2, "wb", closefd=False), sys.stderr)


def holds(text: str) -> bool:
    """Whether standard output can say *text* without escapes."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return text.isascii()
    return True


class _Output(io.FileIO):
    _failed = False

    def write(self, data: Any) -> int:
        if self._failed:
            # What is left in the buffer as the interpreter ends.
            return memoryview(data).nbytes
        try:
            return super().write(data)
        except BrokenPipeError:
            self._failed = True
            raise SystemExit(_PIPE) from None
        except OSError as error:
            self._failed = True
            raise SystemExit(f"Error: cannot write to standard output: {error.strerror}") from None


class _Errors(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


class _Text(io.TextIOWrapper):
    @property
    def encoding(self) -> str:  # type: ignore[override]
        # Click writes UTF-8 where it takes ASCII for a mistake; whoever wants it shall have it.
        encoding = super().encoding
        return f"{encoding}-escaped" if codecs.lookup(encoding).name == "ascii" else encoding


def _text(stream: io.FileIO, before: IO[str] | None) -> io.TextIOWrapper:
    encoding, errors = "utf-8", "backslashreplace"
    if isinstance(before, io.TextIOWrapper):
        encoding = before.encoding
        if before.errors != "strict":
            errors = before.errors or errors
    return _Text(io.BufferedWriter(stream), encoding, errors, line_buffering=(
        isinstance(stream, _Errors) or stream.isatty()))
