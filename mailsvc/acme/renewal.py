"""When to ask for a certificate: at the start, and as often as the authority would have it.

What fails is tried again after five minutes, then ever later, up to half a day: authorities count
failures by the hour.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import sys
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from mailsvc.acme.files import Files
from mailsvc.acme.limits import ACMESettings

_log = Logger()

#: How long after a failure it is tried again, at first and at most, seconds.
_FIRST, _MOST = 300, 12 * 3600
#: How long the program may take, seconds.
_PATIENCE = 300


class Renewal(Service):
    """Sees to it that there is a certificate, while it runs."""

    def __init__(self, settings: ACMESettings, files: Files, reactor: Any) -> None:
        self._settings = settings
        self._files = files
        self._reactor = reactor
        self._timer: IDelayedCall | None = None
        self._asking: _Asking | None = None
        self._failures = 0

    def startService(self) -> None:
        super().startService()
        self._wait(0)

    def stopService(self) -> Deferred[Any] | None:
        super().stopService()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if self._asking is None:
            return None
        self._asking.kill()
        return self._asking.done

    def _wait(self, seconds: float) -> None:
        self._timer = self._reactor.callLater(seconds, self._ask)

    def _ask(self) -> None:
        asking = self._asking = _Asking(json.dumps({
            "data": str(self._files.data), "settings": dataclasses.asdict(self._settings)}))
        try:
            self._reactor.spawnProcess(
                asking, sys.executable, [sys.executable, "-m", "mailsvc.acme"],
                # It is to find what this process has found, wherever that was started.
                {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
        except OSError as error:
            asking.done.callback({"refused": f"{sys.executable}: {error.strerror}"})
        patience = self._reactor.callLater(_PATIENCE, asking.kill)

        def answered(outcome: dict[str, Any]) -> None:
            self._asking = None
            if patience.active():
                patience.cancel()
            if self.running:
                self._answered(outcome)

        asking.done.addCallback(answered)

    def _answered(self, outcome: dict[str, Any]) -> None:
        refused = outcome.get("refused")
        if refused is None:
            self._failures = 0
            if outcome["got"]:
                _log.info("got a certificate for {names} from {authority}, until {until}",
                          names=", ".join(self._settings.names),
                          authority=self._settings.directory,
                          until=f"{datetime.fromtimestamp(outcome['until'], UTC):%Y-%m-%d}")
            self._wait(outcome["again"])
            return
        seconds = min(_FIRST * 2 ** self._failures, _MOST) * random.uniform(0.9, 1.1)
        self._failures = min(self._failures + 1, 10)
        _log.error("there is no new certificate for {names}: {reason}; tried again in "
                   "{minutes:.0f} minutes, or by `mailsvc acme renew`",
                   names=", ".join(self._settings.names), reason=refused, minutes=seconds / 60)
        self._wait(seconds)


class _Asking(ProcessProtocol):
    """The program; *done* fires with what it said."""

    transport: Any

    def __init__(self, question: str) -> None:
        self.done: Deferred[dict[str, Any]] = Deferred()
        self._question = question.encode()
        self._said = self._complained = b""

    def connectionMade(self) -> None:
        self.transport.write(self._question)
        self.transport.closeStdin()

    def outReceived(self, data: bytes) -> None:
        self._said += data

    def errReceived(self, data: bytes) -> None:
        self._complained = (self._complained + data)[-2000:]

    def kill(self) -> None:
        """End it."""
        with suppress(ProcessExitedAlready, AttributeError):
            self.transport.signalProcess(signal.SIGKILL)

    def processEnded(self, reason: Failure) -> None:
        try:
            outcome = json.loads(self._said)
        except ValueError:
            lines = self._complained.decode("utf-8", "replace").split("\n")
            outcome = {"refused": next(filter(None, reversed(lines)), str(reason.value))}
        self.done.callback(outcome)
