"""The configuration: the sections gathered, read from TOML, checked, and shown.

A section is a frozen dataclass of :func:`mailsvc.settings.setting` fields in the module that obeys
it; :class:`Settings` names them all, and everything here follows from it: what a file may hold,
what ``--set`` may override, the error messages, and the commented example ``etc/mailsvc.toml``
(:func:`reference`).  So every key has a default, a type, a unit and a sentence.

A file is read whole before anything is refused: :class:`ConfigurationError` lists every mistake
with file, line, key, the value found and what was expected.  What is no TOML at all is among them,
with its column too (:mod:`mailsvc.mistakes`).

A :class:`Settings` holds effective values: ``{data}`` in paths is filled in, and an empty host name
has become this machine's.  Nothing here opens a socket or a database.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import os
import re
import socket
import textwrap
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from mailsvc import endpoints
from mailsvc.acme.limits import ACMESettings
from mailsvc.brakes import BrakeSettings
from mailsvc.console.limits import ConsoleSettings
from mailsvc.log import LogSettings
from mailsvc.mistakes import Mistake, read
from mailsvc.passwords import PasswordSettings
from mailsvc.pop3.limits import POP3Settings
from mailsvc.proxy import ProxySettings
from mailsvc.queue.limits import QueueSettings
from mailsvc.queue.routes import RelaySettings
from mailsvc.routing import RoutingSettings
from mailsvc.sasl.context import AuthSettings
from mailsvc.settings import Key, at_least, keys_of, setting
from mailsvc.smtp.limits import SMTPSettings
from mailsvc.store import STORES
from mailsvc.store.maildir import MaildirSettings
from mailsvc.submission.limits import SubmissionSettings
from mailsvc.tls import TLSSettings
from mailsvc.toml import Path, assignment, literal, parsed
from mailsvc.tracing.limits import TraceSettings
from mailsvc.webhooks.events import WebhookSettings

# ---- the sections that no other module owns -----------------------------------------------------


def _host_name(value: str) -> str | None:
    label = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
    if value == "" or (len(value) <= 253 and re.fullmatch(rf"{label}(\.{label})*", value)):
        return None
    return "a domain name in ASCII, without a final dot"


def _not_empty(value: str) -> str | None:
    return None if value else "at least one character"


def _store(value: str) -> str | None:
    scheme, colon, _ = value.partition(":")
    return None if colon and scheme in STORES else (
        "scheme:argument, beginning with one of " + ", ".join(f"{name}:" for name in STORES))


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """``[service]``."""

    hostname: str = setting(
        "", "What this host calls itself in greetings, Received fields and message ids; empty for "
        "its own fully qualified name.", check=_host_name)
    data: str = setting(
        "/var/lib/mailsvc", "The directory that {data} stands for elsewhere.", check=_not_empty)
    store: str = setting(
        "maildir:{data}/mail", "Where mail is kept, as scheme:argument.  maildir:DIR keeps it in "
        "DIR/<domain>/<local-part>/{tmp,new,cur}.", check=_store)
    workers: int = setting(
        0, "How many processes serve together; 0 for one on each core.", check=at_least(0))
    grace_seconds: float = setting(
        30, "How long a stop waits for transactions and sessions in progress.", unit="seconds",
        check=at_least(0))
    drain_seconds: float = setting(
        900, "After an upgrade, how long sessions may go on in the former program before it stops.",
        unit="seconds", check=at_least(0))
    sweep_every_hours: float = setting(
        24, "How often what abandoned deliveries left behind is looked for.", unit="hours",
        check=at_least(0.01))


@dataclass(frozen=True, slots=True)
class ListenerSettings:
    """``[listeners]``."""

    smtp: list[str] = setting(
        ["tcp:25:backlog=1024"], "Where mail from other servers is taken (SMTP): Twisted endpoint "
        "strings; [] for nowhere.", check=endpoints.check)
    submission: list[str] = setting(
        [], "Where users log in and send, as a rule tcp:587: TLS by STARTTLS.",
        check=endpoints.check)
    submissions: list[str] = setting(
        [], "The same with TLS from the first octet, as a rule tcp:465.", check=endpoints.check)
    lmtp: list[str] = setting(
        [], "Where a mail server beside this one delivers (LMTP), as a rule tcp:24 on loopback or "
        "unix:/run/mailsvc/lmtp.  Whoever reaches it is trusted.", check=endpoints.check)
    odmr: list[str] = setting(
        [], "Where hosts log in and fetch the mail of routing.atrn_domains (ODMR), as a rule "
        "tcp:366: TLS by STARTTLS.", check=endpoints.check)
    pop3: list[str] = setting(
        ["tcp:110:backlog=1024"], "Where POP3 listens: TLS by STLS.", check=endpoints.check)
    pop3s: list[str] = setting(
        [], "The same with TLS from the first octet, as a rule tcp:995.", check=endpoints.check)
    http: list[str] = setting(
        [], "Where figures for Prometheus are shown (/metrics), and whether the service lives "
        "(/healthz) and is ready (/readyz), as tcp:2080:interface=127.0.0.1.  Whoever reaches it "
        "may read them.", check=endpoints.check)
    acme: list[str] = setting(
        [], "Where the authority of acme.names looks whether they lead here, as tcp:80; it has to "
        "be reached on port 80, or with acme.challenge tls-alpn-01 on port 443.",
        check=endpoints.check)
    console: list[str] = setting(
        [], "Where the pages are for users and administrators, as tcp:8443; with the certificates "
        "of [tls], but in clear on loopback ([console]).  The API is there too, below /api/v1.",
        check=endpoints.check)
    api: list[str] = setting(
        [], "Where the API is alone, as unix:/run/mailsvc/api: on a Unix socket root and the user "
        "of the service need not log in.  Elsewhere as with console.", check=endpoints.check)


@dataclass(frozen=True, slots=True)
class AccountSettings:
    """``[accounts]``."""

    database: str = setting(
        "{data}/accounts.sqlite", "The SQLite file that holds domains, accounts and aliases.",
        check=_not_empty)


@dataclass(frozen=True, slots=True)
class Source:
    """What settings were read from, and can be read from again.

    :ivar path: the file, absolute; None for :data:`DEFAULT_PATH` if there is one.
    :ivar overrides: ``KEY=VALUE`` that go before it.
    """

    path: str | None
    overrides: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Settings:
    """All of the configuration; a field is a section, in the order of the file."""

    service: ServiceSettings = ServiceSettings()
    listeners: ListenerSettings = field(default_factory=ListenerSettings)
    tls: TLSSettings = field(default_factory=TLSSettings)
    acme: ACMESettings = field(default_factory=ACMESettings)
    smtp: SMTPSettings = field(default_factory=SMTPSettings)
    submission: SubmissionSettings = field(default_factory=SubmissionSettings)
    pop3: POP3Settings = field(default_factory=POP3Settings)
    maildir: MaildirSettings = field(default_factory=MaildirSettings)
    accounts: AccountSettings = AccountSettings()
    passwords: PasswordSettings = field(default_factory=PasswordSettings)
    auth: AuthSettings = field(default_factory=AuthSettings)
    brakes: BrakeSettings = field(default_factory=BrakeSettings)
    proxy: ProxySettings = field(default_factory=ProxySettings)
    routing: RoutingSettings = field(default_factory=RoutingSettings)
    queue: QueueSettings = field(default_factory=QueueSettings)
    relay: RelaySettings = field(default_factory=RelaySettings)
    webhooks: WebhookSettings = field(default_factory=WebhookSettings)
    trace: TraceSettings = TraceSettings()
    console: ConsoleSettings = field(default_factory=ConsoleSettings)
    log: LogSettings = field(default_factory=LogSettings)
    #: The keys that were given and not left to their defaults, dotted, and where: "FILE:LINE".
    given: Mapping[str, str] = field(default_factory=dict, compare=False)
    #: Where :func:`load` found them; None when they come from elsewhere.
    source: Source | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        service, accounts = self.service, self.accounts
        data = os.path.abspath(service.data)
        resolved = {
            "service": dataclasses.replace(
                service, data=data, hostname=(service.hostname or _own_name()).lower(),
                store=service.store.replace("{data}", data)),
            "tls": dataclasses.replace(
                self.tls, client_ca=self.tls.client_ca.replace("{data}", data),
                certificates=[place.replace("{data}", data) for place in self.tls.certificates]),
            "accounts": dataclasses.replace(
                accounts, database=os.path.abspath(accounts.database.replace("{data}", data))),
        }
        for name, section in resolved.items():
            object.__setattr__(self, name, section)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], overrides: Iterable[str] = ()) -> Self:
        """The settings that *mapping* (sections of keys) and ``KEY=VALUE`` *overrides* give.

        :raises ConfigurationError: with every mistake.
        """
        return cls(**_Reading("configuration", {}).sections(mapping, overrides))

    def where(self, key: str) -> str:
        """Where the value of *key* comes from, as mistakes tell it: "FILE:LINE"."""
        return self.given.get(key) or (self.source and self.source.path) or "configuration"

    def mistake(self, key: str, problem: str, value: Any = None) -> str:
        """The line that tells of a *problem* with the value of *key*.

        :param value: what of the value is meant, if not all.
        """
        if value is None:
            section, _, name = key.partition(".")
            value = getattr(getattr(self, section), name)
        return f"{self.where(key)}: {key} = {_shown(value)}: {problem}"

    def entries(self) -> Iterator[tuple[Key, Any]]:
        """Each key with its effective value."""
        for key in KEYS.values():
            yield key, getattr(getattr(self, key.section), key.name)


@functools.cache
def _own_name() -> str:
    name = socket.gethostname()
    if "." not in name:
        # Asking the resolver may take its time; a name with dots needs no asking.
        full = socket.getfqdn().rstrip(".")
        name = full if "." in full else name
    return name if _host_name(name) is None else "localhost"


# ---- the keys -----------------------------------------------------------------------------------

#: Every section by its name, in the order of the file.
SECTIONS: dict[str, type] = {
    name: cls for name, cls in typing.get_type_hints(Settings).items()
    if isinstance(cls, type) and dataclasses.is_dataclass(cls)}

#: Every key by its dotted name, in the order of the file.
KEYS: dict[str, Key] = {
    str(key): key for name, cls in SECTIONS.items() for key in keys_of(name, cls)}


# ---- reading ------------------------------------------------------------------------------------


class ConfigurationError(Exception):
    """A configuration that cannot be used.

    :ivar problems: one line each: where, key, value found, what was expected.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


