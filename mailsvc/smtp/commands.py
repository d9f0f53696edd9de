"""The command table of a receiving SMTP session (RFC 5321 §4.1.1), and what each command does.

One command is one row of ``COMMANDS`` and one function; one extension is one row of ``EXTENSIONS``.
"Bad sequence", HELP, the limits on chatter and the exhaustive tests all follow from the rows.

A function of a row is given the session and the argument, without surrounding white space.  It asks
the session's owner (``Session.ask``), answers (``say``, ``refuse``), or raises ``SyntaxFault``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from mailsvc.mail import NULL_PATH, Address, Envelope, new_id
from mailsvc.sasl.mechanisms import offered
from mailsvc.smtp import dsn, grammar, handling, replies, xclient, xtext
from mailsvc.smtp.dialogue import CHUNKS, MAIL, RCPT, READY, START, Dialogue
from mailsvc.smtp.events import (
    DataBegins,
    Expand,
    Hello,
    MailFrom,
    Proxied,
    QueueRun,
    RcptTo,
    TLSBegins,
    Turn,
    Verify,
)
from mailsvc.smtp.grammar import SyntaxFault
from mailsvc.smtp.mode import TRANSPORT
from mailsvc.smtp.replies import Reply, printable, reply
from mailsvc.smtp.transactions import Transactions

_ANY = frozenset((START, READY, MAIL, RCPT, CHUNKS))


class Session(Dialogue, Protocol):
    """A session as its commands see it; :mod:`mailsvc.smtp.session` says what each attribute is."""

    known: bool
    trusted: bool
    tls_available: bool
    turns: bool
    clock: Callable[[], float] | None
    transactions: Transactions

    def authenticate(self, mechanism: bytes, initial: bytes | None) -> None:
        """Begin an AUTH exchange."""


@dataclass(frozen=True, slots=True)
class Command:
    """One row of the command table.

    :ivar legal: the phases in which it may come.
    :ivar usage: what HELP says of it; empty for a command that is not implemented.
    :ivar offered: whether a session takes it as it is now, so that HELP names it.
    :ivar fault: the enhanced status of a syntax error in its address.
    :ivar idle: whether it counts as a command that brings no mail along.
    :ivar odmr: whether it is for On-Demand Mail Relay, which takes no mail (RFC 2645 §5).
    :ivar lmtp: whether it is recognized by LMTP alone, or by all but that; None for both.
    """

    verb: str
    act: Callable[[Session, bytes], None]
    legal: frozenset[str]
    usage: str = ""
    fault: str = "5.1.3"
    idle: bool = False
    odmr: bool = False
    lmtp: bool | None = None
    offered: Callable[[Session], bool] = lambda session: True

    def helps(self, session: Session) -> bool:
        """Whether HELP names it."""
        mode = session.mode
        return (self.usage != "" and self.lmtp in (None, mode.lmtp)
                and (self.odmr or not mode.odmr) and self.offered(session))


def _no_argument(argument: bytes) -> None:
    if argument:
        raise SyntaxFault("No argument is allowed here")


def _helo(session: Session, argument: bytes) -> None:
    session.ask(Hello(grammar.hello(argument, "HELO"), extended=False))


def _ehlo(session: Session, argument: bytes) -> None:
    verb = "LHLO" if session.mode.lmtp else "EHLO"
    session.ask(Hello(grammar.hello(argument, verb), extended=True))


def _mail(session: Session, argument: bytes) -> None:
    parsed = grammar.reverse_path(argument)
    if session.mode.submission and not (session.authenticated or session.known):
        session.refuse(_login_wanted(session, replies.LOG_IN_FIRST))
        return
    if session.transactions.exhausted:
        session.close(replies.TOO_MANY_MESSAGES)
        return
    envelope = Envelope(new_id(), parsed.path)
    for keyword, value in parsed.parameters.items():
        parameter = _MAIL_PARAMETERS.get(keyword)
        if parameter is None or not parameter.offered(session):
            session.refuse(_unknown_parameter(keyword, "MAIL"))
            return
        setattr(envelope, parameter.attribute, parameter.parse(value))
    if session.clock is not None:
        handling.check(envelope, parsed.parameters, session.limits, session.clock())
    if not session.trusted:
        # RFC 4954 §5: what a stranger says of others counts as nothing said.
        envelope.submitter = NULL_PATH
    most = session.limits.message_octets
    if parsed.internationalized and not envelope.smtputf8:
        session.refuse(replies.NEEDS_SMTPUTF8)
    elif most and envelope.size > most:
        session.refuse(replies.MESSAGE_TOO_BIG)
    else:
        session.ask(MailFrom(envelope))


def _login_wanted(session: Session, private: Reply) -> Reply:
    """The 530 that tells what is to be done first; *private* where one may log in."""
    can_log_in = session.sasl is not None and session.sasl().private
    return private if can_log_in else replies.TLS_FIRST


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of MAIL: the Envelope attribute it sets, the parser of its value, and when."""

    attribute: str
    parse: Callable[[str | None], object]
    offered: Callable[[Session], bool] = lambda session: True


