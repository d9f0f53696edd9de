"""mailsvc.transcript: what is shown of a dialogue, and what never is."""

from __future__ import annotations

import base64
import random
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailsvc.pop3.limits import POP3Settings
from mailsvc.pop3.session import Session as POP3Session
from mailsvc.sasl import client
from mailsvc.sasl.steps import Guessed, LogIn, Lookup
from mailsvc.smtp.limits import SMTPSettings
from mailsvc.smtp.mode import SUBMISSION
from mailsvc.smtp.session import Session as SMTPSession
from mailsvc.transcript import LINE, TEXT_OCTETS, POP3Transcript, SMTPTranscript, Transcript
from tests.maildrops import FakeMaildrop
from tests.sasl import BINDINGS, OPEN, PENCIL

KINDS = {"smtp": SMTPTranscript, "pop3": POP3Transcript}


def shown(script: str, protocol: str = "smtp", *, text: bool = False, begun: bool = False,
          cut: Callable[[bytes], list[bytes]] = lambda data: [data]) -> list[str]:
    """What a transcript says of *script*: lines of C and S as the octets pass.

    ``C!`` begins where the client has all its answers.
    """
    said: list[str] = []
    transcript = KINDS[protocol](lambda whose, line: said.append(f"{whose}: {line}"), text=text,
                                 begun=begun)
    for line in script.strip().splitlines():
        mark, _, octets = line.strip().partition(" ")
        data = octets.encode().decode("unicode_escape").encode("latin-1") + b"\r\n"
        if mark == "S":
            for piece in cut(data):
                transcript.sent(piece)
        else:
            for number, piece in enumerate(cut(data)):
                transcript.received(piece, at_rest=mark == "C!" and not number)
    transcript.ended()
    return said