#: The file that is read when none is named, if it is there.
DEFAULT_PATH = "/etc/mailsvc.toml"


def load(path: str | os.PathLike[str] | None = None, overrides: Iterable[str] = ()) -> Settings:
    """The settings that the file at *path* and ``KEY=VALUE`` *overrides* give.

    Without a *path*, :data:`DEFAULT_PATH` is read if it exists; otherwise defaults are used.

    :raises ConfigurationError: with every mistake of both.
    """
    overrides = tuple(overrides)
    source = Source(None if path is None else os.path.abspath(path), overrides)
    if path is None:
        if not os.path.lexists(DEFAULT_PATH):
            return dataclasses.replace(Settings.from_mapping({}, overrides), source=source)
        path = DEFAULT_PATH
    name = os.fspath(path)
    try:
        with open(path, "rb") as stream:
            text = stream.read().decode("utf-8-sig")
        content, lines, mistakes = read(text)
    except OSError as error:
        remedy = (f"name a file that this user (uid {os.geteuid()}) may read"
                  if isinstance(error, PermissionError) else "name a file that is there")
        raise ConfigurationError([f"{name}: cannot be read: {error.strerror}; {remedy}"]) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigurationError([f"{name}:{line}: not UTF-8, which TOML has to be; save it "
                                  "in that encoding"]) from error
    except RecursionError as error:
        raise ConfigurationError([f"{name}: arrays or tables are nested too deep; no key "
                                  "needs it, see `mailsvc config reference`"]) from error
    return Settings(**_Reading(name, lines, mistakes).sections(content, overrides), source=source)


