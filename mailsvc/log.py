"""Log observers: what one event looks like as a line of text, and as a line of JSON.

Each module logs through its own :class:`twisted.logger.Logger` with keyed fields, one event per
outcome.  Here events become lines:

* **text**, for people: local time, level, namespace and message; a traceback follows on lines of
  its own, each indented.
* **json**, for programs (JSON Lines): the keys ``time`` (RFC 3339, UTC), ``level``, ``namespace``
  and ``message``, then the event's own fields in the order of their names, and ``traceback`` if
  there is one.  The names that Twisted's older logging puts into events (``format``, ``isError``,
  ``system``, ``why``, …) are left out, so they are no good as names of fields.

In both, one event is one line that no peer can forge or hide: control characters, line separators,
characters that reorder text and lone surrogates are escaped wherever they come from.  A field whose
name says that it is a credential is masked; whoever logs must still not pass one.

``[log]`` in the configuration chooses the format and the levels.  ``twistd --logger
mailsvc.log.json_to_stdout`` (or ``text_to_stdout``) takes precedence, with the default levels.
"""

from __future__ import annotations

import datetime
import fcntl
import functools
import json
import math
import os
import re
import select
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any, cast

from constantly import NamedConstant
from twisted.logger import (
    FileLogObserver,
    FilteringLogObserver,
    ILogObserver,
    LogEvent,
    Logger,
    LogLevel,
    LogLevelFilterPredicate,
    formatEvent,
)
from twisted.python.logfile import LogFile
from twisted.python.threadable import isInIOThread

from mailsvc.settings import OneOf, setting
from mailsvc.turn import at_end_of_turn

_LEVELS = tuple(level.name for level in LogLevel.iterconstants())


def _levels(value: dict[str, str]) -> str | None:
    return next((f"{name} = {expected}" for name, level in value.items()
                 if (expected := OneOf(*_LEVELS)(level))), None)


@dataclass(frozen=True, slots=True)
class LogSettings:
    """``[log]``."""

    format: str = setting("text", "How a line is written: text for people, json for programs.",
                          check=OneOf("text", "json"))
    level: str = setting("info", "The lowest level that is written.", check=OneOf(*_LEVELS))
    levels: dict[str, str] = setting(
        {"twisted": "warn", "log_legacy": "warn"},
        "Lowest levels of single namespaces, which are module names, as in \"mailsvc.pop3\" = "
        "\"warn\"; twisted and log_legacy are what Twisted itself logs.",
        check=_levels)


def observer(settings: LogSettings, stream: IO[str] | ByTurns) -> ILogObserver:
    """An observer that writes to *stream*, in the format and from the levels of *settings*.

    :param stream: or a :class:`ByTurns` over one.
    """
    predicate = _Levels(LogLevel.levelWithName(settings.level))
    for namespace, level in settings.levels.items():
        predicate.setLogLevelForNamespace(namespace, LogLevel.levelWithName(level))
    line = json_line if settings.format == "json" else text_line

    return FilteringLogObserver(FileLogObserver(cast(IO[str], stream), line), [predicate])


class _Levels(LogLevelFilterPredicate):
    """As Twisted has it, which finds out anew for each event what it found for the one before."""

    def __init__(self, lowest: NamedConstant) -> None:
        super().__init__(lowest)
        self._found: dict[tuple[object, object], NamedConstant] = {}

    def __call__(self, event: LogEvent) -> NamedConstant:
        key = event.get("log_namespace"), event.get("log_level")
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = super().__call__(event)
        return found


def no_new_log() -> None:
    """Say that there is no log file to begin anew, to whoever asks for that by SIGUSR1."""
    Logger("mailsvc").info("SIGUSR1 begins a new log file; this log goes to none, so nothing is "
                           "done")


