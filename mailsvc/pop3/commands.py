"""The command table of a POP3 session, and what each command does.

One command is one row of ``COMMANDS`` and one function; what CAPA says beyond that is one row of
``BEHAVIOUR``.  The answers to what is malformed or out of order, CAPA and the exhaustive tests all
follow from the rows.

A function of a row is given the session and the parsed arguments.  It answers (``Session.ok``,
``no``, ``refuse``, ``lines``), asks the session's owner (``ask``) or ends the session (``end``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from mailsvc import __version__
from mailsvc.pop3 import grammar
from mailsvc.pop3.events import ApopLogin, Event, Listing, Login, Retrieve, StartTLS, Update
from mailsvc.pop3.limits import POP3Settings
from mailsvc.pop3.marks import BLOCK_LINES, MarkedMaildrop
from mailsvc.pop3.replies import plural, positive
from mailsvc.sasl.context import Context
from mailsvc.sasl.mechanisms import offered


class State(Enum):
    """Where a session is (RFC 1939 §3).

    A login leads from AUTHORIZATION to TRANSACTION, QUIT from there to UPDATE; CLOSED follows from
    each.  No command is taken in UPDATE and CLOSED.  Whether an answer is awaited is kept apart.
    """

    AUTHORIZATION = "authorization"
    TRANSACTION = "transaction"
    UPDATE = "update"
    CLOSED = "closed"


_BEFORE_LOGIN = (State.AUTHORIZATION,)
_LOGGED_IN = (State.TRANSACTION,)
_ANY = _BEFORE_LOGIN + _LOGGED_IN

#: How a command is refused that is not legal in this state.
OUT_OF_ORDER = {
    State.AUTHORIZATION: "Log in first",
    State.TRANSACTION: "You are logged in already",
}

#: What LANG offers: a tag, and the language's name in the language (RFC 6856 §3.1).  RFC 2277 §4.5
#: asks for i-default, which is what is spoken before LANG.
LANGUAGES = {"i-default": "Default language", "en": "English"}
#: What LANG * means.
_PREFERRED_LANGUAGE = "en"


class Session(Protocol):
    """A session as its commands see it; :mod:`mailsvc.pop3.session` says what each attribute is."""

    hostname: str
    settings: POP3Settings
    timestamp: str
    sasl: Callable[[], Context] | None
    tls_available: bool
    tls_active: bool
    state: State
    user: str | None
    utf8: bool
    maildrop: MarkedMaildrop

    @property
    def private(self) -> bool:
        """Whether this client may log in: nobody listens, or the operator does not mind."""

    def ok(self, text: str) -> None:
        """Answer a command."""

    def no(self, text: str) -> None:
        """Refuse a command that is well-formed."""

    def refuse(self, text: str) -> None:
        """Refuse a command that is malformed or out of order; too many end the session."""

    def lines(self, first: str, *lines: str) -> None:
        """Answer a command with a few *lines*, none of which begins with a dot."""

    def message(self, number: int, text: bytes) -> None:
        """Answer RETR by the *text* of message *number*: CRLF lines, not dot-stuffed."""

    def send(self, data: bytes) -> None:
        """Owe *data* to the peer."""

    def ask(self, question: Event) -> None:
        """Put *question* to the owner of the session."""

    def authenticate(self, mechanism: bytes, initial: bytes | None) -> None:
        """Begin an AUTH exchange."""

    def forget_input(self) -> None:
        """Drop what was received and not looked at."""

    def end(self, answer: bytes, reason: str, *, asked: bool = False) -> None:
        """Send *answer* and close."""


def _not_announced(session: Session) -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Command:
    """One row of the command table.

    :ivar parse: makes the arguments of *act* of what follows the verb and a space.
    :ivar legal: the states in which it may come.
    :ivar syntax: what a malformed argument is answered with.
    :ivar capability: the line of CAPA that announces it, or "".  RFC 2449 §5: what can be had in
        the AUTHORIZATION state is announced in both, so that a client needs to ask only once.
    """

    verb: str
    parse: Callable[[bytes], tuple[Any, ...]]
    legal: tuple[State, ...]
    act: Callable[..., None]
    syntax: str
    capability: Callable[[Session], str] = _not_announced


# ---- in any state ----


def _capa(session: Session) -> None:
    offers = [row.capability for row in COMMANDS.values()]
    lines = (offer(session) for offer in (*offers, *BEHAVIOUR))
    session.lines("Capabilities follow", *filter(None, lines))


def _lang(session: Session, wanted: str) -> None:
    if not wanted:
        listing = (f"{tag} {name}" for tag, name in LANGUAGES.items())
        session.lines("Languages follow", *listing)
        return
    # RFC 4647 §3.4: a range is looked up as it stands, then ever shorter from its end.
    tag = _PREFERRED_LANGUAGE if wanted == "*" else wanted
    while tag and tag not in LANGUAGES:
        tag = tag.rpartition("-")[0]
    if tag:
        session.ok(f"{tag} {LANGUAGES[tag]}")
    else:
        session.no("No such language; LANG alone lists them")


def _quit(session: Session) -> None:
    if session.state is State.AUTHORIZATION:
        session.end(positive(f"{session.hostname} signing off"), "quit", asked=True)
    else:
        session.state = State.UPDATE
        session.forget_input()
        session.ask(Update(session.maildrop.deleted))


# ---- AUTHORIZATION ----

#: Why nobody logs in.
_ENCRYPT = "Use STLS first; nobody logs in unencrypted here"


def _user(session: Session, user: str) -> None:
    if not session.private:
        session.refuse(_ENCRYPT)
        return
    # The same answer whether there is such a user or not, so that names cannot be tried out.
    session.user = user
    session.ok("Send the password")


def _pass(session: Session, password: bytes) -> None:
    user, session.user = session.user, None
    if not session.private:
        session.refuse(_ENCRYPT)
    elif user is None:
        session.refuse("USER first")
    else:
        session.ask(Login(user, password))


def _apop(session: Session, user: str, digest: bytes) -> None:
    session.user = None
    if session.timestamp and not session.private:
        session.refuse(_ENCRYPT)
    elif session.timestamp:
        session.ask(ApopLogin(user, session.timestamp.encode("ascii"), digest))
    else:
        session.refuse("APOP is not offered; use USER and PASS")


def _auth(session: Session, mechanism: bytes, initial: bytes | None) -> None:
    if session.sasl is None:
        session.refuse("AUTH is not offered; use USER and PASS")
    elif not mechanism and session.private:
        # Not in RFC 5034, but what clients that know no SASL capability ask.
        session.lines("Mechanisms follow", *offered(session.sasl()))
    elif not mechanism:
        session.refuse(_ENCRYPT)
    else:
        session.user = None
        session.authenticate(mechanism, initial)


def _stls(session: Session) -> None:
    if session.tls_active:
        session.refuse("TLS is active already")
    elif not session.tls_available:
        session.refuse("STLS is not offered")
    elif session.utf8:
        # RFC 6856 §2.1: a client must not say so, and a server may insist.
        session.refuse("STLS must come before UTF8")
    else:
        session.ok("Begin TLS")
        # RFC 2595 §4, CVE-2011-0411: what was sent in the clear behind STLS is forgotten.
        session.forget_input()
        session.ask(StartTLS())


def _utf8(session: Session) -> None:
    session.utf8 = True
    session.ok("UTF-8 enabled")


# ---- TRANSACTION ----


def _stat(session: Session) -> None:
    session.ok(f"{session.maildrop.count} {session.maildrop.octets}")


def _list(session: Session, number: int | None) -> None:
    maildrop = session.maildrop
    if number is None:
        _listing(session, summary(session), maildrop.sizes())
    elif _can_be_had(session, number):
        session.ok(f"{number} {maildrop.size(number)}")


def _uidl(session: Session, number: int | None) -> None:
    maildrop = session.maildrop
    if number is None:
        _listing(session, "Unique-ids follow", maildrop.unique_ids())
    elif _can_be_had(session, number):
        session.ok(f"{number} {maildrop.uidl(number).decode('ascii')}")


def _retr(session: Session, number: int) -> None:
    if _can_be_had(session, number):
        text = session.maildrop.text(number)
        if text is None:
            session.ask(Retrieve(number, None))
        else:
            session.message(number, text)


def _top(session: Session, number: int, lines: int) -> None:
    if _can_be_had(session, number):
        session.ask(Retrieve(number, lines))


def _dele(session: Session, number: int) -> None:
    if _can_be_had(session, number):
        session.maildrop.mark(number)
        session.ok(f"Message {number} deleted")


def _noop(session: Session) -> None:
    session.ok("Nothing done")


def _rset(session: Session) -> None:
    session.maildrop.unmark_all()
    session.ok(summary(session))


def summary(session: Session) -> str:
    """How much mail there is, for people."""
    maildrop = session.maildrop
    return f"{plural(maildrop.count, 'message')} ({plural(maildrop.octets, 'octet')})"


def _listing(session: Session, first: str, blocks: Iterator[bytes]) -> None:
    """Send a listing: at once when it is one block, else as the peer takes it."""
    session.ok(first)
    if session.maildrop.total <= BLOCK_LINES:
        session.send(b"".join(blocks) + b".\r\n")
    else:
        session.ask(Listing(blocks))


def _can_be_had(session: Session, number: int) -> bool:
    """Whether there is such a message, not marked as deleted; if not, the answer is given."""
    maildrop = session.maildrop
    if not 1 <= number <= maildrop.total:
        session.no(f"No such message; the last one is {maildrop.total}")
        return False
    if maildrop.is_marked(number):
        session.no(f"Message {number} is marked as deleted")
        return False
    return True


def _mechanisms(session: Session) -> str:
    # RFC 5034 §3.
    mechanisms = offered(session.sasl()) if session.sasl else ()
    return "SASL " + " ".join(mechanisms) if mechanisms else ""


def _rows() -> Iterator[Command]:
    yield Command("CAPA", grammar.nothing, _ANY, _capa, "CAPA")
    yield Command("USER", grammar.name, _BEFORE_LOGIN, _user, "USER name-in-UTF-8",
                  lambda session: "USER" if session.private else "")
    yield Command("PASS", grammar.password, _BEFORE_LOGIN, _pass, "PASS password-in-UTF-8")
    yield Command("APOP", grammar.name_and_digest, _BEFORE_LOGIN, _apop, "APOP name digest")
    yield Command("AUTH", grammar.perhaps_mechanism, _BEFORE_LOGIN, _auth,
                  "AUTH mechanism [initial-response]", _mechanisms)
    yield Command("STLS", grammar.nothing, _BEFORE_LOGIN, _stls, "STLS",
                  lambda s: "STLS" if s.tls_available and not s.tls_active else "")
    # RFC 6856 §2.2: USER says that names and passwords may be UTF-8 too.
    yield Command("UTF8", grammar.nothing, _BEFORE_LOGIN, _utf8, "UTF8",
                  lambda s: "UTF8 USER" if s.private else "UTF8")
    yield Command("LANG", grammar.perhaps_language, _ANY, _lang, "LANG [language]",
                  lambda session: "LANG")
    yield Command("STAT", grammar.nothing, _LOGGED_IN, _stat, "STAT")
    yield Command("LIST", grammar.perhaps_message, _LOGGED_IN, _list, "LIST [message]")
    yield Command("UIDL", grammar.perhaps_message, _LOGGED_IN, _uidl, "UIDL [message]",
                  lambda session: "UIDL")
    yield Command("RETR", grammar.message, _LOGGED_IN, _retr, "RETR message")
    yield Command("TOP", grammar.message_and_lines, _LOGGED_IN, _top, "TOP message lines",
                  lambda session: "TOP")
    yield Command("DELE", grammar.message, _LOGGED_IN, _dele, "DELE message")
    yield Command("NOOP", grammar.nothing, _LOGGED_IN, _noop, "NOOP")
    yield Command("RSET", grammar.nothing, _LOGGED_IN, _rset, "RSET")
    yield Command("QUIT", grammar.nothing, _ANY, _quit, "QUIT")


#: Every verb that is recognized, in upper case.
COMMANDS: dict[bytes, Command] = {row.verb.encode("ascii"): row for row in _rows()}


def _login_delay(session: Session) -> str:
    seconds = session.settings.login_delay_seconds
    return f"LOGIN-DELAY {seconds}" if seconds else ""


def _implementation(session: Session) -> str:
    # RFC 2449 §6.9 allows to tell it after login only: strangers need not know what to attack.
    return f"IMPLEMENTATION mailsvc-{__version__}" if session.state is State.TRANSACTION else ""


#: The lines of CAPA that announce no command (RFC 2449 §6, RFC 3206 §5).
BEHAVIOUR: tuple[Callable[[Session], str], ...] = (
    lambda session: "RESP-CODES",
    lambda session: "AUTH-RESP-CODE",
    lambda session: "PIPELINING",
    lambda session: f"EXPIRE {session.settings.expire}",
    _login_delay,
    _implementation,
)
