"""Handing a message to a program: the ``pipe:`` route.

The program is started once for each recipient, without a shell, as the service's own user, in the
directory ``/``, and gets the message on its standard input: with Return-Path on top, as whoever
delivers in the end owes it (RFC 5321 §4.4), and lines that end in LF.  In its arguments
``{recipient}``, ``{local_part}``, ``{domain}``, ``{sender}`` and ``{id}`` are filled in, within
the word it stands in; its environment is PATH, LANG, SENDER, RECIPIENT and ORIGINAL_RECIPIENT and
nothing else.  A recipient that begins with a hyphen, and could be taken for an option, is refused.

Its exit status decides, by ``<sysexits.h>``; what it prints, up to :data:`OUTPUT_OCTETS`, is the
reason given, whose status code counts where it begins with one: ``5.2.2 mailbox full``.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall, IPullProducer
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from mailsvc.errors import EnhancedStatus

#: How much of what the program prints is kept.
OUTPUT_OCTETS = 1000

#: Exit status -> what it means for the message.  What is not here is put off: most programs end
#: with 1 when they are broken, and mail shall not be returned because of that.
_MEANING = {
    os.EX_OK: (2, 0, 0), os.EX_USAGE: (5, 5, 4), os.EX_DATAERR: (5, 6, 0),
    os.EX_NOINPUT: (5, 3, 0), os.EX_NOUSER: (5, 1, 1), os.EX_NOHOST: (5, 1, 2),
    os.EX_UNAVAILABLE: (5, 3, 0), os.EX_CANTCREAT: (5, 2, 0), os.EX_PROTOCOL: (5, 5, 0),
    os.EX_NOPERM: (5, 7, 0), os.EX_SOFTWARE: (4, 3, 0), os.EX_OSERR: (4, 3, 0),
    os.EX_OSFILE: (4, 3, 0), os.EX_IOERR: (4, 3, 0), os.EX_TEMPFAIL: (4, 3, 0),
    os.EX_CONFIG: (4, 3, 5)}
_LATER = EnhancedStatus(4, 3, 0)

_STATUS = re.compile(r"([245])\.(\d{1,3})\.(\d{1,3})(?=\s|$)\s*")


def run(reactor: Any, words: Sequence[str], environment: Mapping[str, str],
        message: Iterator[bytes], seconds: float) -> Deferred[tuple[EnhancedStatus, str]]:
    """Run a program with *message*, in CRLF, on its input; fires with what that means, and why.

    :param seconds: after which it is killed, and the message put off.
    """
    process = _Program(_with_lf(message), seconds, reactor)
    try:
        reactor.spawnProcess(
            process, words[0], [word.encode() for word in words],
            {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", **environment}, path="/")
    except OSError as problem:
        process.ended(_LATER, f"{words[0]} cannot be started: {problem.strerror}")
    return process.done


def _with_lf(message: Iterator[bytes]) -> Iterator[bytes]:
    held = b""
    for block in message:
        whole = held + block
        held = b"\r" if whole.endswith(b"\r") else b""
        yield whole.removesuffix(held).replace(b"\r\n", b"\n")
    yield held


@implementer(IPullProducer)
class _Program(ProcessProtocol):
    transport: Any

    def __init__(self, message: Iterator[bytes], seconds: float, clock: Any) -> None:
        self.done: Deferred[tuple[EnhancedStatus, str]] = Deferred()
        self._message = message
        self._seconds = seconds
        self._late = False
        self._output = b""
        self._timer: IDelayedCall | None = clock.callLater(seconds, self._kill)

    def connectionMade(self) -> None:
        self.transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        # Nothing written is nothing to be asked for more after.
        block = next(filter(None, self._message), None)
        if block is None:
            self.transport.unregisterProducer()
            self.transport.closeStdin()
        else:
            self.transport.write(block)

    def stopProducing(self) -> None:
        pass

    def outReceived(self, data: bytes) -> None:
        self._output = (self._output + data)[:OUTPUT_OCTETS]

    errReceived = outReceived

    def _kill(self) -> None:
        self._late = True
        with suppress(ProcessExitedAlready):
            self.transport.signalProcess(signal.SIGKILL)

    def processExited(self, reason: Failure) -> None:
        # What it leaves behind may hold its output open for ever; that is not waited for.
        self.transport.loseConnection()
        ended: Any = reason.value
        code, number = ended.exitCode, ended.signal
        said = " ".join(self._output.decode("utf-8", "replace").split())
        if self._late:
            self.ended(_LATER, f"the program was still not done after {self._seconds:g} seconds")
        elif number is not None:
            self.ended(_LATER, f"the program was ended by signal {number}")
        else:
            status = EnhancedStatus(*_MEANING.get(code, (4, 3, 0)))
            match = _STATUS.match(said) if status.class_ != 2 else None
            if match and match[1] != "2":
                status, said = EnhancedStatus(*map(int, match.groups())), said[match.end():]
            self.ended(status, said or f"the program ended with status {code}")

    def ended(self, status: EnhancedStatus, text: str) -> None:
        """It is over."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if not self.done.called:
            self.done.callback((status, text))
