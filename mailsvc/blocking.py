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
import functools
import inspect
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.threads import blockingCallFromThread
from twisted.python.threadable import isInIOThread

from mailsvc import client as _client

_starting = threading.Lock()

_P = ParamSpec("_P")
_R = TypeVar("_R")


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


def _described(waiting: Any, function: Callable[..., Any], result: str = "") -> None:
    """Let *waiting* show the parameters and the words of *function*.

    :param result: what it returns, if not what fires the Deferred of *function*.
    """
    functools.update_wrapper(waiting, function)
    signature = inspect.signature(function)
    result = result or str(signature.return_annotation).removeprefix("Deferred[").removesuffix("]")
    waiting.__module__ = __name__
    waiting.__doc__ = inspect.cleandoc(function.__doc__ or "").replace(" (in the Deferred)", "")
    waiting.__signature__ = signature.replace(return_annotation=result)


def _waiting(function: Callable[_P, Deferred[_R]]) -> Callable[_P, _R]:
    """*function* for blocking code."""
    def waiting(*args: _P.args, **options: _P.kwargs) -> _R:
        result: _R = run(function, *args, **options)
        return result

    _described(waiting, function)
    return waiting


def _dialling(function: Callable[_P, Deferred[_client.Client]]) -> Callable[_P, Client]:
    def waiting(*args: _P.args, **options: _P.kwargs) -> Client:
        return Client(run(function, *args, **options))

    _described(waiting, function, "Client")
    waiting.__name__ = waiting.__qualname__ = "dial"
    return waiting


def _method(
    function: Callable[Concatenate[_client.Client, _P], Deferred[_R]]
) -> Callable[Concatenate[Client, _P], _R]:
    def waiting(self: Client, /, *args: _P.args, **options: _P.kwargs) -> _R:
        result: _R = run(function, self._client, *args, **options)
        return result

    _described(waiting, function)
    return waiting


class Client:
    """A :class:`mailsvc.client.Client` whose methods wait for their replies.

    What is known of the connection, such as ``extensions``, ``secured`` and ``closed``, it has as
    well.  By ``with`` it says QUIT at the end, or is closed at once if the block failed.
    """

    def __init__(self, client: _client.Client) -> None:
        self._client = client

    ready = _method(_client.Client.ready)
    hello = _method(_client.Client.hello)
    start_tls = _method(_client.Client.start_tls)
    auth = _method(_client.Client.auth)
    mail = _method(_client.Client.mail)
    rcpt = _method(_client.Client.rcpt)
    data = _method(_client.Client.data)
    content = _method(_client.Client.content)
    bdat = _method(_client.Client.bdat)
    send = _method(_client.Client.send)
    verify = _method(_client.Client.verify)
    expand = _method(_client.Client.expand)
    reset = _method(_client.Client.reset)
    noop = _method(_client.Client.noop)
    quit = _method(_client.Client.quit)
    when_closed = _method(_client.Client.when_closed)

    def extension(self, name: str) -> str | None:
        """As of :class:`mailsvc.client.Client`."""
        return self._client.extension(name)

    def close(self) -> None:
        """Close at once; what is under way fails with Disconnected.  May be called again."""
        run(self._client.close)

    @property
    def pipeline(self) -> bool:
        """As of :class:`mailsvc.client.Client`."""
        return self._client.pipeline

    @pipeline.setter
    def pipeline(self, wanted: bool) -> None:
        self._client.pipeline = wanted

    def __getattr__(self, name: str) -> Any:
        # What is known, which changes nothing and waits for nothing.
        if name.startswith("_") or not isinstance(
                getattr(_client.Client, name, None), property):
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
        return getattr(self._client, name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *(
            name for name, each in vars(_client.Client).items() if isinstance(each, property))})

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        run(self._client.quit if kind is None else self._client.close)


send_mail = _waiting(_client.send_mail)
dial = _dialling(_client.Client.dial)
