"""Telling systemd how we are: readiness, status, stopping and the watchdog (sd_notify(3)).

Messages are datagrams to the socket that ``NOTIFY_SOCKET`` names, a path or an abstract name
(``@…``).  Without that variable nothing is sent and nothing is different, so the same service runs
under any supervisor or none.  A message that cannot be sent is logged and otherwise ignored:
systemd will draw its own conclusion.

Socket activation (sd_listen_fds(3)) is not here; Twisted's ``systemd:`` endpoints do it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from mailsvc.log import pass_on


class NotifyService(Service):
    """Sends systemd what the service that contains this one tells of itself.

    While it runs, it feeds the watchdog at twice the rate that systemd asks for, through the
    reactor: a reactor that is stuck stops feeding it.

    :ivar quiet: whether nothing is said, since another process speaks for the service.
    """

    _log = Logger()

    def __init__(self, reactor: IReactorTime, environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            # An abstract socket's name begins with NUL (unix(7)).
            self._address = "\0" + self._address[1:]
        self._watchdog = LoopingCall(self._send, "WATCHDOG=1")
        self._watchdog.clock = reactor
        self.quiet = False
        #: How long systemd waits for a sign of life; 0 for ever.
        self.watchdog_seconds = _watchdog_seconds(environ)

    def startService(self) -> None:
        super().startService()
        if self._address and self.watchdog_seconds:
            self._watchdog.start(self.watchdog_seconds / 2)

    def stopService(self) -> Deferred[object] | None:
        if self._watchdog.running:
            self._watchdog.stop()
        return super().stopService()

    def ready(self, status: str) -> None:
        """Say that every listener is bound; *status* is shown by ``systemctl status``."""
        self._send("READY=1", f"STATUS={_one_line(status)}")

    def stopping(self, status: str) -> None:
        """Say that the service is on its way down."""
        self._send("STOPPING=1", f"STATUS={_one_line(status)}")

    def status(self, status: str) -> None:
        """Change what ``systemctl status`` shows."""
        self._send(f"STATUS={_one_line(status)}")

    def hand_over(self, pid: int, status: str) -> None:
        """Say that the main process is another one from now on, and then nothing any more."""
        # That one feeds the watchdog at its own times, which may be half a period from now.
        self._send(*["WATCHDOG=1"] * bool(self.watchdog_seconds), f"MAINPID={pid}",
                   f"STATUS={_one_line(status)}")
        self.quiet = True

    def _send(self, *assignments: str) -> None:
        if self.quiet or not self._address:
            return
        pass_on()  # whoever hears that we are ready finds in the log where
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                # systemd reads at once; a second is long, and for ever would stop the reactor.
                sender.settimeout(1)
                sender.sendto("\n".join(assignments).encode(), self._address)
        except OSError as error:
            self._log.warn("systemd was not told {assignments}: {error}",
                           assignments=" ".join(assignments), error=error)


def _watchdog_seconds(environ: Mapping[str, str]) -> float:
    """How long systemd waits for a sign of life, or 0 when this process has no watchdog."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0
    microseconds = environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if microseconds.isascii() and microseconds.isdigit() else 0


def _one_line(text: str) -> str:
    return " ".join(text.split())