DIALOGUES = {
    "a message": ("smtp", r"""
        S 220 mx.example.org
        C! EHLO me
        S 250-mx.example.org\r\n250 HELP
        C! MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA
        S 250 2.1.0 OK\r\n250 2.1.5 OK\r\n354 go
        C Subject: secret\r\n\r\nRCPT TO:<x@y>\r\n..\r\n.
        S 250 2.0.0 taken
        C! QUIT
        S 221 bye
    """, """
        S: 220 mx.example.org
        C: EHLO me
        S: 250-mx.example.org
        S: 250 HELP
        C: MAIL FROM:<a@b>
        C: RCPT TO:<c@d>
        C: DATA
        S: 250 2.1.0 OK
        S: 250 2.1.5 OK
        S: 354 go
        C: (38 octets of a message)
        C: .
        S: 250 2.0.0 taken
        C: QUIT
        S: 221 bye
    """),
    "a refused DATA": ("smtp", r"""
        C! DATA
        S 503 5.5.1 RCPT first
        C! NOOP
        S 250 OK
    """, """
        C: DATA
        S: 503 5.5.1 RCPT first
        C: NOOP
        S: 250 OK
    """),
    "behind DATA without waiting": ("smtp", r"""
        C! MAIL FROM:<a@b>\r\nDATA\r\nRSET\r\nQUIT
        S 250 OK\r\n503 5.5.1 RCPT first
        S 250 OK\r\n221 bye
    """, """
        C: MAIL FROM:<a@b>
        C: DATA
        S: 250 OK
        S: 503 5.5.1 RCPT first
        C: RSET
        C: QUIT
        S: 250 OK
        S: 221 bye
    """),
    "chunks": ("smtp", r"""
        C! BDAT 11\r\nQUIT\r\nhid\r\nBDAT 0 LAST
        S 250 11 octets\r\n250 2.0.0 taken
    """, """
        C: BDAT 11
        C: (11 octets of a message)
        C: BDAT 0 LAST
        S: 250 11 octets
        S: 250 2.0.0 taken
    """),
    "what is no command": ("smtp", r"""
        C! hunter2
        S 500 5.5.2 what
        C! aHVudGVyMg==
        S 500 5.5.2 what
        C! NOOPaGk=
        S 500 5.5.2 what
    """, """
        C: (9 octets not shown)
        S: 500 5.5.2 what
        C: (14 octets not shown)
        S: 500 5.5.2 what
        C: (10 octets not shown)
        S: 500 5.5.2 what
    """),
    "AUTH": ("smtp", r"""
        C! AUTH PLAIN AGFsaWNlAGh1bnRlcjI=
        S 535 5.7.8 wrong
        C! auth Login
        S 334 VXNlcm5hbWU6
        C YWxpY2U=
        S 334 UGFzc3dvcmQ6
        C aHVudGVyMg==
        S 235 2.7.0 OK
        C! AUTH hunter2
        S 504 5.5.4 what
        C! AUTH GSSAPI
        S 334
        C *
        S 501 5.7.0 as you wish
        C! NOOP
        S 250 OK
    """, """
        C: AUTH PLAIN ********
        S: 535 5.7.8 wrong
        C: auth LOGIN
        S: 334 ********
        C: ********
        S: 334 ********
        C: ********
        S: 235 2.7.0 OK
        C: AUTH ********
        S: 504 5.5.4 what
        C: AUTH GSSAPI
        S: 334
        C: *
        S: 501 5.7.0 as you wish
        C: NOOP
        S: 250 OK
    """),
    "controls": ("smtp", r"""
        C! NOOP \x1b[2J\x07\xff
        S 500 5.5.2 what
    """, r"""
        C: NOOP \x1b[2J\x07\xff
        S: 500 5.5.2 what
    """),
    "POP3": ("pop3", r"""
        S +OK ready <1.2@host>
        C! APOP alice c4c9334bac560ecc979e58001b3e22fb
        S -ERR [AUTH] wrong
        C! USER alice
        S +OK
        C! pass hunter2 and more
        S +OK 1 message
        C! LIST\r\nUIDL\r\nRETR 1\r\nLIST 1\r\nDELE 9
        S +OK\r\n1 120\r\n.\r\n+OK\r\n1 abc\r\n.
        S +OK 13 octets\r\n+OK secret\r\n..\r\n.\r\n+OK 1 120\r\n-ERR no such message
        C! QUIT
        S +OK bye
    """, """
        S: +OK ready <1.2@host>
        C: APOP alice ********
        S: -ERR [AUTH] wrong
        C: USER alice
        S: +OK
        C: pass ********
        S: +OK 1 message
        C: LIST
        C: UIDL
        C: RETR 1
        C: LIST 1
        C: DELE 9
        S: +OK
        S: 1 120
        S: .
        S: +OK
        S: 1 abc
        S: .
        S: +OK 13 octets
        S: (16 octets of a message)
        S: .
        S: +OK 1 120
        S: -ERR no such message
        C: QUIT
        S: +OK bye
    """),
    "AUTH in POP3": ("pop3", r"""
        C! AUTH
        S +OK mechanisms\r\nPLAIN\r\n.
        C! AUTH XOAUTH2 dG9rZW4=
        S + eyJzdGF0dXMiOiI0MDEifQ==
        C dG9rZW4=
        S -ERR [AUTH] wrong
        C! AUTH SCRAM-SHA-256 =
        S +
        C *
        S -ERR as you wish
    """, """
        C: AUTH
        S: +OK mechanisms
        S: PLAIN
        S: .
        C: AUTH XOAUTH2 ********
        S: + ********
        C: ********
        S: -ERR [AUTH] wrong
        C: AUTH SCRAM-SHA-256 =
        S: +
        C: *
        S: -ERR as you wish
    """),
}


def lines(text: str) -> list[str]:
    return [each.removeprefix("        ") for each in text.strip("\n").split("\n")
            if each.strip()]


@pytest.mark.parametrize("name", DIALOGUES)
@pytest.mark.parametrize("octets", [1, 2, 7, 1 << 20])
def test_what_is_shown(name: str, octets: int) -> None:
    """However the octets are cut."""
    protocol, script, expected = DIALOGUES[name]
    assert shown(script, protocol, cut=lambda data: [
        data[start:start + octets] for start in range(0, len(data), octets)]) == lines(expected)


