"""What the tests of the checkers share: asking one, and certificates."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from twisted.cred.error import UnauthorizedLogin
from twisted.cred.strcred import makeChecker
from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import deferLater

from mailsvc.credentials import Attempt, Password
from mailsvc.errors import TemporaryFailure

ATTEMPT = Attempt("pop3", "192.0.2.1", "PLAIN")


def pause(seconds: float) -> Deferred[None]:
    """Fires in so many seconds."""
    return deferLater(reactor, seconds, lambda: None)  # type: ignore[arg-type]


def described(name: str, **values: object) -> str:
    """The ``--auth`` string with *values* for its keys."""
    pairs = (f"{key}={value}".replace("\\", "\\\\").replace(":", "\\:")
             for key, value in values.items())
    return f"{name}:" + ":".join(pairs)


def made(name: str, **values: object) -> Any:
    """The checker that ``--auth`` would make."""
    return makeChecker(described(name, **values))


async def ask(checker: Any, name: str | bytes, password: str | bytes) -> str:
    """The avatar id; "no", or "later", when there is none."""
    shown = Password(name.encode() if isinstance(name, str) else name,
                     password.encode() if isinstance(password, str) else password, ATTEMPT)
    return await outcome(maybeDeferred(checker.requestAvatarId, shown))


async def outcome(answer: Awaitable[bytes]) -> str:
    """As :func:`ask`."""
    try:
        return (await answer).decode()
    except UnauthorizedLogin as error:
        assert str(error) == "Authentication failed"
        return "no"
    except TemporaryFailure:
        return "later"
