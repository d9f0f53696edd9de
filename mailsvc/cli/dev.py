"""``mailsvc dev``: a throwaway service in the foreground, from flags alone.

Made for trying mailsvc out, for testing other programs against it, and for tools that drive it: the
flags and the lines on standard output stay as they are.  On standard output it writes one line for
each listener, ``smtp 127.0.0.1:2525`` with the port really bound, then ``ready``; before these, a
line ``account NAME PASSWORD`` if it had to make up an account.  Its log goes to standard error.
SIGTERM, SIGINT and SIGHUP stop it gracefully, with status 0, and once it stops they do nothing
more; but a SIGINT a second later or more does not wait for sessions, and ends it as SIGINT ends
programs.  SIGUSR1 and SIGUSR2, by which a service begins a new log and lets a new version take
over, do neither here, and say so in the log.
All its processes are in the process group it was started in, and end with the first of them.

It reads no configuration file.  Its passwords are hashed with next to no cost, so that thousands of
accounts take no time to make: what is in its directory is for tests, not for people's secrets.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import secrets
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
from click.core import ParameterSource
from twisted.logger import globalLogBeginner
from twisted.python.failure import Failure

from mailsvc import contradictions, log
from mailsvc.certificates import CertificateProblem, certificate_at
from mailsvc.cli import place
from mailsvc.cli.arguments import DOMAIN, Named
from mailsvc.cli.listeners import Place, UnixPlace, listener_options
from mailsvc.config import KEYS, ConfigurationError, Settings
from mailsvc.directory import SqliteDirectory
from mailsvc.errors import MailFailure
from mailsvc.holding import Holding
from mailsvc.listeners import Listener
from mailsvc.mail import Address
from mailsvc.names import DirectoryError, parse_address
from mailsvc.passwords import PasswordHasher, check_password, scram_salt
from mailsvc.prerequisites import hold_data
from mailsvc.serving import serve
from mailsvc.stopping import StopSignals
from mailsvc.store.tree import sync_directory
from mailsvc.toml import literal

#: The least that Argon2id and SCRAM take; --set passwords.memory_kib=… makes it real.
CHEAP_PASSWORDS = ("passwords.memory_kib=64", "passwords.passes=1",
                   "passwords.scram_iterations=4096")
#: What would be in the way of a program under test: that its logins fail again and again, that it
#: sends a lot, that it fetches without TLS, that the exchangers of a test, and servers that a page
#: sends to, are on loopback.  Other loopback addresses are braked as anywhere.
FOR_TESTS = (
    'brakes.exempt_networks=["127.0.0.1/32", "::1/128"]',
    "pop3.allow_cleartext_auth=yes",
    "relay.loopback=true",
    'console.send_networks=["127.0.0.0/8", "::1/128"]',
    "console.send_ports=[]",
    *(f"submission.{what}_per_{period}=0"
      for what in ("messages", "recipients") for period in ("minute", "hour", "day")),
)
DEMO_DOMAIN = "localhost"


class NewAccount(NamedTuple):
    """One ``name@domain:password``."""

    address: Address
    password: str


def _account(text: str) -> NewAccount:
    # A quoted local-part may hold a colon, and so may the password.
    match = re.fullmatch(r'((?:"(?:\\.|[^"\\])*"|[^":@]+)@[^:]+):(.*)', text, re.DOTALL)
    if match is None:
        raise DirectoryError("not an account", "expected NAME@DOMAIN:PASSWORD")
    check_password(match[2])
    return NewAccount(parse_address(match[1]), match[2])


class _AccountType(click.ParamType):
    name = "NAME@DOMAIN:PASSWORD"

    def convert(self, value: Any, param: click.Parameter | None,
                ctx: click.Context | None) -> NewAccount:
        try:
            return _account(value)
        except DirectoryError as error:
            # Not the text: a password is in it.
            self.fail(str(error), param, ctx)


class _AliasType(click.ParamType):
    name = "NAME@DOMAIN=TARGET,TARGET"

    def convert(self, value: Any, param: click.Parameter | None,
                ctx: click.Context | None) -> tuple[Address, list[Address]]:
        # "=" may be in a local-part; an alias's own domain ends at the first one behind its "@".
        name, equals, targets = value.partition("@")[2].partition("=")
        name = f"{value.partition('@')[0]}@{name}"
        try:
            if not equals:
                raise DirectoryError(f"{value!r} is not an alias",
                                     "expected NAME@DOMAIN=TARGET,TARGET")
            return parse_address(name), [parse_address(t.strip()) for t in targets.split(",")]
        except DirectoryError as error:
            self.fail(str(error), param, ctx)


def _check_hostname(ctx: click.Context, option: click.Parameter, name: str | None) -> str | None:
    expected = None if name is None else KEYS["service.hostname"].expected(name)
    if expected is not None:
        raise click.BadParameter(f"{name!r}: expected {expected}", ctx, option)
    return name


ACCOUNT, ALIAS = _AccountType(), _AliasType()


@click.command()
@click.option("--dir", "directory", type=Named(file_okay=False, path_type=Path),
              metavar="DIR", help="Data directory; accounts are in DIR/accounts.sqlite, mail in "
              "DIR/mail/DOMAIN/LOCAL-PART.  Without it, a temporary one, removed at the end.")
@click.option("--domain", "domains", type=DOMAIN, multiple=True, help="Serve this domain.")
@click.option("--hostname", metavar="NAME", callback=_check_hostname,
              help="What the service calls itself [this host].")
@click.option("--account", "accounts", type=ACCOUNT, multiple=True,
              help="Make this account, or give it this password; its domain is served too.")
@click.option("--accounts", "accounts_file", type=click.File("rb"), metavar="FILE",
              help="Accounts, one NAME@DOMAIN:PASSWORD a line; empty lines and # are left out.")
@click.option("--alias", "aliases", type=ALIAS, multiple=True,
              help="Lead mail for one address to others, which exist or stand before it.")
@listener_options
@click.option("--tls-cert", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Certificate and its chain, PEM: offers STARTTLS and STLS everywhere.  Without "
              "it there is a self-signed one, for the ports of submission and for POP3S.")
@click.option("--tls-key", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="The certificate's private key, PEM.")
@click.option("--workers", type=click.IntRange(min=1), metavar="N",
              help="How many processes serve together [one on each core].")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE",
              help="Set any key of `mailsvc config reference`, as in smtp.recipients=10.")
@click.option("--hints", is_flag=True, help="When ready, show ways to try it.")
@click.pass_context
def dev(
    ctx: click.Context, directory: Path | None, domains: Sequence[str], hostname: str | None,
    accounts: Sequence[NewAccount], accounts_file: Any,
    aliases: Sequence[tuple[Address, list[Address]]], tls_cert: Path | None, tls_key: Path | None,
    workers: int | None, overrides: Sequence[str], hints: bool, **places: Place | UnixPlace | None,
) -> None:
    """Start a throwaway service in the foreground, from flags alone.

    It prints a line for each listener, such as "smtp 127.0.0.1:2525", and then "ready"; it logs to
    standard error.  Ctrl-C and SIGTERM stop it.  Without accounts it makes one and prints it.
    Passwords are hashed too quickly to be safe, POP3 takes them without TLS, and 127.0.0.1 may
    guess them: use it for tests.  The first --account administers the service in the console.

    Without any flag for a listener, all but ODMR listen.  With one, SMTP and POP3 do unless they
    are off, and of the others those that have a flag.

    \b
    Example:
      mailsvc dev
      mailsvc dev --account bob@example.org:secret --smtp 0 --pop3 off
    """
    # As with the other commands, these may stand before the command's name.
    if ctx.meta.get(f"{place.__name__}.config"):
        raise click.UsageError("no configuration file is read here: give each key with --set")
    if directory is None and (before := ctx.meta.get(f"{place.__name__}.dir")):
        directory = Path(before)
    unasked = [kind for kind in places if kind not in ("smtp", "pop3")
               and ctx.get_parameter_source(kind) is ParameterSource.DEFAULT]
    certificates = _certificates(tls_cert, tls_key)
    if any(ctx.get_parameter_source(kind) is not ParameterSource.DEFAULT for kind in places):
        # Whoever says where some listen wants these and no more.
        places.update(dict.fromkeys(unasked))
    if not any(places.values()):
        raise click.UsageError("nothing to do: every listener is off; give one a port")
    # A terminal that is closed leaves no temporary directory behind, either.
    with StopSignals(signal.SIGHUP) as signals, _data_directory(directory) as data:
        given = [*accounts, *_accounts_in(accounts_file)]
        settings = _settings([
            *CHEAP_PASSWORDS,
            *FOR_TESTS,
            *certificates,
            f"service.data={literal(str(data))}",
            *(f"listeners.{kind}={literal([place.endpoint] if place else [])}"
              for kind, place in places.items()),
            *([f"service.hostname={literal(hostname)}"] if hostname else []),
            *([f"service.workers={workers}"] if workers else []),
            *overrides])
        # Before accounts are made, which another service would have then.
        holding = Holding(data)
        hold_data(settings, holding)
        try:
            demo = _make_accounts(settings, domains, given, aliases)
        except (DirectoryError, MailFailure) as error:
            raise click.ClickException(str(error)) from error
        if demo is not None:
            click.echo(f"account {demo.address} {demo.password}")
        shown = demo or (given[0] if given else None)
        # That another service has the ports that nobody asked for is no reason to fail.
        _run(settings, holding, unasked, signals,
             lambda listeners: _hints(listeners, shown) if hints else ())
    if signals.hurried:
        # As whoever started it expects of what was interrupted, and whatever thread is still busy.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)


# ---- what the flags mean ------------------------------------------------------------------------


def _accounts_in(file: Iterable[bytes] | None) -> Iterator[NewAccount]:
    for number, line in enumerate(file or (), 1):
        try:
            # White space at the end may belong to the password.
            text = line.rstrip(b"\r\n").decode("utf-8-sig").lstrip()
        except UnicodeDecodeError as error:
            raise click.UsageError(f"--accounts, line {number}: not UTF-8 ({error}); "
                                   "save the file in that encoding") from error
        if text and not text.startswith("#"):
            try:
                yield _account(text)
            except DirectoryError as error:
                raise click.UsageError(f"--accounts, line {number}: {error}") from error


@contextlib.contextmanager
def _data_directory(directory: Path | None) -> Iterator[Path]:
    if directory is None:
        made = None
        try:
            made = tempfile.mkdtemp(prefix="mailsvc-")
            yield Path(made)
        finally:
            if made is not None:
                _remove(made)
        return
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(PermissionError):  # who may make it there need not see the rest
            sync_directory(os.fsencode(directory.absolute().parent))
    except OSError as error:
        raise click.ClickException(f"cannot make {directory}: {error.strerror}; name a directory "
                                   "that you can write to") from error
    yield directory.absolute()


def _remove(directory: str) -> None:
    for _ in range(50):
        shutil.rmtree(directory, ignore_errors=True)
        if not os.path.lexists(directory):
            return
        time.sleep(0.1)  # a thread of what was cut short still wrote there
    click.echo(f"Note: {directory} could not be removed", err=True)


def _settings(overrides: Iterable[str]) -> Settings:
    try:
        settings = Settings.from_mapping({}, overrides)
        contradictions.refuse(settings)
        return settings
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error


def _certificates(certificate: Path | None, key: Path | None) -> Iterator[str]:
    """The setting for --tls-cert and --tls-key."""
    if certificate is None and key is None:
        # Programs that use TLS whenever it is offered would refuse the self-signed one.
        yield from ("smtp.starttls=false", "pop3.stls=false")
        return
    if certificate is None or key is None:
        raise click.UsageError("--tls-cert and --tls-key go together: give both or neither")
    place = f"{certificate.absolute()}:{key.absolute()}"
    try:
        certificate_at(place).load()
    except CertificateProblem as problem:
        raise click.UsageError(str(problem)) from problem
    yield f"tls.certificates={literal([place])}"


def _make_accounts(
    settings: Settings, domains: Iterable[str], accounts: Sequence[NewAccount],
    aliases: Sequence[tuple[Address, list[Address]]],
) -> NewAccount | None:
    """Bring the directory to what the flags say; the demonstration account if there is one."""
    hasher = PasswordHasher(settings.passwords, None)
    domains = [*domains, *(account.address.domain for account in accounts),
               *(address.domain for address, _ in aliases)]
    with SqliteDirectory(settings.accounts.database) as directory, directory.transaction():
        for domain in dict.fromkeys(domains):
            if directory.domain(domain) is None:
                directory.add_domain(domain)
        for address, password in accounts:
            verifier = hasher.hash(check_password(password))
            # For a few accounts SCRAM keys take no time; thousands get them as they log in.
            scram = _scram(hasher, directory, address, password) if len(accounts) <= 100 else None
            if directory.account(address.local_part, address.domain):
                directory.set_password(address, verifier, scram=scram)
            else:
                directory.add_account(address, verifier=verifier, scram=scram)
        if accounts and not directory.administrators():
            directory.set_administrator(accounts[0].address, True)
        demo = None if accounts else _demonstration(directory, hasher, domains)
        for address, targets in aliases:
            try:
                directory.add_alias(address, targets, replace=True)
            except DirectoryError as error:
                raise click.UsageError(
                    f"--alias {address}: {error.problem}; its targets are to be made by --account, "
                    "or by an --alias that stands before it") from error
        return demo


def _scram(hasher: PasswordHasher, directory: SqliteDirectory, address: Address,
           password: str) -> str | None:
    return hasher.derive_scram(check_password(password),
                               scram_salt(directory, f"{address.local_part}@{address.domain}"))


def _demonstration(
    directory: SqliteDirectory, hasher: PasswordHasher, domains: Sequence[str]
) -> NewAccount | None:
    """The account demo, if there are no others, with a password that is kept readable."""
    there = list(itertools.islice(directory.accounts(), 2))
    if len(there) == 1 and there[0].local_part == "demo":
        found = directory.credentials(there[0].name)
        if found is not None and found.secret is not None:
            return NewAccount(Address("demo", there[0].domain), found.secret)
    if there:
        return None
    made = NewAccount(Address("demo", domains[0] if domains else DEMO_DOMAIN),
                      secrets.token_urlsafe(9))
    if not domains and directory.domain(DEMO_DOMAIN) is None:
        directory.add_domain(DEMO_DOMAIN)
    directory.add_account(made.address, verifier=hasher.hash(check_password(made.password)),
                          scram=_scram(hasher, directory, *made), secret=made.password)
    directory.set_administrator(made.address, True)
    return made


# ---- running ------------------------------------------------------------------------------------


def _run(
    settings: Settings, holding: Holding, optional: Sequence[str], signals: StopSignals,
    hints: Callable[[Sequence[Listener]], Iterable[str]],
) -> None:
    """Serve until a signal ends it."""
    from twisted.internet import reactor as installed  # noqa: PLC0415 - it installs one

    reactor: Any = installed
    globalLogBeginner.beginLoggingTo([log.observer(settings.log, log.ByTurns(sys.stderr))],
                                     redirectStandardIO=False)
    problems: list[Failure] = []

    def announce(listeners: Sequence[Listener]) -> None:
        log.pass_on()
        for listener in listeners:
            click.echo(str(listener))
        click.echo("ready")
        for hint in hints(listeners):
            click.echo(hint)

    def give_up(failure: Failure) -> None:
        problems.append(failure)
        reactor.stop()

    service = serve(settings, reactor, optional=optional)
    service.holding = holding
    service.ready.addCallback(announce).addErrback(give_up)
    service.broken.addErrback(give_up)
    signals.serve(reactor, service.hurry)
    for number, act in ((signal.SIGUSR1, log.no_new_log),
                        (signal.SIGUSR2, service.upgrade_by_signal)):
        signal.signal(number, functools.partial(_told, reactor, act))
    service.privilegedStartService()
    service.startService()
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    reactor.run()
    if problems:
        problems[0].raiseException()


def _told(reactor: Any, act: Callable[[], object], *_: object) -> None:
    reactor.callFromThread(act)


def _hints(listeners: Sequence[Listener], account: NewAccount | None) -> Iterator[str]:
    """How to send a message, fetch it, see the pages, and set up a mail program."""
    where = {listener.kind.name: listener.address.replace("0.0.0.0", "127.0.0.1")
             .replace("[::]", "[::1]") for listener in listeners
             if not listener.address.startswith("/")}
    name = str(account.address) if account else "NAME@DOMAIN"
    password = account.password if account else "PASSWORD"
    yield ""
    if "smtp" in where:
        message = shlex.quote(r"Subject: hello\r\n\r\nIt works.\r\n")
        yield (f"send:   printf {message} | curl -sS smtp://{where['smtp']} "
               f"--mail-from you@example.org --mail-rcpt {shlex.quote(name)} -T -")
    if "pop3" in where:
        host, _, port = where["pop3"].rpartition(":")
        program = (f"import poplib; p = poplib.POP3({host.strip('[]')!r}, {port}); "
                   f"p.user({name!r}); p.pass_({password!r}); "
                   "[print(line.decode(errors='replace')) for n in range(p.stat()[0]) "
                   "for line in p.retr(n + 1)[1]]; p.quit()")
        quoted = shlex.quote(program) if set('"$`\\!') & set(program) else f'"{program}"'
        yield f"fetch:  python3 -c {quoted}"
    if "console" in where:
        yield f"pages:  http://{where['console']}/ (log in as {name} with {password})"
    ways = []
    if "pop3" in where:
        ways.append(f"incoming POP3 at {where['pop3']}, no encryption, user {name}, password "
                    f"{password}")
    if "submission" in where:
        ways.append(f"outgoing SMTP at {where['submission']}, STARTTLS, the same login")
    if "smtp" in where:
        ways.append(f"outgoing to the accounts here alone: SMTP at {where['smtp']}, no encryption, "
                    "no login")
    yield "mail program: " + "; ".join(ways)
