"""The dialogues of :mod:`mailsvc.doctor.probes`, held with a server.

They look like an attack: they are for servers that one owns.  No password goes out but inside TLS.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred

from mailsvc.dialing import Line, NoConnection, dial
from mailsvc.doctor.facts import Check, Fact, Verdict, note, ok
from mailsvc.doctor.probes import PROBES, Probe, StartTLS, Step
from mailsvc.trust import UNVERIFIED, Untrusted

_REMEDY = "update that server, or see to its configuration"
_IMPLICIT = ("submissions", "pop3s")

#: A final line of a reply of SMTP; a status line of POP3.
_REPLY = {"smtp": re.compile(rb"([0-9]{3})(?: .*)?"), "pop3": re.compile(rb"([+-])(?:OK|ERR).*")}

#: Most octets of answers that are read.
_MOST = 1 << 20


@dataclass(frozen=True, slots=True)
class Server:
    """Where to look.

    :ivar kind: as in ``[listeners]``: smtp, submission, submissions, pop3 or pop3s.
    """

    kind: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.kind} {host}:{self.port}"


def checks(server: Server, values: Mapping[str, str], seconds: float,
           reactor: Any) -> Iterator[Check]:
    """A check for each probe that is for this kind of server.

    :param values: what is filled in: to, domain, user, password, those that are known.
    :param seconds: how long each answer may take.
    """
    for probe in PROBES:
        if server.kind in probe.kinds and not (probe.abroad and _is_here(server.host)):
            yield Check(f"{server.kind}: {probe.what}",
                        partial(_examined, probe, server, values, seconds, reactor))


async def _examined(probe: Probe, server: Server, values: Mapping[str, str], seconds: float,
                    reactor: Any) -> Sequence[Fact]:
    what = f"{server.kind}: {probe.what}"
    missing = [name for name in ("to", "domain", "user", "password")
               if name not in values and probe.needs(name)]
    if missing:
        return [note(what, "not looked at", "it needs " + (
            "--to" if missing[0] in ("to", "domain") else "--login and its password"))]
    steps = [step if isinstance(step, StartTLS) else _filled(step, values) for step in probe.steps]
    try:
        heard = await _converse(server, steps, seconds, reactor)
    except (NoConnection, Untrusted) as problem:
        return [Fact(Verdict.FAIL, what, f"{server}: {problem.text}", "see whether it is up")]
    return [judged(probe, what, heard.words, heard.text)]


def judged(probe: Probe, what: str, words: Sequence[str], text: bytes) -> Fact:
    """What the answers *words*, with their *text*, show."""
    answers = " ".join(words)
    if probe.offered and probe.offered not in text.upper():
        return note(what, f"not looked at: {probe.offered.decode()} is not offered")
    if probe.judged and not re.match(probe.judged, answers):
        return note(what, f"could not be judged: the answers were {answers}")
    if not re.fullmatch(probe.right, answers) or (
            probe.never and re.search(probe.never, text.replace(b"\r\n", b"\n"))):
        return Fact(probe.verdict, what, f"{probe.wrong} (the answers were {answers})", _REMEDY)
    return ok(what, f"as it shall be ({answers})")


def _filled(step: bytes, values: Mapping[str, str]) -> bytes:
    for name, value in values.items():
        step = step.replace(b"{%s}" % name.encode(), value.encode())
    return step


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# ---- one dialogue -------------------------------------------------------------------------------


@dataclass(slots=True)
class _Heard:
    """Owns a line, and tells its answers apart.

    :ivar words: what the answers are called.
    :ivar text: of all answers.
    """

    line: Line
    form: re.Pattern[bytes]
    seconds: float
    words: list[str] = field(default_factory=list)
    text: bytes = b""
    over: bool = False
    _rest: bytes = b""
    _waiting: Deferred[None] | None = None

    def wait(self) -> Deferred[None]:
        """Fires at the next answer, or the end."""
        waiting = self._waiting = Deferred()
        self.line.set_deadline(self.seconds)
        if self.over:
            self._fire()
        return waiting

    def received(self, data: bytes) -> None:
        """For the line."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        self.text += data
        answered = [match for line in lines
                    if (match := self.form.fullmatch(line.removesuffix(b"\r")))]
        self.words += [match[1].decode() for match in answered]
        if len(self.text) > _MOST:
            self._end("endless")
        elif answered:
            self._fire()

    def lost(self, why: str) -> None:
        """For the line."""
        self._end("end")

    def overdue(self) -> None:
        """For the line."""
        self._end("silent")

    def _end(self, word: str) -> None:
        if not self.over:
            self.over = True
            self.words.append(word)
            self.line.abort()
        self._fire()

    def _fire(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)


async def _converse(server: Server, steps: Sequence[Step], seconds: float,
                    reactor: Any) -> _Heard:
    """Hold one dialogue with *server*.

    :raises NoConnection: nobody is there.
    :raises Untrusted: TLS from the first octet could not be had.
    """
    line = await dial(reactor, server.host, server.port, seconds=seconds)
    try:
        if server.kind in _IMPLICIT:
            line.set_deadline(seconds)
            await line.start_tls(UNVERIFIED)
        heard = _Heard(line, _REPLY["pop3" if server.kind.startswith("pop3") else "smtp"], seconds)
        greeted = heard.wait()
        line.attach(heard)
        await greeted
        for step in steps:
            if heard.over:
                break
            if isinstance(step, StartTLS):
                if heard.words[-1] not in ("220", "+"):
                    heard.words.append("refused")
                    return heard
                try:
                    await line.start_tls(UNVERIFIED)
                except Untrusted:
                    heard.words.append("broken")
                    return heard
                heard.words.append("TLS")
                continue
            answered = heard.wait()
            line.write(step)
            await answered
        while not heard.over:
            await heard.wait()
        return heard
    finally:
        line.abort()
