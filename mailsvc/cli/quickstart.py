"""``mailsvc quickstart``: from an installed mailsvc to a service that is ready to be started.

Makes the pieces of :mod:`mailsvc.installation` one by one, prints what the DNS has to say, looks at
it with the checks of ``mailsvc doctor``, and ends with what is left to be done by hand.  Everything
that it says, but for a password that it made up, is kept in ``quickstart.log`` too.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from mailsvc import installation
from mailsvc.acme.limits import CHALLENGES
from mailsvc.cli import place
from mailsvc.cli.accounts import ask_password
from mailsvc.cli.arguments import DOMAIN, MAILBOX, Named, password_options
from mailsvc.cli.doctor import Screen, diagnose, summary
from mailsvc.cli.listeners import PORTS
from mailsvc.cli.records import IP_ADDRESS, text_of
from mailsvc.config import DEFAULT_PATH, ConfigurationError, ServiceSettings, Settings, load
from mailsvc.doctor.facts import Fact
from mailsvc.errors import MailFailure
from mailsvc.installation import Impossible, Made, Piece
from mailsvc.localsocket import NoService
from mailsvc.mail import Address
from mailsvc.monitor import ask
from mailsvc.names import DirectoryError
from mailsvc.ownership import give_to_owner_of
from mailsvc.passwords import new_app_password
from mailsvc.reach import UNITS, receives
from mailsvc.records import zone_of
from mailsvc.toml import literal

_UNIT_FOLDER = "/etc/systemd/system"


@dataclass(slots=True)
class Report:
    """What is said, on the screen and in a log, which begins when there is a place for it."""

    _early: list[str] = field(default_factory=list)
    _log: Path | None = None

    def begin_log(self, log: Path) -> None:
        """Keep what was said, and will be, in the file *log* too."""
        self._log = log
        early, self._early = self._early, []
        self.keep(*early)

    def say(self, text: str = "") -> None:
        """Print *text* and keep it."""
        click.echo(text)
        self.keep(text)

    def piece(self, piece: Piece) -> None:
        """Say what became of *piece*."""
        self.say(f"made           {piece.text}" if isinstance(piece, Made)
                 else f"already there  {piece.text}")

    def keep(self, *texts: str) -> None:
        """Put *texts* into the log alone."""
        if self._log is None:
            self._early += texts
            return
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        lines = [f"{now} {line}".rstrip() for text in texts for line in text.split("\n")]
        try:
            existed = self._log.exists()
            # No link: the directory is another user's, who could have put one there.
            with open(self._log, "a", encoding="utf-8",
                      opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW, 0o600),
                      ) as file:
                file.write("".join(f"{line}\n" for line in lines))
            if not existed:
                give_to_owner_of(self._log.parent, self._log)
        except OSError as error:
            raise click.ClickException(
                f"cannot write the log {self._log}: {error.strerror}; see that the disk has room, "
                "and that nothing else is there") from error


@dataclass(frozen=True, slots=True)
class Plan:
    """Where everything goes.

    :ivar owner: the user that the service runs as; "" for whoever starts it.
    :ivar unit_folder: where units are installed; None for nowhere.
    :ivar acme: whether the service shall get its certificate by itself.
    """

    address: Address
    config: Path
    data: Path
    owner: str
    unit_folder: Path | None
    acme: bool = False

    @property
    def log(self) -> Path:
        return self.data / "quickstart.log"

    @property
    def command(self) -> str:
        """``mailsvc``, as it has to be called for this service."""
        return "mailsvc" if str(self.config) == DEFAULT_PATH else (
            f"mailsvc --config {shlex.quote(str(self.config))}")


@click.command()
@click.argument("address", type=MAILBOX, metavar="NAME@DOMAIN")
@click.option("--hostname", type=DOMAIN,
              help="What this host is called, as its address leads back to [its full name, or "
                   "mail.DOMAIN].")
@click.option("--address", "addresses", type=IP_ADDRESS, multiple=True,
              help="An address of this host, as others see it; may be repeated [told from here].")
@password_options("The account's password is what this file holds [asked for, twice; made up where "
                  "there is no terminal].")
@click.option("--config", metavar="FILE", type=Named(dir_okay=False),
              help=f"The configuration to write [{DEFAULT_PATH}, or with --dir DIR/mailsvc.toml].")
@click.option("--dir", "directory", metavar="DIR", type=Named(file_okay=False),
              help=f"The data directory [{ServiceSettings().data}]; a trial needs no root.")
@click.option("--user", metavar="NAME",
              help="The user that runs the service, made if need be [mailsvc; with --dir, whoever "
                   "starts it].")
@click.option("--acme", is_flag=True,
              help="Have the service get its certificate from Let's Encrypt; you agree to its "
                   "terms of service, and port 80 of the host name leads here, or port 443 with "
                   "--set acme.challenge=tls-alpn-01.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE",
              help="Set any key of `mailsvc config reference` in the configuration too.")
@click.option("--units", "unit_folder", metavar="DIR|none",
              help=f"Where systemd's units go [{_UNIT_FOLDER} where systemd runs, without --dir].")
@click.option("--offline", is_flag=True, help="Ask neither the DNS nor other hosts.")
@click.pass_context
def quickstart(ctx: click.Context, address: Address, hostname: str | None,
               addresses: tuple[str, ...], password_file: str | None, config: str | None,
               directory: str | None, user: str | None, acme: bool,
               overrides: tuple[str, ...], unit_folder: str | None, offline: bool) -> None:
    """Set mailsvc up on this host, with its first account.

    NAME@DOMAIN is that account.  Writes the configuration and makes the user and the data
    directory, the domain and the account, keys that sign mail (DKIM), a self-signed certificate and
    systemd's units; prints every record for the DNS; looks at host and DNS as `mailsvc doctor`
    does; and ends with what to do next.  It starts nothing.  What is there already is left as it
    is, so it may be run again at any time.  A log is kept in the data directory, quickstart.log.

    As root it sets up the host.  With --dir anybody can try it: the data are in DIR, and unless
    root does it, the ports are those of `mailsvc dev`, on this machine alone.

    \b
    Example:
      mailsvc quickstart alice@example.org --hostname mail.example.org --acme
      mailsvc quickstart alice@example.org --dir ./try
    """
    # As with the other commands, these may stand before the command's name.
    config = config or ctx.meta.get(f"{place.__name__}.config")
    directory = directory or ctx.meta.get(f"{place.__name__}.dir")
    for key, option in ("service.data", "--dir"), ("service.hostname", "--hostname"):
        if any(each.partition("=")[0].strip() == key for each in overrides):
            raise click.UsageError(f"{key} is not for --set: give it by {option}.")
    report = Report()
    plan = _plan(address, config, directory, user, unit_folder, acme)
    try:
        _set_up(plan, report, hostname, addresses, overrides, password_file, offline=offline)
    except click.ClickException as error:
        report.keep(f"Error: {error.message}")
        raise


def _set_up(plan: Plan, report: Report, hostname: str | None, addresses: Sequence[str],
            overrides: Sequence[str], password_file: str | None, *, offline: bool) -> None:
    """All of it, by *plan*.

    :raises click.ClickException: something could not be done.
    """
    address = plan.address
    try:
        settings = _install(plan, report, hostname, overrides, password_file)
        zone = text_of(zone_of(settings, address.domain, addresses=addresses,
                               systemd=plan.unit_folder is not None))
        records, piece = installation.records(settings, address.domain, zone)
    except Impossible as problem:
        raise click.ClickException(f"{problem}; then run this again") from problem
    except (DirectoryError, MailFailure) as problem:
        raise click.ClickException(str(problem)) from problem
    except OSError as error:
        raise click.ClickException(f"{error.filename or plan.data}: {error.strerror}; then run "
                                   "this again") from error
    report.piece(piece)
    report.say(f"\nWhat the DNS has to say:\n\n{zone.rstrip()}\n\nWhat is so by now:\n")
    facts = _look(plan, settings, addresses, offline, report)
    report.say(summary(facts))
    report.say("\nWhat to do next:\n")
    for number, step in enumerate(_steps(plan, settings, records), 1):
        report.say(f"{number}. " + step.replace("\n", "\n   "))
    click.echo(f"\nAll of this is in {plan.log} too.")


def _plan(address: Address, config: str | None, directory: str | None, user: str | None,
          unit_folder: str | None, acme: bool = False) -> Plan:
    """Where everything goes, by the options.

    :raises click.ClickException: this user cannot do that.
    """
    is_root = os.geteuid() == 0
    if not is_root and directory is None:
        raise click.ClickException(
            f"only root can set up this host: run it with sudo; or to try it, with the data in a "
            f"directory of your own: mailsvc quickstart {address} --dir ./try")
    if not is_root and user is not None:
        raise click.ClickException("only root can set up a service for another user: leave --user "
                                   "out, or run it with sudo")
    data = Path(os.path.abspath(directory or ServiceSettings().data))
    file = Path(os.path.abspath(config or (
        data / "mailsvc.toml" if directory is not None else DEFAULT_PATH)))
    owner = user or ("" if directory is not None else "mailsvc")
    if unit_folder not in (None, "none") and not owner:
        raise click.UsageError("--units needs --user: the user that the unit shall name.")
    folder = Path(unit_folder) if unit_folder and unit_folder != "none" else None
    if unit_folder is None and directory is None and Path("/run/systemd/system").is_dir():
        folder = Path(_UNIT_FOLDER)
    if folder is not None and not folder.is_dir():
        raise click.UsageError(f"--units {folder}: there is no such directory.")
    return Plan(address, file, data, owner, folder, acme)


def _install(plan: Plan, report: Report, hostname: str | None, overrides: Sequence[str],
             password_file: str | None) -> Settings:
    """Make every piece that is missing; the settings of the service."""
    existing = os.path.lexists(plan.config)
    settings, given = _settings(plan, hostname, overrides)
    data = Path(settings.service.data)
    if data != plan.data:
        raise Impossible(f"{plan.config} is there, and says that the data are in {data}: name that "
                         "with --dir, or another file with --config")
    programs = Path(sys.executable).parent
    if plan.unit_folder is not None:
        # In a virtual environment, Python itself lies elsewhere.
        installation.check_unit_places(plan.config, data, programs, Path(sys.base_prefix))
    if plan.owner:
        report.piece(installation.user(plan.owner, data))
    report.piece(installation.data_directory(data, plan.owner))
    report.begin_log(plan.log)
    if not existing and not plan.config.parent.is_dir():
        raise Impossible(f"there is no directory {plan.config.parent} for the configuration: make "
                         "it, or name another file with --config")
    report.piece(installation.configuration(plan.config, given))
    report.say(f"               host name {settings.service.hostname}")
    report.piece(installation.domain(settings, plan.address.domain))
    report.piece(installation.account(
        settings, plan.address, lambda: _password(plan, password_file)))
    report.piece(installation.keys(settings, plan.address.domain))
    report.piece(installation.certificate(settings))
    if plan.unit_folder is not None:
        texts = installation.unit_texts(plan.config, data, plan.owner, programs,
                                        acme=_port_for_authority(settings))
        for piece in installation.units(plan.unit_folder, texts):
            report.piece(piece)
    return settings


def _settings(plan: Plan, hostname: str | None,
              overrides: Sequence[str]) -> tuple[Settings, dict[str, Any]]:
    """The settings of the file that is there, or of the one to be written with the keys given.

    :raises Impossible: the file that is there has mistakes, or says otherwise.
    """
    try:
        if os.path.lexists(plan.config):
            settings = load(plan.config)
            if (overrides or (hostname and hostname != settings.service.hostname)
                    or (plan.acme and not settings.acme.names)):
                raise Impossible(f"{plan.config} is there already and stays as it is: leave --set, "
                                 f"--acme and --hostname out (it says {settings.service.hostname}),"
                                 " and edit the file")
            return settings, {}
        own = [f"service.data={literal(str(plan.data))}",
               *(f"listeners.{kind}={literal(endpoints)}"
                 for kind, endpoints in _listeners().items())]
        name = hostname or _host_name(Settings().service.hostname, plan.address.domain)
        if plan.acme:
            port = CHALLENGES[Settings.from_mapping({}, overrides).acme.challenge]
            own += [f"acme.names={literal([name])}", "acme.agreed=true",
                    f'listeners.acme=["tcp:{port}"]']
        settings = Settings.from_mapping(
            {}, [f"service.hostname={literal(name)}", *own, *overrides])
    except ConfigurationError as error:
        if os.path.lexists(plan.config):
            raise Impossible(f"{plan.config} has mistakes:\n{error}\nmend them, or move the file "
                             "away") from error
        raise click.UsageError(str(error)) from error
    return settings, {str(key): value for key, value in settings.entries()
                      if str(key) in settings.given}


def _port_for_authority(settings: Settings) -> int:
    """Where it answers nobody but an authority; 0 for nowhere."""
    chosen = settings.acme.challenge
    alone = settings.listeners.acme or chosen == "http-01"
    return CHALLENGES[chosen] if settings.acme.names and alone else 0


def _host_name(own: str, domain: str) -> str:
    """What this host shall be called: *own*, if others could know it by that, or mail.DOMAIN."""
    local = (".localdomain", ".local", ".internal", ".lan", ".home", ".arpa")
    return own if "." in own and not own.endswith(local) else f"mail.{domain}"


def _listeners() -> dict[str, list[str]]:
    """The endpoints by kind: the usual ports, or for who is not root those of a trial."""
    if os.geteuid() != 0:
        return {kind: [f"tcp:{PORTS[kind]}:interface=127.0.0.1"]
                for kind in ("smtp", "submission", "submissions", "pop3", "pop3s")}
    family = "tcp6" if _maps_ipv4() else "tcp"
    return {kind: [f"{family}:{port.removeprefix('tcp:')}:backlog=1024"]
            for kind in ("smtp", "submission", "submissions", "pop3", "pop3s")
            for port in getattr(UNITS, kind)}


def _maps_ipv4() -> bool:
    """Whether a listener on all IPv6 addresses takes IPv4 as well."""
    try:
        return Path("/proc/sys/net/ipv6/bindv6only").read_text().strip() == "0" and bool(
            Path("/proc/net/if_inet6").read_text())
    except OSError:
        return False


def _password(plan: Plan, place: str | None) -> str:
    """The password of a new account: given, typed twice, or made up, and shown this once."""
    address = plan.address
    if place is not None:
        return ask_password(place).decode()
    if sys.stdin.isatty():
        while typed := click.prompt(f"Password for {address} (empty: one is made up)", default="",
                                    hide_input=True, show_default=False):
            if click.prompt("The same again", hide_input=True, default="",
                            show_default=False) == typed:
                return str(typed)
            click.echo("These were two different passwords.", err=True)
    made = new_app_password()
    # Not by the report: it is not to be kept.
    click.echo(f"The password of {address} is {made}, shown this once; to change it: "
               f"{plan.command} account passwd {address}")
    return made


def _look(plan: Plan, settings: Settings, addresses: Sequence[str], offline: bool,
          report: Report) -> list[Fact]:
    """The facts of ``mailsvc doctor``; those of the service only if it runs."""
    try:
        ask(plan.data)
        running = True
    except NoService:
        running = False
    screen = Screen()

    def tell(fact: Fact) -> None:
        screen.clear()
        report.say(str(fact))

    facts = diagnose(settings, domains=[plan.address.domain], addresses=addresses, offline=offline,
                     running=running, tell=tell, waiting=screen.waiting)
    screen.clear()
    return facts


def _steps(plan: Plan, settings: Settings, records: Path) -> Iterator[str]:
    """What is left to be done, by hand."""
    hostname, name = settings.service.hostname, plan.address.domain
    config = shlex.quote(str(plan.config))
    if plan.unit_folder is not None:
        yield ("Start it:\n    systemctl daemon-reload\n"
               "    systemctl enable --now mailsvc.socket mailsvc.service")
    else:
        twistd = Path(sys.executable).with_name("twistd")
        program = "twistd" if shutil.which("twistd") == str(twistd) else shlex.quote(str(twistd))
        user = (f" --uid {plan.owner} --gid {installation.group_of(plan.owner)}" if plan.owner
                else "")
        yield (f"Start it, in the foreground:\n    {program} -n --pidfile={user} mailsvc "
               f"--config {config}\n"
               "In the background, or by another supervisor: README.rst, \"Run\"")
    trial = plan.unit_folder is None and not receives(settings.listeners)
    if trial:
        hostname = "127.0.0.1"  # in a trial nobody else needs to find it
    else:
        yield (f"Publish the records above, which are in {records} too, in the DNS of\n{name}; "
               "and have whoever gave you this host's address let it lead back to\n"
               f"{hostname} (reverse DNS)")
    if settings.acme.names:
        yield (f"See whether it got a certificate, which it does when {hostname} leads here:\n"
               f"    {plan.command} acme show")
    elif not trial and not settings.tls.certificates:
        yield (f"Get a certificate for {hostname} that everybody trusts, by certbot say, and name "
               f"it\nin the section [tls] of {plan.config}:\n"
               f"    certificates = [\"/etc/letsencrypt/live/{hostname}\"]\n"
               "or have the service get one; docs/operating.rst, \"Certificates\", says how")
    yield ("See whether all is well, until it says so; with a domain that has its mail elsewhere, "
           f"whether\nmail gets out:\n    {plan.command} doctor {name} --reach DOMAIN")
    yield (f"Set up a mail program: the login is {plan.address}, incoming POP3 and outgoing SMTP\n"
           f"at {hostname}, with TLS on ports {_port(settings, 'pop3s', plan)} and "
           f"{_port(settings, 'submissions', plan)}; more accounts:\n"
           f"    {plan.command} account add NAME@{name}")


def _port(settings: Settings, kind: str, plan: Plan) -> str:
    """The port of the first listener of *kind*, for people."""
    listeners = UNITS if plan.unit_folder is not None else settings.listeners
    endpoints = getattr(listeners, kind)
    return endpoints[0].split(":")[1] if endpoints else f"of listeners.{kind}"