def test_messages_are_shown_when_asked_for() -> None:
    assert shown(r"""
        C! DATA
        S 354 go
        C Subject: hi\r\n\r\n..\r\n.
        S 250 OK
    """, text=True) == ["C: DATA", "S: 354 go", "C: Subject: hi", "C: ", "C: ..", "C: .",
                        "S: 250 OK"]
    assert shown(r"""
        C! RETR 1
        S +OK\r\nSubject: hi\r\n\r\nhello\r\n.
    """, "pop3", text=True) == ["C: RETR 1", "S: +OK", "S: Subject: hi", "S: ", "S: hello", "S: ."]


def test_long_ones_are_not_shown_to_their_end() -> None:
    said: list[str] = []
    transcript = SMTPTranscript(lambda whose, line: said.append(line), text=True, begun=False)
    transcript.received(b"DATA\r\n", at_rest=True)
    transcript.sent(b"354 go\r\n")
    for _ in range(40):
        transcript.received(b"x" * 5000 + b"\r\n", at_rest=False)
    transcript.received(b".\r\n", at_rest=False)
    assert sum(map(len, said)) < TEXT_OCTETS
    assert all(len(each) <= LINE + 1 for each in said)
    assert said[-2:] == ["(200080 octets of a message)", "."]


def test_from_the_middle_it_begins_with_the_next_command() -> None:
    assert shown(r"""
        C MAIL FROM:<a@b>
        S 250 2.1.5 OK
        C hunter2
        C! NOOP
        S 250 OK
    """, begun=True) == [
        "C: (17 octets not shown)", "S: 250 2.1.5 OK", "C: (9 octets not shown)", "C: NOOP",
        "S: 250 OK"]
    assert shown(r"""
        S +OK logged in\r\n+OK 3 octets\r\nsecret\r\n.
        C! NOOP
        S +OK
    """, "pop3", begun=True) == ["S: +OK logged in", "S: +OK 3 octets", "S: (11 octets not shown)",
                                 "C: NOOP", "S: +OK"]


def test_the_next_message_is_known_from_the_middle() -> None:
    """As a recipient is watched: the answer to RCPT comes first."""
    assert shown(r"""
        S 250 2.1.5 OK
        S 354 go
        C hello\r\n.
        S 250 2.0.0 taken
    """, begun=True) == ["S: 250 2.1.5 OK", "S: 354 go", "C: (7 octets of a message)", "C: .",
                         "S: 250 2.0.0 taken"]


# ---- secrets -------------------------------------------------------------------------------------

MECHANISMS = sorted(client.MECHANISMS)
SECRETS = st.from_regex(r"[A-Za-z0-9]{8,20}", fullmatch=True)


class Held:
    """A real session, and a transcript of it; the octets cut and the transcript begun by chance."""

    def __init__(self, protocol: str, chance: random.Random) -> None:
        self.protocol, self._chance = protocol, chance
        self.said: list[str] = []
        self.transcript: Transcript | None = None
        self._begins = chance.choice([0, 0, 0, 1, 2, 3, 5, 9])
        self.right = chance.random() < 0.5
        self.session: Any
        if protocol == "smtp":
            self.session = SMTPSession("mx.example.org", SMTPSettings(), SUBMISSION,
                                       sasl=lambda: OPEN)
        else:
            self.session = POP3Session("mx.example.org", POP3Settings(), sasl=lambda: OPEN,
                                       timestamp="<1.2@mx.example.org>")
            self.session.greet()
        self._turn(b"")

    def say(self, data: bytes) -> bytes:
        """What the server answers."""
        answer = b""
        while data:
            octets = self._chance.choice([1, 3, 20, len(data), len(data)])
            piece, data = data[:octets], data[octets:]
            answer += self._turn(piece)
        return answer

    def _turn(self, data: bytes) -> bytes:
        session = self.session
        at_rest = not (session.waiting or session.buffered or session.exchanging)
        if not self._begins and self.transcript is None:
            self.transcript = KINDS[self.protocol](
                lambda whose, line: self.said.append(line), text=True, begun=bool(data))
        self._begins -= self.transcript is None
        if self.transcript is not None and data:
            self.transcript.received(data, at_rest=at_rest)
        session.receive(data)
        while (event := session.next_event()) is not None:
            if isinstance(event, Lookup):
                session.keys(PENCIL)
            elif isinstance(event, LogIn) and self.right and self.protocol == "smtp":
                session.logged_in("alice@example.org")
            elif isinstance(event, LogIn) and self.right:
                session.logged_in(FakeMaildrop([]))
            elif isinstance(event, LogIn | Guessed) or type(event).__name__ in (
                    "Login", "ApopLogin"):
                session.login_refused()
            elif type(event).__name__ == "Connected":
                session.reply(session.greeting)
            elif type(event).__name__ == "Hello":
                session.reply(session.hello_reply(event))
        answer: bytes = session.data_to_send()
        if self.transcript is not None and answer:
            self.transcript.sent(answer)
        return answer