def _queues(session: Session) -> bool:
    """Whether what decides when mail is sent on can be obeyed: LMTP ends in maildirs."""
    return session.clock is not None and not (session.mode.lmtp or session.mode.odmr)


def _holds(session: Session) -> bool:
    # RFC 4865: for submission alone.
    return (_queues(session) and session.mode.submission
            and session.limits.hold_most_seconds > 0)


_MAIL_PARAMETERS = {
    "SIZE": Parameter("size", grammar.size),
    "BODY": Parameter("body", grammar.body),
    "SMTPUTF8": Parameter("smtputf8", grammar.flag),
    "AUTH": Parameter("submitter", xtext.auth_parameter, lambda session: session.sasl is not None),
    # RFC 8689 §4.2.1: only said inside TLS.
    "REQUIRETLS": Parameter("requiretls", grammar.flag, lambda session: session.tls_active),
    "RET": Parameter("ret", dsn.ret),
    "ENVID": Parameter("envid", dsn.envid),
    "HOLDFOR": Parameter("release", handling.hold_for, _holds),
    "HOLDUNTIL": Parameter("release", handling.hold_until, _holds),
    "BY": Parameter("by", handling.deliver_by, _queues),
    "MT-PRIORITY": Parameter("priority", handling.priority, _queues),
}

#: Those of RCPT: the parser of each value.
_RCPT_PARAMETERS: dict[str, Callable[[str | None], Any]] = {
    "NOTIFY": dsn.notify, "ORCPT": dsn.orcpt}


def _rcpt(session: Session, argument: bytes) -> None:
    parsed = grammar.forward_path(argument)
    envelope = session.transactions.envelope
    assert envelope is not None
    said: dict[str, Any] = {}
    for keyword, value in parsed.parameters.items():
        if keyword not in _RCPT_PARAMETERS:
            session.refuse(_unknown_parameter(keyword, "RCPT"))
            return
        said[keyword.lower()] = _RCPT_PARAMETERS[keyword](value)
    if parsed.internationalized and not envelope.smtputf8:
        session.refuse(replies.NEEDS_SMTPUTF8)
    elif len(envelope.recipients) >= session.limits.recipients:
        # Not an error of the client: it may go on with those it has (RFC 5321 §4.5.3.1.10).
        session.say(replies.TOO_MANY_RECIPIENTS)
    else:
        session.ask(RcptTo(parsed.path, **said))


def _unknown_parameter(keyword: str, verb: str) -> Reply:
    return reply(555, "5.5.4", f"{verb} parameter {printable(keyword)} not recognized")


def _data(session: Session, argument: bytes) -> None:
    _no_argument(argument)
    session.ask(DataBegins())


def _bdat(session: Session, argument: bytes) -> None:
    try:
        octets, last = grammar.chunk(argument)
    except SyntaxFault as fault:
        # Nobody knows how many octets follow, and what is not command must not run as such.
        session.say(reply(501, "5.5.4", str(fault)))
        session.close(replies.UNKNOWN_CHUNK)
        return
    session.transactions.chunk(octets, last)


def _rset(session: Session, argument: bytes) -> None:
    _no_argument(argument)
    session.transactions.end("RSET")
    session.say(replies.RESET_OK)


def _noop(session: Session, argument: bytes) -> None:
    session.say(replies.NOOP_OK)


def _quit(session: Session, argument: bytes) -> None:
    _no_argument(argument)
    session.close(replies.BYE)


def _vrfy(session: Session, argument: bytes) -> None:
    mailbox = _mailbox(argument, "VRFY user@domain")
    if session.limits.disclose_mailboxes:
        session.ask(Verify(mailbox))
    else:
        # RFC 5321 §7.3: 252, so that refusing to say looks the same for every address.
        session.say(replies.CANNOT_VERIFY)


def _expn(session: Session, argument: bytes) -> None:
    mailbox = _mailbox(argument, "EXPN list@domain")
    if session.limits.disclose_mailboxes:
        session.ask(Expand(mailbox))
    else:
        session.refuse(replies.EXPN_DISABLED)


