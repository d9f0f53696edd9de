"""A SASL exchange played from a script: both sides' base64, and the answers of an owner."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

from mailsvc.credentials import Attempt, ScramKeys
from mailsvc.sasl.context import AuthSettings, Context
from mailsvc.sasl.exchange import Exchange
from mailsvc.sasl.mechanisms import MECHANISMS
from mailsvc.sasl.scram import scram_keys
from mailsvc.sasl.steps import Challenge, LogIn, Lookup, Step

CLIENT = "192.0.2.7"
BINDINGS = {"tls-exporter": b"exported", "tls-server-end-point": b"hash of a certificate"}
#: RFC 7677 §3: the user "user" with the password "pencil".
PENCIL = scram_keys(b"pencil", 4096, base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="))

#: A connection on which all can be used.
OPEN = Context(
    protocol="submission",
    hostname="mx.example.com",
    settings=AuthSettings(mechanisms=list(MECHANISMS)),
    usable=frozenset(MECHANISMS),
    client=CLIENT,
    tls_active=True,
    channel_bindings=BINDINGS,
    certificate_names=("fred@example.com", "Fred@example.org"),
)


def context(**changes: Any) -> Context:
    """A connection like OPEN but for *changes*."""
    return replace(OPEN, **changes)


def attempt(mechanism: str) -> Attempt:
    """What credentials from OPEN carry."""
    return Attempt("submission", CLIENT, mechanism)


def b64(data: bytes) -> bytes:
    return base64.b64encode(data)


class Play:
    """An exchange whose owner finds *keys* for every name and answers LogIn with *right*.

    :ivar steps: all that the exchange said.
    """

    def __init__(
        self, where: Context = OPEN, *, right: bool = True, keys: ScramKeys = PENCIL
    ) -> None:
        self.exchange = Exchange(where)
        self.steps: list[Step] = []
        self._right = right
        self._keys = keys

    def start(self, mechanism: str, initial: bytes | None = None) -> Step:
        """Say AUTH; *initial* as on the wire.  The next step that is not for the owner."""
        return self._answered(self.exchange.start(mechanism.encode(), initial))

    def line(self, line: bytes) -> Step:
        """Say *line*."""
        return self._answered(self.exchange.receive(line))

    def say(self, message: bytes) -> Step:
        """Say *message* in base64."""
        return self.line(b64(message))

    @property
    def last(self) -> Step:
        return self.steps[-1]

    @property
    def challenges(self) -> list[bytes]:
        return [step.data for step in self.steps if isinstance(step, Challenge)]

    @property
    def logins(self) -> list[LogIn]:
        return [step for step in self.steps if isinstance(step, LogIn)]

    def _answered(self, step: Step) -> Step:
        while True:
            self.steps.append(step)
            if isinstance(step, Lookup):
                step = self.exchange.answer(self._keys)
            elif isinstance(step, LogIn):
                step = self.exchange.answer(self._right)
            else:
                return step
