"""A mail transaction played through without consequences, to see what would be answered and why.

:class:`Rehearsal` builds what a listener decides by, out of the settings and from the files of the
service: the SMTP protocol itself, router, submission agent, limits on what an account may send,
brakes and bans, routes.  It says EHLO, MAIL and RCPT to it as a client would, and notes which part
had the last word, and what was looked up in the directory for it.  So what is answered here is what
the service answers, up to the message itself.

**Without consequences**: what the service remembers (bans, failed logins, what was sent) is copied
first, and the copy is what is asked.  Nothing is counted, logged, sent or looked up in the DNS.

**Limits.**  What only a running service knows is not asked: how many connections there are, and how
full the disk is.  A quota is held against what lies in the maildir.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twisted.cred.portal import Portal
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import maybeDeferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from mailsvc.accounts import DirectoryChecker, MailRealm
from mailsvc.authentication import Authenticator
from mailsvc.brakes import Brakes
from mailsvc.config import Settings
from mailsvc.connections import Connections
from mailsvc.directory import SqliteDirectory
from mailsvc.errors import (
    MailboxFull,
    MailboxMoved,
    MailFailure,
    MessageTooLarge,
    RelayDenied,
    RoutingLoop,
    UnknownMailbox,
)
from mailsvc.figures import Share
from mailsvc.mail import Account, Address, Alias, Remote
from mailsvc.passwords import PasswordHasher
from mailsvc.queue.message import QueuedMessage
from mailsvc.queue.routes import Hop, Routes
from mailsvc.routing import MAILBOX_DISABLED, NOT_SET_UP, Router
from mailsvc.sasl.steps import Kind
from mailsvc.smtp.mode import SUBMISSION, TRANSPORT
from mailsvc.smtp.replies import FAILED_AUTH
from mailsvc.smtp.server import SMTPFactory
from mailsvc.smtp.xtext import encode
from mailsvc.state import State
from mailsvc.store import maildirsize
from mailsvc.store.quota import quota_of, refusal
from mailsvc.submission.agent import SubmissionAgent
from mailsvc.submission.rates import Ledger, TooMuchSent
from mailsvc.submission.senders import SenderRefused


@dataclass(frozen=True, slots=True)
class Rule:
    """Why something is answered so.

    :ivar sentence: the rule, for people.
    :ivar keys: the keys of the configuration that it depends on, dotted.
    :ivar standard: the section that asks for or allows it.
    """

    sentence: str
    keys: tuple[str, ...] = ()
    standard: str = "RFC 5321 §7.9"


@dataclass(slots=True)
class Verdict:
    """What came of it.

    :ivar command: what was answered last: the first command that was refused, or RCPT.
    :ivar reply: the answer, as it goes over the wire, without its CRLF.
    :ivar looked_up: what was asked of the directory for that answer, and what it said.
    :ivar accounts: whose mailboxes here the message would go to.
    :ivar onward: for each mailbox elsewhere, the next hop and the key that says so.
    """

    command: str
    reply: str
    rule: Rule
    looked_up: list[str] = field(default_factory=list)
    accounts: list[str] = field(default_factory=list)
    onward: list[tuple[str, Hop, str]] = field(default_factory=list)

    @property
    def accepted(self) -> bool:
        """Whether the message would be taken so far."""
        return self.reply[:1] == "2"


class Rehearsal:
    """Transactions by *settings*; use as a context manager.

    :raises mailsvc.names.DirectoryError: on entry: the files of the service cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._parts = contextlib.ExitStack()
        #: Who refused last, and how; and where a recipient leads.
        self._refusal: tuple[str, MailFailure] | None = None
        self._found: tuple[Account | Remote, ...] = ()
        self._looked_up: list[str] = []

    def __enter__(self) -> Rehearsal:
        with contextlib.ExitStack() as stack:
            self._build(stack)
            self._parts = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._parts.close()

    def play(self, sender: str, recipient: str, size: int = 0, *, client: str = "127.0.0.1",
             submission: bool = False, login: str = "") -> Verdict:
        """Send from *sender*, empty for the null reverse-path, to *recipient*.

        :param size: octets that it declares; 0 for none.
        :param client: the IP address that it comes from.
        :param submission: whether to a listener for submission.
        :param login: the account that it is logged in as there; empty for none.
        :raises mailsvc.errors.MailFailure: the files of the service cannot be used now.
        """
        factory = self._listener(client, submission or bool(login), login)
        command, reply = self._talk(factory, client, login, sender, recipient, size)
        verdict = Verdict(command, reply, Rule(""), list(dict.fromkeys(self._looked_up)))
        if verdict.accepted:
            verdict.accounts = [each.name for each in self._found if isinstance(each, Account)]
            verdict.onward = list(self._onward(sender, login))
        verdict.rule = self._rule(verdict, submission or bool(login))
        return verdict

    # ---- the stage ----

    def _build(self, stack: contextlib.ExitStack) -> None:
        settings = self._settings
        hostname, domain = settings.service.hostname, settings.routing.default_domain
        self._clock = clock = Clock()
        clock.advance(time.time())
        self._directory = directory = stack.enter_context(
            SqliteDirectory(settings.accounts.database, create=False))
        memory = Path(stack.enter_context(_copied(Path(settings.service.data))))
        self._brakes = Brakes(settings.brakes, memory, clock, in_thread=maybeDeferred)
        self._brakes.start()
        stack.callback(self._brakes.stop)
        rates: Any = Ledger(State(memory), settings.submission)
        stack.callback(rates.close)
        watched: Any = _Watched(directory, self._looked_up)
        self._router = Router(watched, hostname, settings.routing)
        self._agent = SubmissionAgent(settings.submission, self._router, rates, hostname)
        store: Any = _Quotas(settings.service.store)
        self._store = store
        portal = Portal(MailRealm(store, directory, default_domain=domain))
        portal.registerChecker(DirectoryChecker(
            directory, PasswordHasher(settings.passwords, clock), domain))
        self._authenticator = Authenticator(
            portal, directory, settings.auth, hostname=hostname, default_domain=domain)
        for part, names in ((self._router, ["route"]),
                            (self._agent, ["admit_sender", "admit_recipient"]),
                            (self._brakes, ["admit"]), (store, ["room"])):
            for name in names:
                self._listen(part, name)

    def _listener(self, client: str, submission: bool, login: str) -> SMTPFactory:
        queue: Any = _Queue()
        smtp = dataclasses.replace(
            self._settings.smtp, greeting_delay_seconds=0,
            # Who speaks for the account is believed, as a proxy that has checked its password.
            xclient_networks=[client] if login else [])
        return SMTPFactory(
            self._store, self._router, smtp, self._settings.service.hostname, self._clock, None,
            SUBMISSION if submission else TRANSPORT,
            Connections(1, 1, [], self._clock, admit=self._brakes.admit), self._authenticator,
            self._agent if submission else None, queue, Share())

    def _listen(self, part: Any, name: str) -> None:
        """Note what *part* answers when its method of that *name* is called."""
        method = getattr(part, name)

        def heard(*arguments: Any, **named: Any) -> Any:
            try:
                answer = method(*arguments, **named)
            except MailFailure as failure:
                self._refusal = name, failure
                raise
            if isinstance(answer, MailFailure):
                self._refusal = name, answer
            elif name == "route":
                self._found = answer
            return answer

        setattr(part, name, heard)

    def _talk(self, factory: SMTPFactory, client: str, login: str, sender: str, recipient: str,
              size: int) -> tuple[str, str]:
        """Say it all; the last command, or the first that was refused, and its reply."""
        literal = f"IPv6:{client}" if ":" in client else client
        commands = [f"EHLO [{literal}]"]
        if login:
            commands = [f"XCLIENT LOGIN={encode(login)}", *commands]
        ascii_only = sender.isascii() and recipient.isascii()
        commands += [f"MAIL FROM:<{sender}>" + (f" SIZE={size}" if size else "")
                     + ("" if ascii_only else " SMTPUTF8"), f"RCPT TO:<{recipient}>"]
        address = (IPv6Address if ":" in client else IPv4Address)("TCP", client, 49_152)
        transport = StringTransport(peerAddress=address)
        self._refusal = None
        protocol = factory.buildProtocol(address)
        protocol.makeConnection(transport)
        said, command = "connecting", ""
        try:
            for command in ("", *commands):
                if command:
                    said = command
                    self._refusal = None
                    self._looked_up.clear()
                    protocol.dataReceived(command.encode() + b"\r\n")
                lines = transport.value().decode().split("\r\n")
                transport.clear()
                if len(lines) < 2:
                    raise RuntimeError(f"{said} was not answered")  # a policy that has to wait
                # RFC 5321 §4.2.1: the last line alone has a space behind the code.
                reply = lines[-2]
                if reply[:1] not in "23":
                    if command.startswith("XCLIENT"):
                        # That was our way in; theirs ends so.
                        refused = FAILED_AUTH[Kind.WRONG].wire.decode().rstrip("\r\n")
                        return f"AUTH as {login}", refused
                    break
        finally:
            if hasattr(protocol, "session"):
                protocol.connectionLost()
        return said, reply

    # ---- what follows, and why ----

    def _onward(self, sender: str, login: str) -> Iterator[tuple[str, Hop, str]]:
        relay, router = self._settings.relay, self._router
        routes = Routes(relay, router.kept)
        local_part, _, domain = sender.rpartition("@")
        path = Address(local_part, domain)
        for each in self._found:
            if isinstance(each, Remote):
                # A message that is forwarded has another reverse-path, of the alias's domain.
                source = path if each.alias is None else router.srs.forward(path, each.alias.domain)
                message = QueuedMessage("", 0.0, source, [], account=login)
                hop = routes.hop(message, each.address)
                key = routes.key(login, source, each.address.domain)
                yield each.name, hop, (
                    "routing.atrn_domains" if hop.kept else
                    "relay.smarthost" if key is None or (key not in relay.routes
                    and key == "*") else f"relay.routes.{key}")

    def _rule(self, verdict: Verdict, submission: bool) -> Rule:
        if verdict.accepted:
            return self._welcome(verdict, submission)
        if self._refusal is not None:
            where, failure = self._refusal
            for place, kind, status, rule in _REFUSALS:
                if place in ("", where) and isinstance(failure, kind) and (
                        status is None or failure.status == status):
                    return rule
            if isinstance(failure, TooMuchSent):
                return _limit(failure.text)
        code = verdict.reply[4:].partition(" ")[0]
        return _OF_SESSION.get(code, Rule(
            f"the command {verdict.command.partition(' ')[0]} is not right, as the reply says",
            standard="RFC 5321 §4.1"))

    def _welcome(self, verdict: Verdict, submission: bool) -> Rule:
        lines = verdict.looked_up
        if any(line.endswith(": not served here") for line in lines[:1]):
            if submission:
                return Rule("whoever submits may send to any host",
                            ("submission.trusted_networks",), "RFC 6409 §3")
            return Rule("mail for this domain is taken from anybody and sent on",
                        ("routing.relay_domains", "routing.atrn_domains"), "RFC 5321 §3.6.2")
        last = next((line for line in reversed(lines)
                     if not line.startswith("domain ") and not line.endswith(": none")),
                    ", ".join(lines))
        if verdict.onward and not verdict.accounts:
            return Rule(f"it is forwarded: {last}", (), "RFC 5321 §3.9.1")
        keys = ("routing.postmaster", "routing.default_domain") if "oldest account" in last else (
            ("routing.separators",))
        return Rule(f"it is a mailbox here: {last}", keys, "RFC 5321 §3.3")


