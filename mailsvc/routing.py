"""Where a forward-path leads: pure logic over :class:`mailsvc.interfaces.IDirectory`.

A mailbox of a domain that is ours is, in this order,

1. the alias of exactly that name, else the account of that name;
2. with a subaddress (``user+tag``), what the mailbox before a separator is by 1, the longest first;
3. ``postmaster``, ``abuse`` and ``mailer-daemon``, which are never refused (RFC 5321 §4.5.1, RFC
   2142, RFC 3464 §2): the domain's own ``postmaster``, else the setting ``postmaster``, else the
   oldest account of the domain, else the oldest of any domain; before there is any account, a
   temporary failure;
4. the domain's catch-all;
5. unknown.

The targets of an alias are found the same way, except that one of the alias's own name is the
account of that name.  Each account is named once.  A member that leads nowhere is left out so long
as another leads somewhere.  Aliases that come back to themselves, by whatever way, or that lead
deeper or wider than the limits, are a :class:`~mailsvc.errors.RoutingLoop`.

An account that only sends gets no mail: what leads to it alone is refused with 5.2.1 (RFC 3463
§3.3, mailbox disabled), which tells a sender that the address is right and no typing error.

A domain that is not ours is relayed to for those who may send through us, for everybody when it is
one of ``relay_domains`` or ``atrn_domains``, and by our own aliases, whoever sends: their remote
targets are :class:`~mailsvc.mail.Remote`.  An address of SRS (:mod:`mailsvc.srs`) at a domain of
ours leads back to the sender whose mail we forwarded.  Everybody else's mail to other hosts is
refused.

``<postmaster>`` without a domain, and the names of 3 at an address literal of this host (RFC 5321
§4.1.3, setting ``literals``) or at its name, are those of the default domain; no other mailbox has
either for its domain.  ``a%b@ours`` and ``b!a@ours`` are local-parts like any other and never
rewritten (RFC 5321 §2.3.11, appendix F.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from zope.interface import implementer

from mailsvc.errors import (
    EnhancedStatus,
    MailboxMoved,
    PermanentFailure,
    RelayDenied,
    RoutingLoop,
    TemporaryFailure,
    UnknownMailbox,
)
from mailsvc.interfaces import IDirectory, IRouter
from mailsvc.mail import Account, Address, Alias, Domain, Remote
from mailsvc.names import (
    RESERVED,
    SEPARATORS,
    DirectoryError,
    check_domain,
    fold_domain,
    fold_local_part,
    parse_address,
)
from mailsvc.networks import address_of
from mailsvc.settings import Check, at_least, setting
from mailsvc.srs import SRS


def _separators(value: str) -> str | None:
    return None if SEPARATORS.issuperset(value) else (
        "characters out of " + "".join(sorted(SEPARATORS)))


def _empty_or(check: Callable[[str], object]) -> Check:
    """A setting's check out of one that raises :class:`DirectoryError`."""
    def refusal(value: str) -> str | None:
        try:
            if value:
                check(value)
        except DirectoryError as error:
            return error.remedy.removeprefix("expected ")
        return None
    return refusal


def _ip_addresses(values: list[str]) -> str | None:
    for value in values:
        try:
            address_of(value)
        except ValueError:
            return "IPv4 and IPv6 addresses, without brackets"
    return None


def _domains(values: list[str]) -> str | None:
    try:
        for value in values:
            check_domain(value)
    except DirectoryError:
        return "domains"
    return None


def _turns(table: dict[str, str]) -> str | None:
    for name, domains in table.items():
        try:
            parse_address(name)
        except DirectoryError:
            return f"an account, such as carol@example.org, for each key, not {name!r}"
        if not domains.split() or _domains(domains.split()):
            return f"for {name!r}: domains, with spaces between"
    return None