def answered(answer: bytes, protocol: str) -> str | None:
    """The challenge in *answer*, or None."""
    match = re.search(rb"^334 (.*)\r\n" if protocol == "smtp" else rb"^\+ (.*)\r\n", answer,
                      re.MULTILINE)
    return match[1].decode() if match else None


def forms(secret: str) -> list[str]:
    """How a secret may look in base64, wherever it begins, and in clear."""
    return [secret, *(base64.b64encode(b"." * before + secret.encode()).decode()[4:-4]
                      for before in range(3))]


@settings(max_examples=250)
@given(protocol=st.sampled_from(sorted(KINDS)), mechanism=st.sampled_from(MECHANISMS),
       password=SECRETS, chance=st.randoms(use_true_random=False), ahead=st.booleans())
def test_no_secret_of_an_exchange_is_ever_shown(
        protocol: str, mechanism: str, password: str, chance: random.Random, ahead: bool) -> None:
    """By every mechanism, real sessions, octets cut anywhere, a transcript from anywhere on, and
    clients that do not wait."""
    held = Held(protocol, chance)
    held.say(b"EHLO me\r\n" if protocol == "smtp" else b"CAPA\r\n")
    # What passes is a secret whatever it holds: with SCRAM the password is not in it.
    passed: list[str] = []
    for _ in range(2):
        exchange = client.ClientExchange(mechanism, client.Login(
            name="fred@example.com", password=password, token=password,
            channel_bindings=BINDINGS), [mechanism])
        command = f"AUTH {mechanism}"
        initial = exchange.initial_response
        if initial is not None and chance.random() < 0.5:
            command += f" {initial}"
            exchange.initial_sent()
            passed.append(initial)
        elif initial is not None and ahead:
            command += f"\r\n{initial}"
            passed.append(initial)
        answer = held.say(command.encode() + b"\r\n")
        for _ in range(6):
            challenge = answered(answer, protocol)
            if challenge is None:
                break
            passed.append(challenge)
            try:
                response = exchange.respond(challenge)
            except client.Abandoned:
                response = "*"
            passed.append(response)
            answer = held.say(response.encode() + b"\r\n")
    held.say(b"NOOP\r\n")
    text = "\n".join(held.said)
    for form in [*forms(password), *(each for each in passed if len(each) > 8)]:
        assert form not in text, held.said
    assert not held.transcript or not held.said or "NOOP" in text or "not shown" in text


@settings(max_examples=100)
@given(secret=SECRETS, chance=st.randoms(use_true_random=False))
def test_no_password_of_pop3_is_ever_shown(secret: str, chance: random.Random) -> None:
    held = Held("pop3", chance)
    held.say(b"".join(chance.choices([
        b"USER alice\r\n", f"PASS {secret}\r\n".encode(), f"pass\t{secret}\r\n".encode(),
        f"PASS {secret} {secret}\r\n".encode(), f"APOP alice {secret}\r\n".encode(),
        f"APOP {secret}\r\n".encode(), f"{secret}\r\n".encode(), f" PASS {secret}\r\n".encode(),
        f"NOOP\nPASS {secret}\r\n".encode(), f"AUTH {secret}\r\n".encode()], k=6)))
    text = "\n".join(held.said)
    for form in forms(secret):
        assert form not in text, held.said