def _limit(text: str) -> Rule:
    found = re.search(r"(messages|recipients) per (minute|hour|day)", text)
    keys = (f"submission.{found[1]}_per_{found[2]}",) if found else ()
    return Rule("an account may send so much in so much time (mailsvc account sent)", keys)


#: Which part refused ("" for any), how, and the rule behind it.
_REFUSALS: list[tuple[str, type[MailFailure], Any, Rule]] = [
    ("admit", MailFailure, None, Rule(
        "the address or its network is banned (mailsvc ban list)",
        ("brakes.ban_failures", "brakes.network_ban_failures", "brakes.exempt_networks"))),
    ("admit_sender", SenderRefused, None, Rule(
        "who submits may send only as addresses whose mail comes to it (mailsvc alias list)",
        ("submission.local_senders", "submission.trusted_networks"), "RFC 6409 §6.1")),
    ("route", RelayDenied, None, Rule(
        "the domain is none of those served here (mailsvc domain list) or relayed to, and only who "
        "submits may send elsewhere", ("routing.relay_domains", "routing.atrn_domains"),
        "RFC 5321 §3.6.2")),
    ("route", UnknownMailbox, None, Rule(
        "the domain is served here, and has no alias, account or catch-all of that name (mailsvc "
        "account list, mailsvc alias list)", ("routing.separators",), "RFC 5321 §3.3")),
    ("route", MailboxMoved, None, Rule(
        "an alias says that the mailbox has moved (mailsvc alias list)", (), "RFC 5321 §3.4")),
    ("route", RoutingLoop, None, Rule(
        "aliases lead back to themselves, too deep or too wide",
        ("routing.alias_depth", "routing.alias_accounts"), "RFC 5321 §6.3")),
    ("route", MailFailure, MAILBOX_DISABLED, Rule(
        "the account only sends (mailsvc account role)", (), "RFC 3463 §3.3")),
    ("route", MailFailure, NOT_SET_UP, Rule(
        "there is no domain or no account yet (mailsvc domain add, mailsvc account add)",
        ("routing.default_domain",), "RFC 3463 §3.4")),
    ("room", MailboxFull, None, Rule(
        "the mailbox has no room by its quota (mailsvc account show)", (), "RFC 3463 §3.3")),
    ("room", MessageTooLarge, None, Rule(
        "the mailbox would be too small even if it were empty, by its quota (mailsvc account show)",
        (), "RFC 3463 §3.3")),
]