@dataclass(frozen=True, slots=True)
class RoutingSettings:
    """``[routing]``."""

    default_domain: str = setting(
        "", "The domain of <postmaster> and of login names without one; empty for the host name if "
        "it is one of the domains, else the oldest domain (for logins: the only domain).",
        check=_empty_or(check_domain))
    separators: str = setting(
        "+", "Characters that each part a subaddress's tag from its mailbox, in domains that do "
        "not set their own; empty for no subaddresses.", check=_separators)
    postmaster: str = setting(
        "", "Who gets mail for postmaster and abuse in domains that have no postmaster of their "
        "own; empty for the oldest account.", check=_empty_or(parse_address))
    literals: list[str] = setting(
        ["127.0.0.1", "::1"], "Addresses of this host at which postmaster and abuse can be reached "
        "as in postmaster@[127.0.0.1].", check=_ip_addresses)
    relay_domains: list[str] = setting(
        [], "Domains of other hosts whose mail is taken from anybody and sent on, because this "
        "host is an exchanger of theirs (MX) behind their own.", check=_domains)
    atrn_domains: dict[str, str] = setting(
        {}, "Which accounts may fetch the mail of which other domains over a connection that they "
        "open (ATRN, RFC 2645): an account, and its domains with spaces between.  Mail for these "
        "is taken from anybody, and kept until it is fetched; what is for one of relay_domains as "
        "well is also sent on.", check=_turns)
    alias_depth: int = setting(
        20, "How many aliases may lead one to the next.", check=at_least(1))
    alias_accounts: int = setting(
        1000, "How many accounts one recipient may lead to.", check=at_least(1))