def _explained(mistake: Mistake) -> str:
    """What to write instead of what is no TOML."""
    dotted, value = ".".join(map(str, mistake.path)), mistake.value
    name = mistake.path[-1] if mistake.path else "key"
    key = KEYS.get(dotted)
    if mistake.problem.startswith("Cannot"):
        return (f"{dotted or name} stands on line {mistake.begun} already; write it once"
                if mistake.begun else mistake.problem)
    if mistake.begun:
        return f"{mistake.problem}: what begins on line {mistake.begun} has no end"
    if value is None:
        example = literal(key.default) if key else "..."
        return mistake.problem + (
            f", as in {name} = {example}" if "'='" in mistake.problem else
            "; a comment begins with #" if mistake.problem == "Invalid statement" else
            "; strings stand in quotation marks")
    if key is None:
        return (f"{dotted} = {_cut(value)}: {mistake.problem}; strings stand in quotation marks, "
                "and true and false are written so")
    example = _written(key, value)
    return (f"{dotted} = {_cut(value)}: expected {key.type}"
            + (f" ({key.unit})" if key.unit else "")
            + (f", in quotation marks: {name} = {example}" if example else ""))


def _written(key: Key, value: str) -> str:
    """How what was meant by *value* is written as a string or an array of strings, or ""."""
    plain = value.strip("[]\"'“”„‘’ \t")
    if key.kind is str:
        return literal(plain or key.default)
    if key.kind == list[str]:
        words = [word.strip("\"'“”„‘’ \t") for word in plain.split(",")]
        return literal([word for word in words if word] or key.default)
    return ""


