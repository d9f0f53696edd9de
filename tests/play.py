"""Scripts of the client's side of a protocol, without I/O: ``tests.dialogue``, roles turned round.

Beside ``S:``, ``S<``, ``C:``, ``C<`` and ``=`` lines as there, a script has what the owner does
(``> method argument keyword=value``, ``> authenticate MECHANISM name password``) and the events
that it gets (``E:``, ``*`` for any text).  ``= whole yes``: what the server says is not cut.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mailsvc.sasl.client import ClientExchange, Login
from mailsvc.smtp.requests import Parameters
from tests.dialogue import CUTS, Cut, _octets


def lines_of(path: Path) -> list[str]:
    """The lines of a script that say something."""
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


class Play:
    """A session in a script.

    :param words: an event as ``E:`` lines have it.
    """

    def __init__(self, path: Path, cut: Cut, session: Any, words: Callable[[Any], str]) -> None:
        self.lines = lines_of(path)
        self.cut = CUTS["whole"] if "= whole yes" in self.lines else cut
        self.session = session
        self.words = words
        self.sent = b""
        self.events: list[str] = []
        self.unsaid = b""

    def run(self) -> None:
        for line in self.lines:
            mark, text = line[:2], line[2:].removeprefix(" ")
            if mark in ("S:", "S<"):
                self.unsaid += _octets(text) + (b"\r\n" if mark == "S:" else b"")
                continue
            self.say()
            if mark == "> ":
                self.act(text)
            elif mark in ("C:", "C<"):
                self.expect(_octets(text) + (b"\r\n" if mark == "C:" else b""), line)
            elif mark == "E:":
                assert self.events, f"no event for {line!r}"
                event = self.events.pop(0)
                assert fnmatch.fnmatchcase(event, text), f"{event!r} is not {text!r}"
            else:
                assert mark == "= ", line
        self.say()
        assert self.events == []
        assert self.sent.strip(b"\r\n") == b""

    def say(self) -> None:
        data, self.unsaid = self.unsaid, b""
        for piece in self.cut(data):
            self.session.receive(piece)
            self.look()

    def act(self, text: str) -> None:
        name, *words = text.split(" ")
        arguments: list[Any] = []
        options: dict[str, Any] = {}
        if name == "authenticate":
            mechanism, *secret = (_octets(word).decode() for word in words)
            arguments.append(ClientExchange(mechanism, Login(**dict(
                zip(("name", "password"), secret, strict=False)))))
            words = []
        for word in words:
            key, equals, value = word.partition("=")
            if equals:
                options[key] = int(value) if value.isdecimal() else value
            elif word == "last":
                options["last"] = True
            else:
                arguments.append(_octets(word) if name in ("content", "bdat") else word)
        if name == "mail":
            arguments.append(Parameters(**options))
            options = {}
        getattr(self.session, name)(*arguments, **options)
        self.look()

    def look(self) -> None:
        while (event := self.session.next_event()) is not None:
            self.events.append(self.words(event))
        self.sent += self.session.data_to_send()

    def expect(self, wanted: bytes, line: str) -> None:
        assert self.sent.startswith(wanted), f"{line!r}: sent was {self.sent!r}"
        self.sent = self.sent[len(wanted):]