@implementer(IRouter)
class Router:
    """The router of the domains in *directory*.

    It remembers where forward-paths led, for as long as the directory is of one version.

    :param hostname: the service's own name, the default domain if it is one of the domains.
    """

    def __init__(self, directory: IDirectory, hostname: str,
                 settings: RoutingSettings | None = None) -> None:
        self._directory = directory
        self._hostname = hostname
        self._settings = settings = settings or RoutingSettings()
        self._postmaster = parse_address(settings.postmaster) if settings.postmaster else None
        self._literals = {address_of(literal) for literal in settings.literals}
        self._relayed = {check_domain(domain) for domain in settings.relay_domains}
        self._turned = {_key(parse_address(name)): tuple(map(check_domain, domains.split()))
                        for name, domains in settings.atrn_domains.items()}
        fetched = {domain for domains in self._turned.values() for domain in domains}
        #: Whether some account may fetch mail.
        self.fetched = bool(fetched)
        #: The domains whose mail goes nowhere until it is fetched.
        self.kept = frozenset(fetched - self._relayed)
        #: What was found for forward-paths in one version of the directory.
        self._found: dict[tuple[Address, bool], tuple[Account | Remote, ...]] = {}
        self._version: object = None
        #: How senders are rewritten whose mail is forwarded, and found again.
        self.srs = SRS(lambda value: directory.keyed("srs", value))

    def route(self, forward_path: Address, relay: bool = False) -> tuple[Account | Remote, ...]:
        # Asked before anything is looked up: what changes meanwhile makes it another one.
        version = self._directory.version()
        if version != self._version or len(self._found) >= _REMEMBERED:
            self._found.clear()
            self._version = version
        found = self._found.get((forward_path, relay))
        if found is None:
            found = self._route(forward_path, relay)
            # Whether an address of SRS leads anywhere, the day says as well.
            if self.srs.reverse(forward_path.local_part) is None:
                self._found[forward_path, relay] = found
        return found

    def _route(self, forward_path: Address, relay: bool) -> tuple[Account | Remote, ...]:
        try:
            domain = self._domain(forward_path)
        except RelayDenied:
            if relay or self.relays(forward_path.domain):
                return (Remote(forward_path),)
            raise
        # Before a catch-all, which would swallow it; nobody else can have made that hash.
        sender = self.srs.reverse(forward_path.local_part)
        if sender is not None:
            return self.route(sender, relay=True)
        try:
            return tuple(self._accounts(self._mailbox(forward_path.local_part, domain)))
        except PermanentFailure:
            # A postmaster alias that leads nowhere is no reason to refuse mail for postmaster.
            if _is_reserved(forward_path):
                return (self._oldest_account(domain),)
            raise

    def verify(self, name: Address) -> Address:
        """As the interface says.  A name without a domain is one of the default domain."""
        domain = self._domain(name, default=True)
        mailbox = self._mailbox(name.local_part, domain)
        _refuse_moved(mailbox)
        if isinstance(mailbox, Account) and not mailbox.receives:
            raise _disabled()
        same = fold_local_part(mailbox.local_part) == fold_local_part(name.local_part)
        return Address(mailbox.local_part if same else name.local_part, name.domain or domain.name)

    def expand(self, name: Address) -> tuple[Address, ...]:
        """As the interface says: the accounts that an alias leads to in the end."""
        domain = self._domain(name, default=True)
        alias = self._directory.alias(name.local_part, domain.name)
        if alias is None:
            self._mailbox(name.local_part, domain)
            raise UnknownMailbox("That is a user name, not a mailing list")
        return tuple(found.address if isinstance(found, Remote)
                     else Address(found.local_part, found.domain)
                     for found in self._accounts(alias))

    def serves(self, domain: str) -> bool:
        """Whether *domain* is one of ours."""
        return self._directory.domain(domain) is not None

    def relays(self, domain: str) -> bool:
        """Whether mail for *domain*, which is not ours, is taken from anybody."""
        domain = fold_domain(domain)
        return domain in self._relayed or domain in self.kept

    def runs(self, domain: str) -> bool:
        """Whether mail for *domain* is sent on by its exchangers, and may be asked for (ETRN)."""
        return fold_domain(domain) in self._relayed

    def turns(self, account: str) -> tuple[str, ...]:
        """The domains whose mail the account of that name may fetch (ATRN), as they are folded."""
        local_part, _, domain = account.rpartition("@")
        return self._turned.get(_key(Address(local_part, domain)), ())

    def default_domain(self) -> str:
        """The domain of names without one.

        :raises TemporaryFailure: there is no domain yet, or the directory cannot be read.
        """
        return self._default_domain().name

    # --- From a mailbox to accounts --------------------------------------------------------------

    def _accounts(self, mailbox: Account | Alias) -> Iterable[Account | Remote]:
        """What *mailbox* leads to: one account or remote mailbox or more, in the order found."""
        accounts: dict[Account | Remote, None] = {}
        dead_ends: list[PermanentFailure] = []
        self._follow(mailbox, (), set(), accounts, dead_ends)
        if not accounts:
            raise dead_ends[0]
        return accounts

    def _follow(self, mailbox: Account | Alias | Remote, way: tuple[_Key, ...], done: set[_Key],
                accounts: dict[Account | Remote, None], dead_ends: list[PermanentFailure]) -> None:
        if not isinstance(mailbox, Alias):
            if isinstance(mailbox, Account) and not mailbox.receives:
                dead_ends.append(_disabled())
                return
            accounts[mailbox] = None
            if len(accounts) > self._settings.alias_accounts:
                raise RoutingLoop("The alias leads to too many mailboxes")
            return
        own = _key(mailbox)
        if own in way:
            raise RoutingLoop("The alias leads back to itself")
        if len(way) >= self._settings.alias_depth:
            raise RoutingLoop("The alias leads over too many others")
        if own in done:  # reached before, by another way
            return
        done.add(own)
        for target in mailbox.targets:
            try:
                _refuse_moved(mailbox)
                found = self._target(target, own, Address(mailbox.local_part, mailbox.domain))
            except (UnknownMailbox, MailboxMoved, RelayDenied) as failure:
                dead_ends.append(failure)
            else:
                self._follow(found, (*way, own), done, accounts, dead_ends)

    def _target(self, target: Address, alias: _Key, name: Address) -> Account | Alias | Remote:
        if _key(target) != alias:
            if target.domain and self._directory.domain(target.domain) is None:
                return Remote(target, name)
            return self._mailbox(target.local_part, self._domain(target))
        account = self._directory.account(*alias)
        if account is None:
            raise UnknownMailbox("No such mailbox here")
        return account

    # --- From an address to its mailbox ----------------------------------------------------------

    def _domain(self, address: Address, *, default: bool = False) -> Domain:
        """The domain that *address* is looked up in.

        :param default: whether any local-part without a domain is one of the default domain, and
            not only the reserved ones.
        """
        name = address.domain
        if name and not name.startswith("["):
            domain = self._directory.domain(name)
            if domain is not None:
                return domain
            # Reports come from there, and who looks at a greeting sees no other name.
            if (_is_reserved(address) and fold_domain(name) == fold_domain(self._hostname)
                    and not self.relays(name)):
                return self._default_domain()
            raise RelayDenied("Relaying denied: the domain is not served here")
        if name and not self._is_own(name):
            raise RelayDenied("Relaying denied: that is not an address of this host")
        if not _is_reserved(address) and (name or not default):
            raise UnknownMailbox("No such mailbox here; give its domain")
        return self._default_domain()

    def _is_own(self, literal: str) -> bool:
        inside = literal[1:-1]
        if inside[:5].upper() == "IPV6:":
            inside = inside[5:]
        try:
            return address_of(inside) in self._literals
        except ValueError:
            return False

    def _default_domain(self) -> Domain:
        for name in (self._settings.default_domain, self._hostname):
            domain = self._directory.domain(name)
            if domain is not None:
                return domain
        for domain in self._directory.domains(1):
            return domain
        raise TemporaryFailure("No domain is set up here yet", NOT_SET_UP)

    def _mailbox(self, local_part: str, domain: Domain) -> Account | Alias:
        """The account or alias of that name; a catch-all is an alias of the name asked for."""
        mailbox = self._named(local_part, domain)
        if mailbox is not None:
            return mailbox
        if fold_local_part(local_part) in RESERVED:
            return (self._named("postmaster", domain) or self._configured_postmaster()
                    or self._oldest_account(domain))
        if domain.catch_all is not None:
            return Alias(local_part, domain.name, (domain.catch_all,))
        raise UnknownMailbox("No such mailbox here")

    def _named(self, local_part: str, domain: Domain) -> Account | Alias | None:
        """The mailbox called so, with its subaddress or without."""
        separators = domain.separators
        if separators is None:
            separators = self._settings.separators
        if len(local_part) > 64:  # RFC 5321 §4.5.3.1.1; there is a look-up for each separator
            return None
        for end in range(len(local_part), 0, -1):
            if end == len(local_part) or local_part[end] in separators:
                name = local_part[:end]
                mailbox = (self._directory.alias(name, domain.name)
                           or self._directory.account(name, domain.name))
                if mailbox is not None:
                    return mailbox
        return None

    def _configured_postmaster(self) -> Account | Alias | None:
        if self._postmaster is None:
            return None
        domain = self._directory.domain(self._postmaster.domain)
        return domain and self._named(self._postmaster.local_part, domain)

    def _oldest_account(self, domain: Domain) -> Account:
        for candidate in (domain, *self._directory.domains()):
            account = self._directory.oldest_account(candidate.name)
            if account is not None:
                return account
        raise TemporaryFailure("No account is set up here yet", NOT_SET_UP)


#: Of how many forward-paths is remembered where they lead.
_REMEMBERED = 4096

#: RFC 3463 §3.4: system incorrectly configured.
NOT_SET_UP = EnhancedStatus(4, 3, 5)

#: RFC 3463 §3.3: mailbox disabled, not accepting messages.
MAILBOX_DISABLED = EnhancedStatus(5, 2, 1)

_Key = tuple[str, str]


def _key(name: Address | Alias) -> _Key:
    return fold_local_part(name.local_part), fold_domain(name.domain)


def _is_reserved(address: Address) -> bool:
    return fold_local_part(address.local_part) in RESERVED


def _disabled() -> PermanentFailure:
    return PermanentFailure("The mailbox only sends; it takes no mail", MAILBOX_DISABLED)


def _refuse_moved(mailbox: Account | Alias) -> None:
    if isinstance(mailbox, Alias) and mailbox.moved:
        raise MailboxMoved("The mailbox has moved", str(mailbox.targets[0]))
