"""``mailsvc doctor``: what is right and wrong with the service, its host and its domains.

One line for each fact, the verdict last; the exit status says the same.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from mailsvc import control
from mailsvc.blocking import run
from mailsvc.cli import place
from mailsvc.cli.arguments import DOMAIN, MAILBOX, password_options
from mailsvc.cli.config import unusable
from mailsvc.cli.listing import json_option, print_json
from mailsvc.cli.place import open_directory, place_options
from mailsvc.cli.records import IP_ADDRESS
from mailsvc.cli.remote import host_and_port, read_secret
from mailsvc.config import ConfigurationError, Settings
from mailsvc.contradictions import contradictions
from mailsvc.doctor import examination, host
from mailsvc.doctor.examination import Server
from mailsvc.doctor.facts import Check, Fact, Verdict, examine, fail, in_thread, note, ok
from mailsvc.doctor.listening import Listening, is_proxied, place_of
from mailsvc.doctor.outgoing import Outgoing
from mailsvc.doctor.probes import ENDS, PROBES
from mailsvc.doctor.world import World, shown_by
from mailsvc.localsocket import NoService
from mailsvc.mail import Address
from mailsvc.names import DirectoryError
from mailsvc.reach import bound
from mailsvc.records import zone_of
from mailsvc.zone import Zone

#: How many domains are looked at, at most.
_DOMAINS = 20


#: How many dialogues of --deep are held at once: servers have limits.
_EXAMINED_AT_ONCE = 4

_PORTS = {"smtp": 25, "submission": 587, "submissions": 465, "pop3": 110, "pop3s": 995}

#: The kinds of listeners that --deep examines.
EXAMINED = sorted({kind for probe in PROBES for kind in probe.kinds})


class _ServerType(click.ParamType):
    name = "KIND=HOST:PORT"

    def convert(self, value: Any, param: click.Parameter | None,
                ctx: click.Context | None) -> Server:
        if isinstance(value, Server):
            return value
        kind, equals, where = value.partition("=")
        if not equals or kind not in EXAMINED:
            self.fail(f"{value!r}: expected KIND=HOST:PORT, where KIND is one of "
                      f"{', '.join(EXAMINED)}", param, ctx)
        host, port = host_and_port(where, 0)
        return Server(kind, host, port or _PORTS[kind])


_SERVER = _ServerType()


@dataclass(frozen=True, slots=True)
class Deep:
    """What --deep examines.

    :ivar servers: those that were named; none for the listeners of our own service.
    :ivar values: what is filled into the dialogues.
    """

    servers: Sequence[Server]
    values: Mapping[str, str]


class Screen:
    """Where facts are printed, and on a terminal which check is waited for."""

    def __init__(self) -> None:
        self._shows_progress = sys.stdout.isatty() and sys.stderr.isatty()
        self._waiting = False

    def tell(self, fact: Fact) -> None:
        """Print *fact*."""
        self.clear()
        # https://no-color.org
        colours = {} if os.environ.get("NO_COLOR") else {
            Verdict.WARN: "yellow", Verdict.FAIL: "red"}
        click.secho(str(fact), fg=colours.get(fact.verdict))

    def waiting(self, what: str) -> None:
        """Say that *what* is waited for."""
        if self._shows_progress:
            click.echo(f"\r\x1b[K… {what}", nl=False, err=True)
            self._waiting = True

    def clear(self) -> None:
        """Take that back."""
        if self._waiting:
            click.echo("\r\x1b[K", nl=False, err=True)
            self._waiting = False


@click.command()
@click.argument("domains", nargs=-1, type=DOMAIN, metavar="[DOMAIN]...")
@click.option("--address", "addresses", type=IP_ADDRESS, multiple=True,
              help="An address that mail leaves from, as others see it; may be repeated [told from "
                   "here, or the addresses of service.hostname].")
@click.option("--reach", "elsewhere", type=DOMAIN, metavar="DOMAIN", multiple=True,
              help="Connect to an exchanger of this domain, to see whether port 25 is open "
                   "outwards; may be repeated.")
@click.option("--offline", is_flag=True, help="Ask neither the DNS nor other hosts.")
@click.option("--timeout", type=click.FloatRange(0.1, 600), default=15, show_default=True,
              metavar="SECONDS", help="How long each check may take.")
@click.option("--deep", is_flag=True,
              help="Examine too whether the service can be misled, as an attacker would: relaying, "
                   "smuggling, what is said before TLS, nonsense.  Sends up to "
                   f"{len(ENDS)} small messages to --to.")
@click.option("--server", "servers", type=_SERVER, multiple=True, metavar=_SERVER.name,
              help="With --deep, examine this server and nothing else: as in "
                   "smtp=mx.example.org:25; may be repeated.  Only what you own: it looks like an "
                   "attack.")
@click.option("--to", type=MAILBOX, metavar="NAME@DOMAIN",
              help="With --deep, a mailbox there that may get messages [postmaster of the first "
                   "domain; with --server it has to be given, or smuggling is not looked at].")
@click.option("--login", type=MAILBOX, metavar="NAME@DOMAIN",
              help="With --deep, an account there, to examine POP3 behind a login too.")
@password_options("The password of --login is what this file holds [asked for].")
@json_option
@place_options
def doctor(domains: tuple[str, ...], addresses: tuple[str, ...], elsewhere: tuple[str, ...],
           offline: bool, timeout: float, deep: bool, servers: tuple[Server, ...],
           to: Address | None, login: Address | None, password_file: str | None,
           as_json: bool) -> None:
    """Say what is wrong with the service, its host and its DNS.

    Run it as root, or as the user that runs the service.  Without DOMAIN it looks at all that are
    served.  It changes nothing and, without --deep, sends no mail.  One line is one fact: "ok";
    "note", what need not be so or was not looked at; "warn", what should be seen to; "FAIL", what
    does not work; then what it is about, what is so, and behind a dash what to do.  The verdict is
    the last line.

    The exit status is 0 when nothing is worse than a note, 1 when there are warnings, and 2 when
    something fails (or the command line is wrong), as programs that watch services expect it.

    The keys in JSON are verdict (ok, warn or fail), and facts, each with verdict (note too), what,
    detail and remedy.

    \b
    Example:
      mailsvc doctor
      mailsvc doctor example.org --reach example.net
      mailsvc doctor --deep
      mailsvc doctor --deep --server smtp=192.0.2.7:25 --to alice@example.org
      mailsvc doctor --json | jq -r '.facts[] | select(.verdict == "fail").detail'
    """
    if not deep and (servers or to or login or password_file):
        raise click.UsageError("--server, --to, --login and its password are for --deep.")
    examined = Deep(servers, _filled_in(to, login, password_file)) if deep else None
    screen = Screen()
    tell = (lambda fact: None) if as_json else screen.tell
    waiting = (lambda what: None) if as_json else screen.waiting
    try:
        if servers:
            assert examined is not None
            facts = run(_examined, examined, [], timeout, tell, waiting)
        else:
            facts = diagnose(place.settings(), domains=domains, addresses=addresses,
                             elsewhere=elsewhere, offline=offline, timeout=timeout, tell=tell,
                             waiting=waiting, deep=examined)
    except click.UsageError:
        raise
    except click.ClickException as error:
        facts = [fail("configuration", line, "see `mailsvc config check`")
                 for line in error.message.splitlines()]
        for fact in facts:
            tell(fact)
    worst = verdict(facts)
    if as_json:
        print_json({"verdict": str(worst).lower(),
                    "facts": [{"verdict": str(each.verdict).lower(), "what": each.what,
                               "detail": each.detail, "remedy": each.remedy} for each in facts]})
    else:
        screen.clear()
        click.echo(summary(facts))
    click.get_current_context().exit({Verdict.WARN: 1, Verdict.FAIL: 2}.get(worst, 0))


def verdict(facts: Sequence[Fact]) -> Verdict:
    """The worst of *facts*; a note is no worse than what is right."""
    worst = max((each.verdict for each in facts), default=Verdict.OK)
    return Verdict.OK if worst is Verdict.NOTE else worst


def summary(facts: Sequence[Fact]) -> str:
    """The verdict in a line, with how many facts are how."""
    counts = ", ".join(f"{count} {each!s}" for each in reversed(Verdict)
                       if (count := sum(fact.verdict is each for fact in facts)))
    return f"verdict: {verdict(facts)!s} ({counts})"


def diagnose(settings: Settings, *, domains: Sequence[str] = (), addresses: Sequence[str] = (),
             elsewhere: Sequence[str] = (), offline: bool = False, running: bool = True,
             timeout: float = 15, tell: Callable[[Fact], object],
             waiting: Callable[[str], object], deep: Deep | None = None) -> list[Fact]:
    """Run the checks of ``mailsvc doctor``.

    :param running: whether the service should run by now.
    :param deep: what to examine the listeners with too, if anything.
    """
    return run(_diagnosed, settings, domains or _served(), bool(domains or addresses or elsewhere),
               addresses, elsewhere, offline, running, timeout, tell, waiting, deep)


def _served() -> list[str]:
    try:
        with open_directory() as directory:
            return [each.name for each in directory.domains()]
    except click.ClickException:
        return []  # a fact of its own tells why


def _in_effect(settings: Settings) -> tuple[Settings, bool]:
    """Those of the service that runs, if one does; and whether it was started from flags alone."""
    try:
        told = control.running(Path(settings.service.data))
        sections: dict[str, dict[str, Any]] = {"service": {"data": settings.service.data}}
        for key, value in settings.entries():
            if told["values"][str(key)] != value:
                sections.setdefault(key.section, {})[key.name] = told["values"][str(key)]
        return Settings.from_mapping(sections), told["overrides"] is None
    except (NoService, KeyError, ConfigurationError):
        # None, one that may not be asked, or one of another version.
        return settings, False


async def _diagnosed(settings: Settings, domains: Sequence[str], named: bool,
                     addresses: Sequence[str], elsewhere: Sequence[str], offline: bool,
                     running: bool, timeout: float, tell: Callable[[Fact], object],
                     waiting: Callable[[str], object], deep: Deep | None) -> list[Fact]:
    # Not at the top: all other commands do without a reactor, and start the faster.
    from twisted.internet import reactor  # noqa: PLC0415 - importing it installs it

    def blocking(function: Callable[[Settings], list[Fact]]) -> Callable[[], Awaitable[list[Fact]]]:
        return lambda: in_thread(reactor, function, settings)

    listeners: list[tuple[str, str]] = []

    async def service() -> list[Fact]:
        facts, found = await in_thread(reactor, host.service, settings)
        listeners.extend(found)
        return facts

    of_flags = False
    if settings.source is None:
        # Named by its directory: how it is configured only the service itself knows.
        settings, of_flags = await in_thread(reactor, _in_effect, settings)
    facts = await examine([
        Check("configuration", blocking(_configuration)),
        Check("data directory", blocking(host.data_directory)),
        Check("disk", blocking(host.room)),
        Check("clock", blocking(lambda _: host.clock())),
        Check("accounts", blocking(host.accounts)),
        *([Check("service", service)] if running else []),
    ], timeout, reactor, tell, waiting)
    # Where the service listens is known only now.
    checks = list(_of_listeners(settings, listeners, timeout / 3, reactor))
    world: World | None = None
    if of_flags and not (offline or named):
        checks.append(_told(note(
            "DNS", "not looked at: the service was started from flags alone (mailsvc dev)",
            "name a domain that shall be found by others: mailsvc doctor DOMAIN")))
    elif not offline:
        if listeners:
            # Where it really listens: by the systemd units, say.
            settings = replace(settings, listeners=bound(listeners))
        world = World(settings, addresses, shown_by(settings), timeout, reactor)
        checks += _elsewhere(settings, domains, elsewhere, world, timeout, reactor)
    try:
        facts += await examine(checks, timeout, reactor, tell, waiting)
        if deep is not None and is_proxied(settings):
            facts.append(note("--deep", "not done: connections from this machine have to begin "
                              "with a PROXY header (proxy.networks)",
                              "name what is before the proxy: --server"))
            tell(facts[-1])
        elif deep is not None:
            values = {"domain": domains[0], "to": f"postmaster@{domains[0]}"} if domains else {}
            facts += await _examined(replace(deep, values={**values, **deep.values}), listeners,
                                     timeout, tell, waiting)
        return facts
    finally:
        if world is not None:
            world.stop()


async def _examined(deep: Deep, listeners: Sequence[tuple[str, str]], timeout: float,
                    tell: Callable[[Fact], object],
                    waiting: Callable[[str], object]) -> list[Fact]:
    """The facts of --deep, about the servers named, or the *listeners* of our own service."""
    from twisted.internet import reactor  # noqa: PLC0415 - importing it installs it

    servers = list(deep.servers)
    if not servers:
        servers = [Server(kind, *place_of(address)) for kind, address in listeners
                   if kind in EXAMINED and not address.startswith("/")]
    checks = [check for server in servers
              for check in examination.checks(server, deep.values, timeout / 3, reactor)]
    return await examine(checks, timeout, reactor, tell, waiting, at_once=_EXAMINED_AT_ONCE)


def _filled_in(to: Address | None, login: Address | None,
               password_file: str | None) -> dict[str, str]:
    """What --deep fills into its dialogues."""
    values = {} if to is None else {"to": str(to), "domain": to.domain}
    if login is None and password_file is not None:
        raise click.UsageError("A password is for --login: give both.")
    if login is not None:
        values |= {"user": str(login), "password": read_secret(password_file)}
    return values


def _configuration(settings: Settings) -> list[Fact]:
    facts = [note("configuration", f"{key}: {problem}",
                  "run this as root, or as the user that runs the service") if problem.hidden else
             fail("configuration", f"{key}: {problem}", "see `mailsvc config check`")
             for key, problem in unusable(settings)]
    facts += [fail("configuration", problem, "see `mailsvc config check`")
              for problem in contradictions(settings)]
    return facts or [ok("configuration", f"{settings.service.hostname}, "
                        f"{len(settings.given)} keys set")]


def _of_listeners(settings: Settings, listeners: list[tuple[str, str]], seconds: float,
                  reactor: Any) -> Iterator[Check]:
    if not listeners:
        return
    listening = Listening(settings, seconds, reactor)
    for kind, address in listeners:
        yield Check(f"{kind} {address}", partial(listening.examine, kind, address))
    yield Check("certificate", partial(listening.certificate, listeners))


def _elsewhere(settings: Settings, domains: Sequence[str], elsewhere: Sequence[str], world: World,
               timeout: float, reactor: Any) -> Iterator[Check]:
    """What the DNS says, and whether mail gets out."""
    relay = settings.relay
    out = Outgoing(settings, world.exchangers, timeout / 3, reactor)

    def zone(domain: str) -> Zone | Fact:
        try:
            return zone_of(settings, domain, addresses=world.addresses)
        except DirectoryError as error:
            return fail(f"DKIM {domain}", str(error), "see to that file")

    of_host = zone(domains[0] if domains else settings.service.hostname)
    if isinstance(of_host, Zone):
        yield from world.of_host(of_host)
    if relay.smarthost:
        yield Check("smarthost", out.smarthost)
    for domain in elsewhere:
        yield Check(f"outgoing port {relay.port}", partial(out.exchangers_of, domain))
    if not relay.smarthost and not elsewhere:
        yield _told(note(f"outgoing port {relay.port}", "not looked at", "name a domain that takes "
                         "mail elsewhere: --reach DOMAIN"))
    if len(domains) > _DOMAINS:
        yield _told(note("domains", f"{len(domains) - _DOMAINS} of {len(domains)} not looked at",
                         f"name those that shall be, {_DOMAINS} at a time"))
    for domain in domains[:_DOMAINS]:
        found = zone(domain)
        if isinstance(found, Fact):
            yield _told(found)
        else:
            yield from world.of_domain(found)


def _told(fact: Fact) -> Check:
    """A check that has found *fact* already."""
    async def find() -> list[Fact]:
        return [fact]

    return Check(fact.what, find)