class _Reading:
    """Gathers the values of one configuration, and the problems with them."""

    def __init__(self, name: str, lines: Mapping[Path, int],
                 mistakes: Iterable[Mistake] = ()) -> None:
        self._name = name
        self._lines = lines
        self._values: dict[str, Any] = {}
        self._given: dict[str, str] = {}
        self._problems = [
            (mistake.line, f"{name}:{mistake.line}:{mistake.column}: {_explained(mistake)}")
            for mistake in mistakes]

    def sections(self, mapping: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
        """The arguments for :class:`Settings`."""
        for section, keys in mapping.items():
            if section in SECTIONS and isinstance(keys, dict):
                for name, value in keys.items():
                    self._take((section, name), value, self._lines.get((section, name), 0))
            else:
                self._take((section,), keys, self._lines.get((section,), 0))
        for override in overrides:
            self._override(override)
        if self._problems:
            raise ConfigurationError(text for _, text in sorted(self._problems, key=_line))
        made = {}
        for section, cls in SECTIONS.items():
            own = {key.name: self._values[dotted] for dotted, key in KEYS.items()
                   if key.section == section and dotted in self._values}
            made[section] = cls(**own)
        return {**made, "given": self._given}

    def _override(self, text: str) -> None:
        try:
            path, plain = assignment(text)
        except ValueError:
            self._problem(_OVERRIDE, f"{text}: expected KEY=VALUE, such as smtp.recipients=100")
            return
        value = parsed(plain)
        key = KEYS.get(".".join(path[:2]))
        if key and len(path) > 2 and typing.get_origin(key.kind) is dict:
            # One item more in a table; the names of items may have dots of their own.
            present = self._values.get(str(key), key.default)
            path, value = path[:2], {**present, ".".join(path[2:]): value}
        elif key and key.kind is str and not isinstance(value, str):
            value = plain
        self._take(path, value, _OVERRIDE)

    def _take(self, path: tuple[str, ...], value: Any, line: int) -> None:
        name = ".".join(path)
        if name in KEYS and len(path) == 2:
            expected = KEYS[name].expected(value)
            if expected is None:
                self._values[name] = value
                self._given[name] = self._where(line)
            else:
                self._problem(line, f"{name} = {_shown(value)}: expected {expected}")
        elif name in SECTIONS:
            self._problem(line, f"{name} = {_shown(value)}: expected a table, [{name}]")
        elif isinstance(value, dict):
            self._problem(line, f"[{name}]: no such section; {_meant(name)}")
        else:
            self._problem(line, f"{name} = {_shown(value)}: no such key; {_meant(name)}")

    def _problem(self, line: int, text: str) -> None:
        self._problems.append((line, f"{self._where(line)}: {text}"))

    def _where(self, line: int) -> str:
        return "--set" if line == _OVERRIDE else f"{self._name}:{line}" if line else self._name


#: The line that overrides stand on: behind any file.
_OVERRIDE = 1 << 60


def _line(problem: tuple[int, str]) -> int:
    return problem[0]


def _shown(value: object) -> str:
    return _cut(literal(value))


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def key_named(name: str) -> Key:
    """The key that is called *name*, dotted.

    :raises ConfigurationError: there is none; the text says which one may be meant.
    """
    if name in KEYS:
        return KEYS[name]
    raise ConfigurationError([f"{name}: no such key; {_meant(name)}"])


def _meant(name: str) -> str:
    """Which key or section the unknown *name* may have meant."""
    section, _, last = name.rpartition(".")
    siblings = [key.name for key in KEYS.values() if key.section == section]
    near = [f"{section}.{key}" for key in difflib.get_close_matches(last, siblings, 1)]
    near = (near or [dotted for dotted, key in KEYS.items() if key.name == last]
            or difflib.get_close_matches(
                name, KEYS if section in SECTIONS else [*SECTIONS, *KEYS], 1, cutoff=0.75))
    return f"did you mean {near[0]}?" if near else "`mailsvc config reference` lists them all"


# ---- showing ------------------------------------------------------------------------------------

_HEADING = """\
# The configuration of mailsvc, in TOML.
#
# Every key is here, commented out, with its default.  To change one, remove its "#" and edit the
# value; the line above it says of what type it is, and in what unit.
#
#   mailsvc config check FILE    lists every mistake in a file
#   mailsvc config show FILE     shows the values in effect
#   mailsvc config why KEY FILE  says which line makes one so, and what it means
#
# `mailsvc config reference` prints this text.
"""


def reference(given: Mapping[str, Any] | None = None, heading: str = _HEADING) -> str:
    """The commented example, ``etc/mailsvc.toml``: every key with its default.

    :param given: keys, dotted, that are set to other values.
    """
    given = given or {}
    lines = [heading.rstrip("\n")]
    section = ""
    for key in KEYS.values():
        if key.section != section:
            section = key.section
            lines += ["", f"[{section}]"]
        lines += ["", *textwrap.wrap(key.sentence, 98, initial_indent="# ", subsequent_indent="# ",
                                     break_long_words=False, break_on_hyphens=False),
                  f"# {key.form}.",
                  f"{key.name} = {literal(given[str(key)])}" if str(key) in given
                  else f"#{key.name} = {literal(key.default)}"]
    return "\n".join(lines) + "\n"