def _mailbox(argument: bytes, usage: str) -> Address:
    # RFC 6531 §3.7.4.2: VRFY and EXPN take SMTPUTF8 as a parameter.
    if argument.upper().endswith(b" SMTPUTF8"):
        argument = argument[:-9].rstrip(b" ")
    if not argument:
        raise SyntaxFault(f"Syntax: {usage}")
    return grammar.mailbox(argument)


def _help(session: Session, argument: bytes) -> None:
    topic = argument.upper()
    command = COMMANDS.get(topic)
    if not topic:
        verbs = sorted(row.verb for row in COMMANDS.values() if row.helps(session))
        session.say(reply(214, "2.0.0", "Commands: " + " ".join(verbs), "HELP verb says more"))
    elif topic == b"STATUS":
        size = session.limits.message_octets or "any number of"
        most = session.limits.recipients
        session.say(reply(211, "2.0.0", f"Messages of {size} octets to {most} recipients each"))
    elif command is None or not command.helps(session):
        session.refuse(replies.UNKNOWN_TOPIC)
    else:
        session.say(reply(214, "2.0.0", command.usage))


def _starttls(session: Session, argument: bytes) -> None:
    _no_argument(argument)
    if session.tls_active:
        session.refuse(replies.TLS_ACTIVE)
    elif not session.tls_available:
        session.refuse(replies.NOT_IMPLEMENTED)
    else:
        session.transactions.end("STARTTLS")
        session.say(replies.START_TLS)
        session.ask(TLSBegins())


def _offers_tls(session: Session) -> bool:
    return session.tls_available and not session.tls_active


def _auth(session: Session, argument: bytes) -> None:
    mechanism, space, initial = argument.partition(b" ")
    if session.sasl is None:
        session.refuse(replies.NOT_IMPLEMENTED)
    elif session.phase is not READY:
        # RFC 4954 §4: not during a mail transaction.
        session.refuse(session.transactions.out_of_order("MAIL"))
    elif session.authenticated:
        session.refuse(replies.LOGGED_IN_ALREADY)
    elif not mechanism:
        raise SyntaxFault("Syntax: AUTH mechanism [initial-response]")
    else:
        session.authenticate(mechanism, initial.strip(b" ") if space else None)


def _mechanisms(session: Session) -> list[str]:
    """Those by which one may log in now."""
    return offered(session.sasl()) if session.sasl is not None else []


def _xclient(session: Session, argument: bytes) -> None:
    if not session.trusted:
        session.refuse(replies.NOT_TRUSTED)
    elif session.phase not in (START, READY):
        session.refuse(session.transactions.out_of_order("MAIL"))
    else:
        session.ask(Proxied(xclient.parse(argument)))


def _etrn(session: Session, argument: bytes) -> None:
    if not _runs_queue(session):
        session.refuse(replies.NOT_IMPLEMENTED)
    elif session.phase is not READY:
        # RFC 1985 §5.1: not during a mail transaction.
        session.refuse(session.transactions.out_of_order("MAIL"))
    else:
        # §5.3: "@" asks for the hosts below a domain too, "#" for a queue by its name.
        node = argument.removeprefix(b"@")
        if not node:
            raise SyntaxFault("Syntax: ETRN [@]domain")
        session.ask(QueueRun(grammar.hello(node)))


def _runs_queue(session: Session) -> bool:
    return session.limits.etrn and session.mode is TRANSPORT


def _atrn(session: Session, argument: bytes) -> None:
    if not session.turns:
        session.refuse(replies.NOT_IMPLEMENTED)
    elif not session.authenticated:
        # RFC 2645 §5.2.1: it is for the login alone to say whose mail this is.
        session.refuse(_login_wanted(session, replies.LOG_IN_TO_TURN))
    elif session.phase is not READY:
        session.refuse(session.transactions.out_of_order("MAIL"))
    else:
        session.ask(Turn(grammar.domains(argument)))


def _not_implemented(session: Session, argument: bytes) -> None:
    session.refuse(replies.NOT_IMPLEMENTED)


