"""The brakes on guessing passwords: failed logins delay the next ones, then ban who made them.

One :class:`Brakes` serves all listeners of a process.  What it counts lies in
:class:`mailsvc.ledger.Ledger`, so it is one count for SMTP and POP3 and all processes, and survives
restarts.  Every count runs down by itself, one failure in ``forget_seconds``.  Counted are:

* **the address**: an IPv4 address, or an IPv6 /64, which is what one host is given.  After
  ``free_failures`` each login from it waits, twice as long each time; ``ban_failures`` ban it.
* **the network around it**: an IPv4 /24 or IPv6 /48.  ``network_ban_failures`` from several
  addresses ban the whole, but for addresses from which somebody logged in before.
* **the account**, whether it exists or not: when more than ``account_free_failures`` came from
  networks that it never logged in from, only logins from such networks wait.  Where its owner is
  known nothing changes, and nobody can lock an owner out.

A ban of our own making lasts ``ban_seconds``, and twice as long each further time.  ``mailsvc ban``
lists, makes and lifts bans; running processes obey within a second.

A login that succeeds makes its address known (for ``remember_days``), and takes back the failures
of the same name from the same address, but none of other names: who guesses cannot wash himself
clean by logging in to an account of his own.

**Promises.**  :meth:`Brakes.admit` answers from memory within microseconds; only in a network that
is banned as a whole it looks up the address, once a minute.  A login costs at most one or two
indexed queries.  Memory and file stay bounded, however many addresses and names are tried.  When
the file cannot be used nobody is refused for that.

**Limits.**  Guesses that are under way at once are not counted before they fail: what limits these
is ``connections_per_address``.  A process sees the failures counted by another up to two seconds
late.  A client on a Unix socket has no address and is not counted.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from mailsvc.bans import ADDRESS, MANUAL, NETWORK, Address, Ban, Network
from mailsvc.errors import EnhancedStatus, MailFailure, TemporaryFailure
from mailsvc.ledger import Ledger
from mailsvc.names import fold_local_part
from mailsvc.networks import address_of, network_of
from mailsvc.settings import at_least, networks, setting


@dataclass(frozen=True, slots=True)
class BrakeSettings:
    """``[brakes]``."""

    exempt_networks: list[str] = setting(
        [], "Networks whose failed logins are not counted, such as that of a webmail server: "
        "people behind it would be banned together.  None by default, not even loopback.",
        check=networks)
    free_failures: int = setting(
        5, "Failed logins of one address (IPv6: one /64) before its next ones wait.",
        check=at_least(1))
    delay_seconds: float = setting(
        0.5, "The first wait, doubled with each further failure.", unit="seconds",
        check=at_least(0))
    most_delay_seconds: float = setting(
        8, "The longest wait.", unit="seconds", check=at_least(0))
    ban_failures: int = setting(
        20, "Failed logins of one address that ban it; 0 for never.", check=at_least(0))
    network_ban_failures: int = setting(
        100, "Failed logins from one IPv4 /24 or IPv6 /48 that ban it, but for addresses from "
        "which somebody logged in before; 0 for never.", check=at_least(0))
    account_free_failures: int = setting(
        20, "Failed logins to one account, from networks it never logged in from, before further "
        "logins from such networks wait.", check=at_least(1))
    forget_seconds: float = setting(
        600, "Time after which one failed login is forgotten.", unit="seconds", check=at_least(1))
    ban_seconds: float = setting(
        600, "How long the first ban lasts, doubled with each further one.", unit="seconds",
        check=at_least(1))
    most_ban_seconds: float = setting(
        604_800, "The longest ban, and how long after a ban the next one is a further one.",
        unit="seconds", check=at_least(1))
    remember_days: float = setting(
        90, "How long an address stays known after a login.", unit="days", check=at_least(1))
    counters: int = setting(
        100_000, "Most counts that are kept in the file; beyond them the oldest go.",
        check=at_least(1000))


# ---- a line of log for fail2ban -----------------------------------------------------------------

#: The message of a failed login; etc/fail2ban/filter.d/mailsvc.conf reads it.  Do not change it.
LOGIN_FAILED = ("{connection} login failed user={user} client={client} protocol={protocol} "
                "reason={reason}")
#: What a name is cut to, here and in the file.
_NAME_CHARACTERS = 255


def log_failed_login(log: Logger, *, connection: str, user: str, client: str, protocol: str,
                     reason: str) -> None:
    """Log a login that failed, so that a program can tell by whom.

    In *user*, letters, digits and ``@.+-_`` stand for themselves and anything else for its octets
    as %XX: so no name can say what another field is.  *client* becomes "-" on a Unix socket.

    :param reason: ours; may hold spaces.
    """
    written = "".join(
        character if character.isalnum() or character in "@.+-_"
        else "".join(f"%{octet:02X}" for octet in character.encode("utf-8", "surrogatepass"))
        for character in user[:_NAME_CHARACTERS])
    log.warn(LOGIN_FAILED, connection=connection, user=written, client=client or "-",
             protocol=protocol, reason=reason)


# ---- the brakes ---------------------------------------------------------------------------------

_BANNED = "Too many failed logins from your address or network; try again later"
_BARRED = "Connections from your network are not taken now"


@dataclass(frozen=True, slots=True)
class Source:
    """Where a client is.

    :ivar host: the network that is one host's; its text is the key of its count.
    :ivar around: the network around it; likewise.
    :ivar exempt: whether nothing is counted.
    """

    address: Address
    host: Network
    around: Network
    exempt: bool


def _account_key(name: str) -> str:
    return f"account {name}"


def _pair_key(name: str, host: str) -> str:
    return f"{host} {name}"


def _folded(name: str | bytes) -> str:
    """The name that spellings of a login name share, of bounded length and fit for SQLite."""
    if isinstance(name, bytes):
        name = name.decode("utf-8", "replace")
    name = fold_local_part(name[:_NAME_CHARACTERS])
    return name.encode("utf-8", "replace").decode()


class Brakes:
    """See the module.

    A *client* is an IP address as text, or "" on a Unix socket; a *name* is what somebody wants to
    log in as, with its domain.

    :param path: the state file.
    :param reactor: for its clock and its threads.
    :param in_thread: calls a function in a thread, as ``deferToThread`` does; for tests.
    """

    log = Logger()

    def __init__(self, settings: BrakeSettings, path: Path, reactor: Any,
                 in_thread: Callable[..., Deferred[Any]] | None = None) -> None:
        self._settings = settings
        self._clock = reactor
        self._exempt = [network_of(network) for network in settings.exempt_networks]
        self._ledger = Ledger(
            path, reactor, in_thread=in_thread, forget_seconds=settings.forget_seconds,
            ban_memory=settings.most_ban_seconds, known_memory=86_400 * settings.remember_days,
            most_counts=settings.counters)
        # A connection asks about its address several times.
        self._locate = functools.lru_cache(maxsize=4096)(self._source)

    def start(self) -> None:
        """Open the file and begin to follow it.  Raises :class:`DirectoryError`."""
        self._ledger.start()

    def stop(self) -> Deferred[None]:
        """Write what is left and let go of the file."""
        return self._ledger.stop()

    @property
    def bans(self) -> int:
        """How many networks are banned now."""
        return self._ledger.bans.active(self._clock.seconds())

    def admit(self, client: str) -> MailFailure | None:
        """Why *client* may not connect, or log in; None when it may."""
        source = self._locate(client)
        if source is None:
            return None
        for ban in self._ledger.bans.covering(source.address, self._clock.seconds()):
            # New each time: one that is raised again keeps every frame it went through.
            if ban.origin == MANUAL:
                return TemporaryFailure(_BARRED, EnhancedStatus(4, 7, 0))
            spared = source.exempt or (
                ban.origin == NETWORK and self._ledger.knows(str(source.host)))
            if not spared:
                return TemporaryFailure(_BANNED, EnhancedStatus(4, 7, 0))
        return None

    async def permit(self, client: str, name: str | bytes) -> None:
        """Before a login is checked: wait as long as it must.

        :raises TemporaryFailure: *client* is banned, perhaps since a moment ago; the connection
            should end.
        """
        refusal = self.admit(client)
        seconds = self.delay(client, name) if refusal is None else 0
        if seconds:
            await deferLater(self._clock, seconds)
            refusal = self.admit(client)
        if refusal is not None:
            raise refusal

    def delay(self, client: str, name: str | bytes) -> float:
        """How many seconds a login as *name* from *client* must wait before it is checked."""
        source = self._locate(client)
        if source is None or source.exempt:
            return 0.0
        settings, name = self._settings, _folded(name)
        host, account = self._ledger.levels(str(source.host), _account_key(name))
        seconds = self._wait(host - settings.free_failures)
        strange = self._wait(account - settings.account_free_failures)
        if strange > seconds and not self._ledger.knows_near(name, str(source.around)):
            return strange
        return seconds

    def failed(self, client: str, name: str | bytes) -> None:
        """A login as *name* from *client* had the wrong password, or there is no such account."""
        source = self._locate(client)
        if source is None or source.exempt:
            return
        settings, ledger, name = self._settings, self._ledger, _folded(name)
        host, around = str(source.host), str(source.around)
        keys = [host, around, _pair_key(name, host)]
        if not ledger.knows_near(name, around):
            keys.append(_account_key(name))
        from_host, from_around, *_ = (level + 1 for level in ledger.levels(*keys))
        for key in keys:
            ledger.count(key, 1)
        # Half a failure less: some of it is forgotten in the time that the failures take.
        if settings.ban_failures and from_host > settings.ban_failures - 0.5:
            self._ban(source.host, ADDRESS, from_host)
            ledger.count(host, -from_host)
            # It is dealt with, and shall not get its neighbours banned, however often it returns.
            # Yet something stays: they are, if one after the other is used.
            ledger.count(around, -0.75 * from_host)
        elif settings.network_ban_failures and from_around > settings.network_ban_failures - 0.5:
            self._ban(source.around, NETWORK, from_around)
            ledger.count(around, -from_around)

    def succeeded(self, client: str, name: str | bytes) -> None:
        """Somebody logged in as *name* from *client*."""
        source = self._locate(client)
        if source is None or source.exempt:
            return
        ledger, name = self._ledger, _folded(name)
        host, around = str(source.host), str(source.around)
        keys = _pair_key(name, host), host, around
        forgiven = ledger.levels(*keys)[0]
        if forgiven:
            for key in keys:
                ledger.count(key, -forgiven)
        ledger.met(name, host, around)

    def _source(self, client: str) -> Source | None:
        try:
            address = address_of(client)
        except ValueError:
            return None
        host, around = (32, 24) if address.version == 4 else (64, 48)
        return Source(address, ipaddress.ip_network((address, host), strict=False),
                      ipaddress.ip_network((address, around), strict=False),
                      any(address in network for network in self._exempt))

    def _wait(self, excess: float) -> float:
        """How long to wait for a count that is *excess* above what is free."""
        settings = self._settings
        if excess <= -0.5:
            return 0.0
        return min(settings.delay_seconds * 2.0 ** min(round(excess), 64),
                   settings.most_delay_seconds)

    def _ban(self, network: Network, origin: str, failures: float) -> None:
        settings, now = self._settings, self._clock.seconds()
        last = self._ledger.bans.known(network)
        if last is not None and last.until > now:
            return
        times = 1
        if last is not None and now < last.until + settings.most_ban_seconds:
            times = last.times + 1
        seconds = min(settings.ban_seconds * 2.0 ** min(times - 1, 64), settings.most_ban_seconds)
        self._ledger.ban(Ban(network, now, now + seconds, times, origin,
                             f"{failures:.0f} failed logins"))
        self.log.warn("banned network={network} seconds={seconds:g} times={times}: "
                      "{failures:.0f} failed logins", event="login.abuse",
                      network=str(network), seconds=seconds, times=times, failures=round(failures))
