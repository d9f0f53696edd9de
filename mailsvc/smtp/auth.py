"""The AUTH command of an SMTP session: from its line to the 235, or to why not (RFC 4954 §4).

What is said in between is the mechanism's business (:mod:`mailsvc.sasl.exchange`); which replies,
questions and ends that makes is told here.
"""

from __future__ import annotations

from mailsvc.credentials import ScramKeys
from mailsvc.sasl.exchange import Exchange
from mailsvc.sasl.steps import Challenge, Guessed, Kind, LogIn, Lookup, Step, Succeeded
from mailsvc.smtp import replies
from mailsvc.smtp.dialogue import Dialogue


class Auth:
    """The AUTH commands of *session*: the one under way, if any, and how many went wrong."""

    __slots__ = ("_exchange", "_failures", "_session")

    def __init__(self, session: Dialogue) -> None:
        self._session = session
        self._exchange: Exchange | None = None
        self._failures = 0

    @property
    def under_way(self) -> bool:
        """Whether the client's next line is for :meth:`receive`."""
        return self._exchange is not None

    def begin(self, mechanism: bytes, initial: bytes | None) -> None:
        """The command has come, perhaps with an initial response."""
        assert self._session.sasl is not None
        self._exchange = Exchange(self._session.sasl())
        self._step(self._exchange.start(mechanism, initial))

    def receive(self, line: bytes) -> None:
        """The client answers a challenge."""
        assert self._exchange is not None
        self._step(self._exchange.receive(line))

    def answer(self, answer: ScramKeys | bool) -> None:
        """Lookup has found keys, or LogIn was right or wrong."""
        assert self._exchange is not None
        self._step(self._exchange.answer(answer))

    def refused(self) -> None:
        """The login that LogIn or Guessed told of is wrong."""
        if self._exchange is None:
            self._wrong()
        else:
            self.answer(False)

    def drop(self) -> None:
        """Forget the command."""
        self._exchange = None

    def _step(self, step: Step) -> None:
        """Do what the exchange asks for."""
        session = self._session
        if isinstance(step, Challenge):
            session.send(b"334 " + step.line + b"\r\n")
        elif isinstance(step, Lookup | LogIn):
            session.ask(step)
        elif isinstance(step, Succeeded):
            self._exchange = None
            session.say(replies.LOGGED_IN)
        elif step.kind is Kind.WRONG:
            self._exchange = None
            if step.username:
                session.ask(Guessed(step.username))
            else:
                self._wrong()
        else:
            self._exchange = None
            session.refuse(replies.FAILED_AUTH[step.kind])

    def _wrong(self) -> None:
        self._session.refuse(replies.FAILED_AUTH[Kind.WRONG])
        self._failures += 1
        if self._failures >= self._session.limits.login_failures:
            self._session.close(replies.TOO_MANY_LOGINS)