_ROWS = (
    # RFC 2033 §4.1: LHLO in the place of both.
    Command("HELO", _helo, _ANY, "HELO your.host.name", idle=True, odmr=True, lmtp=False),
    Command("EHLO", _ehlo, _ANY, "EHLO your.host.name", idle=True, odmr=True, lmtp=False),
    Command("LHLO", _ehlo, _ANY, "LHLO your.host.name", idle=True, lmtp=True),
    Command("MAIL", _mail, frozenset({READY}),
            "MAIL FROM:<address> [SIZE=octets] [BODY=8BITMIME] [SMTPUTF8] [RET=FULL|HDRS] "
            "[ENVID=id]", fault="5.1.7"),
    Command("RCPT", _rcpt, frozenset({MAIL, RCPT}),
            "RCPT TO:<address> [NOTIFY=NEVER|SUCCESS,FAILURE,DELAY] [ORCPT=type;address]"),
    Command("DATA", _data, frozenset({RCPT}), "DATA, then the message, then CRLF.CRLF"),
    # BDAT looks at the phase itself: its octets must be swallowed in any.
    Command("BDAT", _bdat, _ANY, "BDAT octets [LAST], then the octets"),
    Command("RSET", _rset, _ANY, "RSET forgets the transaction", idle=True, odmr=True),
    Command("NOOP", _noop, _ANY, "NOOP does nothing", idle=True, odmr=True),
    Command("QUIT", _quit, _ANY, "QUIT ends the session", odmr=True),
    # RFC 5321 §4.1.4: NOOP, HELP, EXPN, VRFY and RSET at any time, without an introduction too.
    Command("HELP", _help, _ANY, "HELP [verb | STATUS]", idle=True, odmr=True),
    Command("VRFY", _vrfy, _ANY, "VRFY user@domain", idle=True),
    Command("EXPN", _expn, _ANY, "EXPN list@domain", idle=True,
            offered=lambda session: session.limits.disclose_mailboxes),
    # These depend on the listener and the client; EHLO tells.
    Command("AUTH", _auth, _ANY, "AUTH mechanism [initial-response]", idle=True, odmr=True,
            offered=lambda session: not session.authenticated and bool(_mechanisms(session))),
    Command("STARTTLS", _starttls, _ANY - {CHUNKS}, "STARTTLS begins TLS", idle=True, odmr=True,
            offered=_offers_tls),
    Command("XCLIENT", _xclient, _ANY, "XCLIENT attribute=value...", idle=True, odmr=True,
            offered=lambda session: session.trusted),
    Command("TURN", _not_implemented, _ANY, idle=True, odmr=True),
    Command("ATRN", _atrn, _ANY, "ATRN [domain,domain]", idle=True, odmr=True,
            offered=lambda session: session.turns),
    Command("ETRN", _etrn, _ANY, "ETRN [@]domain", idle=True, offered=_runs_queue),
    Command("XEXCH50", _not_implemented, _ANY, idle=True),
)

#: Every verb that is recognized, in upper case.
COMMANDS: dict[bytes, Command] = {row.verb.encode(): row for row in _ROWS}


def _limits(session: Session) -> str:
    """The LIMITS keyword (RFC 9422 §4)."""
    limits = session.limits
    most = f" MAILMAX={limits.messages}" if limits.messages else ""
    return f"LIMITS{most} RCPTMAX={limits.recipients}"


def _takes_mail(offer: Callable[[Session], str]) -> Callable[[Session], str]:
    """*offer*, but where no mail is taken."""
    return lambda session: "" if session.mode.odmr else offer(session)


#: The lines of the reply to EHLO, after the first; an empty one is not offered.
EXTENSIONS: tuple[Callable[[Session], str], ...] = (
    lambda session: "PIPELINING",
    # RFC 1870 §4: 0 says that no fixed limit is in force.
    _takes_mail(lambda session: f"SIZE {session.limits.message_octets}"),
    _takes_mail(lambda session: "8BITMIME"),
    _takes_mail(lambda session: "SMTPUTF8"),
    _takes_mail(lambda session: "CHUNKING"),
    lambda session: "ENHANCEDSTATUSCODES",
    _takes_mail(lambda session: "DSN"),
    _takes_mail(_limits),
    lambda session: handling.future_release(session.limits, session.clock()) if (
        session.clock is not None and _holds(session)) else "",
    lambda session: handling.delivery_by(session.limits) if _queues(session) else "",
    # RFC 6710: without the name of a profile, that of its appendix for MIXER.
    lambda session: "MT-PRIORITY" if _queues(session) else "",
    # RFC 4954 §4: nothing is offered that would be refused in the clear.
    lambda session: " ".join(("AUTH", *mechanisms)) if (
        mechanisms := _mechanisms(session)) else "",
    lambda session: "STARTTLS" if _offers_tls(session) else "",
    _takes_mail(lambda session: "REQUIRETLS" if session.tls_active else ""),
    lambda session: "XCLIENT " + " ".join(xclient.ATTRIBUTES) if session.trusted else "",
    lambda session: "ETRN" if _runs_queue(session) else "",
    lambda session: "ATRN" if session.turns else "",
    _takes_mail(lambda session: "VRFY" if session.limits.disclose_mailboxes else ""),
    _takes_mail(lambda session: "EXPN" if session.limits.disclose_mailboxes else ""),
    lambda session: "HELP",
)
