"""What a service that runs can be asked for: its configuration, to read it again, to be upgraded.

:class:`Control` is part of the supervisor, or of the only process there is.  It answers at the
socket ``{data}/control`` (:mod:`mailsvc.localsocket`).  A request is one line, a JSON object whose
``action`` is

``settings``
    Answered by ``version``; ``config`` and ``overrides``, the file that it would read again and the
    ``KEY=VALUE`` that go before it, or null when there is nothing to read; ``values``, every key
    with what is in effect; and ``fixed``, the sections and keys that only a restart changes.

``reload``
    Answered when it is done by ``workers``, how many serve by the configuration as it is now; or by
    ``refused``, everything that keeps it from that, and then nothing has changed.

``upgrade``
    Answered when the program that is on disk now has taken over, by its ``pid`` and ``version``; or
    by ``refused``, and then nothing has changed.

What cannot be answered gets ``error``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from mailsvc import __version__
from mailsvc.config import Settings
from mailsvc.localsocket import Answers, LocalSocket, NoService, ask

_log = Logger("mailsvc")

#: The socket's name in the data directory.
NAME = "control"
#: How long a reload is waited for, seconds: workers that start may have much to recover.
_PATIENCE = 300.0


class ReloadRefused(Exception):
    """The configuration stays as it was.

    :ivar problems: why, each in a line or several.
    """

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class UpgradeRefused(Exception):
    """The program stays as it was; the text says why."""


class UpgradeFailed(Exception):
    """The new program ended as it took over, and so does the service; the text says so."""


class Reloadable(Protocol):
    """What is asked of a service.

    :ivar settings: those in effect.
    :ivar fixed: the sections and keys that only a restart changes.
    """

    @property
    def settings(self) -> Settings: ...

    @property
    def fixed(self) -> tuple[str, ...]: ...

    def reload(self) -> Deferred[int]:
        """Read the configuration again; fires with how many workers serve by it, or fails with
        :class:`ReloadRefused`."""

    def upgrade(self) -> Deferred[tuple[int, str]]:
        """Let the program on disk take over; fires with its pid and version, or fails with
        :class:`UpgradeRefused` or :class:`UpgradeFailed`."""


class Control(LocalSocket):
    """Answers for *service*."""

    def __init__(self, service: Reloadable, data: Path, reactor: Any) -> None:
        super().__init__(data, NAME, Answers(self._answer), "mailsvc reload", reactor)
        self._service = service

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            action = json.loads(line)["action"]
        except (ValueError, KeyError, TypeError):
            action = None
        if action == "settings":
            return described(self._service)
        if action == "reload":
            _log.info("`mailsvc reload` asks for the configuration to be read again")
            try:
                return {"workers": await self._service.reload()}
            except ReloadRefused as refused:
                return {"refused": list(refused.problems)}
        if action == "upgrade":
            _log.info("`mailsvc upgrade` asks for the program on disk to take over")
            try:
                pid, version = await self._service.upgrade()
            except UpgradeRefused as refused:
                return {"refused": [str(refused)]}
            except UpgradeFailed as failed:
                return {"error": str(failed)}
            return {"pid": pid, "version": version}
        return {"error": "no such action; the command is of another version than the service"}


def described(service: Reloadable) -> dict[str, Any]:
    """The answer to ``settings``."""
    settings = service.settings
    source = settings.source
    return {"version": __version__,
            "config": source.path if source else None,
            "overrides": list(source.overrides) if source else None,
            "values": {str(key): value for key, value in settings.entries()},
            "fixed": list(service.fixed)}


def running(data: Path) -> dict[str, Any]:
    """The answer to ``settings`` of the service that runs with the directory *data*.

    :raises NoService: there is none, or it does not answer.
    """
    return ask(data, NAME, {"action": "settings"})


def reload(data: Path) -> int:
    """Let that service read its configuration again; how many workers serve by it.

    :raises ReloadRefused: it goes on as before.
    :raises NoService: there is none, or it does not answer.
    """
    answer = ask(data, NAME, {"action": "reload"}, _PATIENCE)
    if "workers" not in answer:
        raise ReloadRefused(*answer.get("refused", [answer.get("error", "")]))
    return int(answer["workers"])


def upgrade(data: Path) -> tuple[int, str]:
    """Let the program on disk take over from that service; its pid and its version.

    :raises UpgradeRefused: that one goes on as before.
    :raises NoService: there is none, it does not answer, or it ends because the new one has.
    """
    answer = ask(data, NAME, {"action": "upgrade"}, _PATIENCE)
    if "pid" not in answer:
        if "error" in answer:
            raise NoService(answer["error"])
        raise UpgradeRefused("\n".join(answer["refused"]))
    return int(answer["pid"]), str(answer["version"])
