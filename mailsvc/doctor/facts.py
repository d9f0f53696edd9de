"""Facts, the checks that find them, and how checks are run: all at once, each bounded in time.

A :class:`Check` is a name and a coroutine function that answers facts.  :func:`examine` starts them
all, and tells of each in the order in which they were given; what takes too long, or breaks, is a
fact as well.  Work that blocks goes through :func:`in_thread`: a thread that hangs, on a disk that
does not answer say, holds up neither the others nor the end of the program.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore, TimeoutError

Result = TypeVar("Result")


class Verdict(enum.IntEnum):
    """How a fact is to be taken; the greater, the worse.

    A NOTE is neither good nor bad: what was not looked at, or need not be there.
    """

    OK = 0
    NOTE = 1
    WARN = 2
    FAIL = 3

    def __str__(self) -> str:
        # Only what needs somebody's hands shouts.
        return "FAIL" if self is Verdict.FAIL else self.name.lower()


@dataclass(frozen=True, slots=True)
class Fact:
    """What was found.

    :ivar what: what it is about, in a few words.
    :ivar detail: what is so.
    :ivar remedy: what to do, or empty.
    """

    verdict: Verdict
    what: str
    detail: str
    remedy: str = ""

    def __str__(self) -> str:
        text = f"{self.detail} — {self.remedy}" if self.remedy else self.detail
        # One line, whatever a peer's answer may hold.
        shown = "".join(each if each.isprintable() else "?" for each in " ".join(text.split()))
        return f"{self.verdict!s:4}  {self.what:30}  {shown}"


def ok(what: str, detail: str) -> Fact:
    """What is as it shall be."""
    return Fact(Verdict.OK, what, detail)


def note(what: str, detail: str, remedy: str = "") -> Fact:
    """What is neither good nor bad."""
    return Fact(Verdict.NOTE, what, detail, remedy)


def warn(what: str, detail: str, remedy: str) -> Fact:
    """What works, and should not stay so."""
    return Fact(Verdict.WARN, what, detail, remedy)


def fail(what: str, detail: str, remedy: str) -> Fact:
    """What does not work."""
    return Fact(Verdict.FAIL, what, detail, remedy)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing to look at.

    :ivar what: as in the facts it finds.
    :ivar find: finds them.
    """

    what: str
    find: Callable[[], Awaitable[Sequence[Fact]]]


async def examine(checks: Iterable[Check], seconds: float, reactor: Any,
                  tell: Callable[[Fact], object],
                  waiting: Callable[[str], object] = lambda _: None,
                  at_once: int = 100) -> list[Fact]:
    """Run *checks* side by side, for *seconds* each at most; *tell* of each fact in their order.

    :param waiting: told which check is waited for.
    :param at_once: how many run at the same time.
    """
    room = DeferredSemaphore(at_once)

    async def bounded(check: Check) -> Sequence[Fact]:
        await room.acquire()
        try:
            return await Deferred.fromCoroutine(_found(check)).addTimeout(seconds, reactor)
        finally:
            room.release()

    started = [(check, Deferred.fromCoroutine(bounded(check))) for check in checks]
    facts: list[Fact] = []
    for check, pending in started:
        if not pending.called:
            waiting(check.what)
        try:
            found = await pending
        except (TimeoutError, CancelledError):
            found = [fail(check.what, f"could not be told within {seconds:g} seconds",
                          "look at what it waits for, or give it longer: --timeout")]
        except Exception as error:
            found = [fail(check.what, f"the check broke: {type(error).__name__}: {error}",
                          "report this as a bug")]
        for fact in found:
            tell(fact)
        facts += found
    return facts


async def _found(check: Check) -> Sequence[Fact]:
    return await check.find()


def in_thread(reactor: Any, function: Callable[..., Result], *args: Any) -> Deferred[Result]:
    """What *function*, which may block, returns, called in a thread that nobody waits for."""
    done: Deferred[Result] = Deferred(lambda _: None)

    def finish(call: Callable[[Any], object], result: object) -> None:
        if not done.called:
            call(result)

    def work() -> None:
        try:
            result = function(*args)
        except BaseException as error:
            reactor.callFromThread(finish, done.errback, error)
        else:
            reactor.callFromThread(finish, done.callback, result)

    threading.Thread(target=work, name="mailsvc doctor", daemon=True).start()
    return done