class SharedLogFile(LogFile):
    """A log file that several processes append to; one of them rotates it, the others reopen it."""

    def rotate(self) -> None:
        """Begin a new file.  The present one becomes ``….1``, if logrotate has not moved it yet."""
        try:
            moved = not os.path.samestat(os.stat(self.path), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            moved = True
        if not moved:
            super().rotate()
        elif os.access(self.directory, os.W_OK):  # otherwise to the old one, rather than to none
            self.reopen()

    def _openFile(self) -> None:
        super()._openFile()
        # Each event is written at once, and so the lines of two processes do not mix.
        flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
        fcntl.fcntl(self._file, fcntl.F_SETFL, flags | os.O_APPEND)


class ByTurns:
    """A stream of lines that takes what is written in a turn of the reactor, and passes it on at
    the turn's end, to *stream*.

    Busy turns log dozens of lines, and each write has the other threads of the process run; by
    turns, a message relayed costs a tenth less.  They are there before any reply of that turn
    leaves.  What other threads write, and what is written while no reactor runs, is passed on at
    once, behind what has been written before.

    What *stream* does not take is lost, as Twisted has it with an observer that fails.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._lines: list[str] = []
        self._lock = threading.Lock()
        #: The reactor that was told to pass on, when it stops, what is left.
        self._told: object = None
        _by_turns.append(self)
        os.register_at_fork(after_in_child=self._forget)

    def write(self, line: str) -> None:
        """Take *line*."""
        reactor: Any = sys.modules.get("twisted.internet.reactor")
        if reactor is None or not reactor.running or not isInIOThread():
            self.pass_on(line)
            return
        with self._lock:
            self._lines.append(line)
            waiting = len(self._lines)
        if waiting == 1:
            at_end_of_turn(reactor, self.pass_on, first=True)
            if reactor is not self._told:
                # The turn it stops in has no end.  Twisted's own part of this phase comes first,
                # and thereafter it does not run.
                reactor.addSystemEventTrigger("during", "shutdown", self.pass_on)
                self._told = reactor

    def flush(self) -> None:
        """The end of a line, which is no reason to write."""

    def pass_on(self, *more: str) -> None:
        """Pass on what there is, and then *more*."""
        with self._lock:
            lines = [*self._lines, *more]
            self._lines.clear()
            with suppress(Exception):
                for text in _in_pieces(lines):
                    self._stream.write(text)
                    self._stream.flush()

    def _forget(self) -> None:
        """A process was forked, for which this is not."""
        self._lines.clear()
        self._lock = threading.Lock()


#: Those there are in this process.
_by_turns: list[ByTurns] = []


def pass_on() -> None:
    """Have written what has been logged, before somebody is told of it in another way than by what
    leaves at the end of the turn.
    """
    for each in _by_turns:
        each.pass_on()


def _in_pieces(lines: Iterable[str]) -> Iterator[str]:
    """*lines* in as few pieces as a pipe takes each as a whole: several processes write to it."""
    piece: list[str] = []
    size = 0
    for line in lines:
        length = len(line.encode("utf-8", "replace"))
        if piece and size + length > select.PIPE_BUF:
            yield "".join(piece)
            piece, size = [], 0
        piece.append(line)
        size += length
    if piece:
        yield "".join(piece)


def _telling(level: NamedConstant) -> Callable[..., None]:
    """What ``Logger`` has for *level*, at less than half the cost."""
    def tell(self: Logger, format: str | None = None, **fields: object) -> None:
        fields.update(log_logger=self, log_level=level, log_namespace=self.namespace,
                      log_source=self.source, log_format=format, log_time=time.time())
        self.observer(fields)

    return tell


class Log(Logger):
    """A Logger of what happens all the time: it looks for no fault in how it is called."""

    debug = _telling(LogLevel.debug)
    info = _telling(LogLevel.info)


def text_to_stdout() -> ILogObserver:
    """For ``twistd --logger``: text on standard output."""
    return observer(LogSettings(format="text"), sys.stdout)


def json_to_stdout() -> ILogObserver:
    """For ``twistd --logger``: JSON Lines on standard output."""
    return observer(LogSettings(format="json"), sys.stdout)


# C0, DEL and C1; zero-width and direction marks; line and paragraph separators; surrogates.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"
                     "\ud800-\udfff\ufff9-\ufffb\U000e0000-\U000e007f]")
#: Names of fields that hold a credential, and names that Twisted's older logging puts into events.
CREDENTIALS = frozenset({"password", "passphrase", "secret", "credentials", "digest", "response"})
LEGACY = frozenset({"message", "time", "system", "format", "isError", "why", "failure", "logLevel",
                     "printed"})


def escape(text: str) -> str:
    """*text* without what could end a line or change how the next one looks."""
    if text.isascii() and text.isprintable():  # nearly always, and a tenth of the time
        return text
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def _masked(event: LogEvent) -> LogEvent:
    if event.keys().isdisjoint(CREDENTIALS):
        return event
    return {key: "(hidden)" if key in CREDENTIALS else value for key, value in event.items()}


def _message(event: LogEvent) -> str:
    """What *event* says, as ``formatEvent`` has it, whose many ways of calling cost six times."""
    template = event.get("log_format")
    if isinstance(template, str) and "()" not in template and "log_flattened" not in event:
        try:
            return template.format_map(event)
        except Exception:  # A field that is missing or cannot be shown: Twisted says so in words.
            pass
    return formatEvent(event)


@functools.lru_cache(maxsize=2)
def _local(second: int, zone: tuple[str, str]) -> tuple[str, str]:
    """That time here, in the zone called so: up to its seconds, and the offset behind them."""
    text = datetime.datetime.fromtimestamp(second).astimezone().isoformat(timespec="seconds")
    return text[:19], text[19:]


def text_line(event: LogEvent) -> str | None:
    """*event* as text, or None when there is nothing to say."""
    message = _message(_masked(event))
    failure = event.get("log_failure")
    if not message and failure is None:
        return None
    second, fraction = divmod(round(event["log_time"] * 1_000_000), 1_000_000)
    clock, offset = _local(second, time.tzname)
    lines = [f"{clock}.{fraction // 1000:03}{offset} {event['log_level'].name:<5} "
             f"{escape(event.get('log_namespace', '-'))}: {escape(message)}"]
    if failure is not None:
        # Indented, so that no line of an exception's text passes for an event.
        lines += ["    " + escape(line) for line in failure.getTraceback().splitlines()]
    return "\n".join(lines) + "\n"


def json_line(event: LogEvent) -> str:
    """*event* as one JSON object."""
    event = _masked(event)
    moment = datetime.datetime.fromtimestamp(event["log_time"], datetime.UTC)
    entry: dict[str, Any] = {
        "time": moment.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "level": event["log_level"].name,
        "namespace": event.get("log_namespace", "-"),
        "message": _message(event),
    }
    for name in sorted(event):
        if not name.startswith("log_") and name not in LEGACY:
            entry.setdefault(name, plain(event[name]))
    if "log_failure" in event:
        entry["traceback"] = event["log_failure"].getTraceback()
    # JSON escapes C0 and, asked for ASCII, all beyond 0x7E but DEL.
    return json.dumps(entry).replace("\x7f", "\\u007f") + "\n"


def plain(value: object) -> object:
    """*value* as JSON can hold it."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case bytes():
            return value.decode("utf-8", "backslashreplace")
        case dict():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [plain(item) for item in value]
    try:
        return str(value)
    except Exception:  # A field that cannot be shown must not lose the line.
        return f"<unprintable {type(value).__name__}>"
