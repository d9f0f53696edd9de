"""The clients for plain blocking code: one import, one call.

::

    from mailsvc.blocking import send_mail

    send_mail("mail.example.org", "me@example.org", ["you@example.net"],
              b"Subject: hello\\r\\n\\r\\nIt works.\\r\\n", user="me@example.org", password="...")

or step by step, with every method of :class:`mailsvc.client.Client`, each of which waits::

    from mailsvc.blocking import dial

    with dial("mail.example.org", 587, tls="starttls") as client:
        client.auth("me@example.org", "...")
        client.mail("me@example.org")

The first call starts Twisted's reactor in a daemon thread, where it stays for the next; a reactor
that runs already in another thread is used as it is.  Calls may come from several threads.  In the
reactor's own thread they cannot work, and say so.
"""

from __future__ import annotations

import atexit
import inspect
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.threads import blockingCallFromThread
from twisted.python.threadable import isInIOThread

from mailsvc import client as _client
from mailsvc.client import Outcome

_starting = threading.Lock()


def run(function: Callable[..., Deferred[Any] | Coroutine[Any, Any, Any] | Any],
        *args: Any, **options: Any) -> Any:
    """Call *function* in the reactor's thread; wait for, and return, what comes of it."""
    reactor = _reactor()
    if isInIOThread() and reactor.running:
        raise RuntimeError("blocking calls cannot be made in the reactor's own thread; "
                           "use mailsvc.client there")

    def call() -> Deferred[Any]:
        def begin() -> Any:
            result = function(*args, **options)
            return Deferred.fromCoroutine(result) if inspect.iscoroutine(result) else result

        return maybeDeferred(begin)

    return blockingCallFromThread(reactor, call)


def _reactor() -> Any:
    """The reactor, running."""
    from twisted.internet import reactor  # noqa: PLC0415 - importing it installs it

    loop: Any = reactor
    with _starting:
        if not loop.running:
            running = threading.Event()
            loop.callWhenRunning(running.set)
            threading.Thread(target=loop.run, kwargs={"installSignalHandlers": False},
                             name="mailsvc reactor", daemon=True).start()
            if not running.wait(10):
                raise RuntimeError("the reactor does not start: it has been stopped in this "
                                   "process before, and cannot run again")
            atexit.register(_stop, loop)
    return loop


def _stop(loop: Any) -> None:
    if loop.running:
        loop.callFromThread(loop.stop)


def send_mail(*args: Any, **options: Any) -> tuple[Outcome, ...]:
    """:func:`mailsvc.client.send_mail`, waiting."""
    outcomes: tuple[Outcome, ...] = run(_client.send_mail, *args, **options)
    return outcomes


def dial(*args: Any, **options: Any) -> Client:
    """:meth:`mailsvc.client.Client.dial`, waiting; to be used by ``with``."""
    return Client(run(_client.Client.dial, *args, **options))


class Client:
    """A :class:`mailsvc.client.Client` whose methods wait for their replies.

    By ``with`` it says QUIT at the end, or is closed at once if the block failed.
    """

    def __init__(self, client: _client.Client) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        if not callable(found) or name.startswith("_"):
            return found

        def waiting(*args: Any, **options: Any) -> Any:
            return run(found, *args, **options)

        return waiting

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        run(self._client.quit if kind is None else self._client.close)