#: The enhanced status of what the session itself refuses -> the rule behind it.
_OF_SESSION = {
    "5.3.4": Rule("the message is larger than any that is taken", ("smtp.message_octets",),
                  "RFC 1870 §6.1"),
    "5.7.0": Rule("on a listener for submission one logs in first, unless one's network is trusted",
                  ("submission.trusted_networks",), "RFC 6409 §4.3"),
    "5.7.8": Rule("there is no account of that name that may submit (mailsvc account show)", (),
                  "RFC 4954 §6"),
    "5.1.3": Rule("the recipient is no address", (), "RFC 5321 §4.1.2"),
    "5.1.7": Rule("the sender is no address", (), "RFC 5321 §4.1.2"),
}


class _Watched:
    """A directory that notes what it is asked, and what it says, as lines in *lines*."""

    def __init__(self, directory: SqliteDirectory, lines: list[str]) -> None:
        self._directory = directory
        self._lines = lines

    def domain(self, name: str) -> Any:
        found = self._directory.domain(name)
        self._lines.append(f"domain {name}: {'served here' if found else 'not served here'}"
                           + (f", catch-all {found.catch_all}" if found and found.catch_all
                              else ""))
        return found

    def alias(self, local_part: str, domain: str) -> Alias | None:
        found = self._directory.alias(local_part, domain)
        said = "none" if found is None else (
            ("moved to " if found.moved else "leads to ") + ", ".join(map(str, found.targets)))
        self._lines.append(f"alias {Address(local_part, domain)}: {said}")
        return found

    def account(self, local_part: str, domain: str) -> Account | None:
        found = self._directory.account(local_part, domain)
        said = "none" if found is None else (
            "there" if found.role == "both" else f"there, and can only {found.role}")
        self._lines.append(f"account {Address(local_part, domain)}: {said}")
        return found

    def oldest_account(self, domain: str) -> Account | None:
        found = self._directory.oldest_account(domain)
        self._lines.append(f"oldest account of {domain}: {found.name if found else 'none'}")
        return found

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method: Callable[..., Any] = getattr(self._directory, name)
        return method


class _Quotas:
    """As much of a store as it takes to know whether there is room in a mailbox."""

    def __init__(self, place: str) -> None:
        scheme, _, root = place.partition(":")
        self._root = root if scheme == "maildir" else ""

    def room(self, account: Account, octets: int) -> None:
        quota = quota_of(account)
        if not (any(quota) and self._root):
            return
        home = os.path.join(self._root, account.domain, account.local_part)
        # Not has_room(), which writes down what it has counted.
        if not maildirsize.fits(maildirsize.count(os.fsencode(home)), quota, octets):
            raise refusal(quota, octets)


class _Queue:
    """That there is one suffices."""


@contextlib.contextmanager
def _copied(data: Path) -> Iterator[str]:
    """The path of a copy of what the service in *data* remembers; a new file if that is nothing."""
    source = data / "state.sqlite"
    folder = tempfile.mkdtemp(prefix="mailsvc-")
    copy = os.path.join(folder, "state.sqlite")
    try:
        if source.exists():
            state = State(source)  # which tells in words what is wrong with it
            try:
                with contextlib.closing(sqlite3.connect(copy)) as target:
                    state.copy_to(target)
            finally:
                state.close()
        yield copy
    finally:
        shutil.rmtree(folder, ignore_errors=True)
