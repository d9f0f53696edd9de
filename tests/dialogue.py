r"""Scripted dialogues between a client and a server: how they are written, and replayed.

A script is a text file (UTF-8) of lines::

    # a comment
    = name value           a setting of the world that the dialogue plays in
    S: 250-*               the server sends this line; * stands for any octets
    C: NOOP                the client sends this line and CRLF
    C< NO                  the client sends just these octets
    S.                     the server closes the connection; at the end only
    M: text                what lies in the mailboxes afterwards

In C and S lines ``\x00`` (any two digits), ``\r``, ``\n``, ``\t``, ``\\`` and ``\*`` stand for one
octet, and ``\(text*600)`` for *text* 600 times over.  ``=`` and ``M:`` lines mean what the test of
the protocol says that they mean, except for ``= in turns``: the dialogue makes no sense when the
client does not wait for its answers.

The lines fall into turns: the client speaks, then the server answers.  A script can be replayed
turn by turn, or with all that the client says sent ahead, and either way with the octets cut
anywhere.  Each time the server has to say the same.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

DIALOGUES = Path(__file__).parent / "dialogues"

_ESCAPE = re.compile(r"\\(?:x(?P<octet>[0-9A-Fa-f]{2})|\((?P<text>.*?)\*(?P<times>[0-9]+)\)"
                     r"|(?P<letter>.))")
_LETTERS = {"r": b"\r", "n": b"\n", "t": b"\t", "\\": b"\\", "*": b"*"}


@dataclass(frozen=True, slots=True)
class Turn:
    """What the client sends, and the lines that the server then answers."""

    sent: bytes
    answer: tuple[re.Pattern[bytes], ...]


@dataclass(frozen=True, slots=True)
class Script:
    """A dialogue.

    :ivar settings: the ``=`` lines, split at the first space.
    :ivar turns: the first one sends nothing if the server speaks first.
    :ivar closes: whether the server closes the connection in the end.
    :ivar mail: the ``M:`` lines.
    """

    path: Path
    settings: tuple[tuple[str, str], ...]
    turns: tuple[Turn, ...]
    closes: bool
    mail: tuple[str, ...]

    @property
    def sent(self) -> bytes:
        """All that the client says."""
        return b"".join(turn.sent for turn in self.turns)

    @property
    def in_turns(self) -> bool:
        """Whether the client must wait for its answers."""
        return ("in", "turns") in self.settings


class Server(Protocol):
    """A server as one client sees it."""

    def say(self, data: bytes) -> None:
        """Octets from the client arrive, in one piece."""

    def heard(self) -> bytes:
        """All that the server has sent since the beginning."""

    @property
    def closed(self) -> bool:
        """Whether the server has closed the connection, or is about to."""


Cut = Callable[[bytes], Iterator[bytes]]


def whole(data: bytes) -> Iterator[bytes]:
    """*data* in one piece."""
    if data:
        yield data


def bytewise(data: bytes) -> Iterator[bytes]:
    """*data* octet by octet."""
    return (data[n : n + 1] for n in range(len(data)))


def at_random(seed: int) -> Cut:
    """Pieces of random lengths, mostly short; the same for the same *seed*."""
    def cut(data: bytes) -> Iterator[bytes]:
        lengths = random.Random(seed)
        while data:
            length = min(1 + int(lengths.expovariate(1 / 12)), len(data))
            yield data[:length]
            data = data[length:]

    return cut


CUTS: dict[str, Cut] = {"whole": whole, "bytewise": bytewise,
                        **{f"random-{seed}": at_random(seed) for seed in range(1, 4)}}


def scripts(folder: str) -> list[Path]:
    """The scripts of a folder of ``tests/dialogues``."""
    found = sorted((DIALOGUES / folder).glob("*.txt"))
    assert found, f"no dialogues in {folder}"
    return found


def read(path: Path) -> Script:
    """Read a script; raises ValueError at a line that is none of those described above."""
    settings: list[tuple[str, str]] = []
    mail: list[str] = []
    turns: list[Turn] = []
    sent, closes = b"", False
    answer: tuple[re.Pattern[bytes], ...] = ()
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        mark, text = line[:2], line[2:].removeprefix(" ")
        if not line or line.startswith("#"):
            continue
        if closes and mark in ("S:", "C:", "C<", "S."):
            raise ValueError(f"{path}:{number}: the server has closed")
        if mark in ("C:", "C<"):
            if answer:
                turns.append(Turn(sent, answer))
                sent, answer = b"", ()
            sent += _octets(text) + (b"\r\n" if mark == "C:" else b"")
        elif mark == "S:":
            answer = (*answer, _pattern(text))
        elif line == "S.":
            closes = True
        elif mark == "M:":
            mail.append(text)
        elif mark == "= ":
            name, _, value = text.partition(" ")
            settings.append((name, value))
        else:
            raise ValueError(f"{path}:{number}: {line!r} is no line of a dialogue")
    return Script(path, tuple(settings), (*turns, Turn(sent, answer)), closes, tuple(mail))


def _octets(text: str) -> bytes:
    """The octets that *text* stands for."""
    octets, end = b"", 0
    for match in _ESCAPE.finditer(text):
        octets += text[end : match.start()].encode()
        if match["octet"]:
            octets += bytes.fromhex(match["octet"])
        elif match["times"]:
            octets += _octets(match["text"]) * int(match["times"])
        else:
            octets += _LETTERS[match["letter"]]
        end = match.end()
    return octets + text[end:].encode()


def _pattern(text: str) -> re.Pattern[bytes]:
    """What matches a line of the server's, without its CRLF."""
    parts = re.split(r"(?<!\\)\*(?![0-9]+\))", text)
    return re.compile(b".*".join(re.escape(_octets(part)) for part in parts), re.DOTALL)


def replay_in_turns(script: Script, server: Server, cut: Cut) -> None:
    """The client waits after each turn until the server has said all that it has to say."""
    expected: list[re.Pattern[bytes]] = []
    for turn in script.turns:
        for piece in cut(turn.sent):
            server.say(piece)
        expected += turn.answer
        compare(script, expected, server.heard())
    assert server.closed == script.closes, script.path


def replay_ahead(script: Script, server: Server, cut: Cut) -> None:
    """The client sends all it has to say before it looks at an answer."""
    for piece in cut(script.sent):
        server.say(piece)
    compare(script, [line for turn in script.turns for line in turn.answer], server.heard())
    assert server.closed == script.closes, script.path


def compare(script: Script, expected: list[re.Pattern[bytes]], heard: bytes) -> None:
    """Hold what the server said against what it should have said."""
    *lines, rest = heard.split(b"\r\n")
    assert not rest, f"{script.path}: the server's last line has no end: {rest!r}"
    for number, line in enumerate(lines):
        said = b"\n".join(lines[:number + 1]).decode("utf-8", "backslashreplace")
        assert number < len(expected), f"{script.path}: nothing more was expected:\n{said}"
        assert expected[number].fullmatch(line), (
            f"{script.path}: expected {expected[number].pattern!r}, last in\n{said}")
    assert len(lines) == len(expected), (
        f"{script.path}: expected {expected[len(lines)].pattern!r} behind\n{heard.decode()}")
