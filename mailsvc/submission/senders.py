"""Who submits mail, and which addresses it may send as (RFC 6409 §6.1).

An account owns its own address and every address whose mail comes to it: subaddresses, aliases by
whatever way, the unknown names of a domain whose catch-all it is.  So an address may have several
owners, and what may be used follows from :mod:`mailsvc.routing` alone.  It does not own

- an address that has moved (:attr:`mailsvc.mail.Alias.moved`), its own name included;
- an address of a domain that is not served here;
- a subaddress of its own when an alias takes its mail: that goes where the alias leads.

A client that is trusted without a login, by its network, has no account whose addresses could be
told apart: it may send as every address of every domain served here, and as no other.

A system user, who is known on a Unix socket, owns its name at this host and at the default domain,
and what ``submission.local_senders`` adds.  Root and the user that runs the service may send as
anybody, and so may whom that table gives ``*``: programs that pass on others' mail have to.

The null reverse-path is everybody's: receipts (RFC 8098 §2.1) are submitted with it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from mailsvc.errors import EnhancedStatus, MailboxMoved, PermanentFailure, UnknownMailbox
from mailsvc.mail import NULL_PATH, Account, Address
from mailsvc.names import fold_domain, fold_local_part, parse_address
from mailsvc.routing import Router


class SenderRefused(PermanentFailure):
    """A submitter may not use an address; to be answered with 550."""

    default = EnhancedStatus(5, 7, 1)


@dataclass(frozen=True, slots=True)
class Submitter:
    """Whoever submits a message, and as whom it may.

    :ivar name: what the log calls it, and what it has sent is counted under.
    :ivar address: its own address, which From names where nothing else says.
    :ivar owns: whether it may send as an address; raises TemporaryFailure when that cannot be told.
    :ivar title: what a refusal calls it.
    :ivar remedy: what it may use instead.
    :ivar user: the system user that it is, or empty.
    """

    name: str
    address: Address
    owns: Callable[[Address], bool]
    title: str
    remedy: str
    user: str = ""

    def require(self, address: Address) -> None:
        """Refuse *address* as a sender unless it is one's own.

        :raises SenderRefused: naming what may be used instead.
        """
        if not self.owns(address):
            raise self.refusal(address)

    def refusal(self, *addresses: Address) -> SenderRefused:
        """Why one may send as none of *addresses*."""
        named = " or ".join(f"<{address}>" for address in addresses)
        return SenderRefused(f"{self.title} may not send as {named}; use {self.remedy}")


def login(router: Router, account: Account) -> Submitter:
    """Who logged in as *account*."""
    own = Address(account.local_part, account.domain)
    return Submitter(
        account.name, own, lambda address: owns(router, account, address), "This login",
        f"<{own}> or another address that leads to it")


def client(router: Router, ip: str, hostname: str) -> Submitter:
    """A client without a login, at the address *ip* of a trusted network."""
    return Submitter(
        f"client:{ip}", Address("postmaster", hostname),
        lambda address: address == NULL_PATH or router.serves(address.domain), "This client",
        "an address of a domain that is served here")


def system_user(router: Router, name: str, hostname: str, addresses: Collection[str], *,
                anybody: bool) -> Submitter:
    """The user *name* of this machine.

    :param addresses: as what else it may send; ``*`` for anything.
    :param anybody: whether it may send as anybody, whatever *addresses* says.
    """
    own = Address(name, hostname)
    anybody = anybody or "*" in addresses
    allowed = {_folded(parse_address(each)) for each in addresses if each != "*"}

    def may(address: Address) -> bool:
        return (anybody or address == NULL_PATH or _folded(address) in allowed or (
            fold_local_part(address.local_part) == fold_local_part(name)
            and fold_domain(address.domain) in (fold_domain(hostname), router.default_domain())))

    return Submitter(
        f"local:{name}", own, may, f"User {name}",
        f"<{own}>, or add the address to submission.local_senders", name)


def _folded(address: Address) -> tuple[str, str]:
    return fold_local_part(address.local_part), fold_domain(address.domain)


def owns(router: Router, account: Account, address: Address) -> bool:
    """Whether *account* may send as *address*.

    :raises TemporaryFailure: the directory cannot be read.
    """
    if address == NULL_PATH:
        return True
    try:
        # By name: the rest of an account may have changed since the login.
        if account.name in [found.name for found in router.route(address)]:
            return True
    except (MailboxMoved, UnknownMailbox):
        return False
    except PermanentFailure:
        pass
    # An alias of the account's own name may lead its mail elsewhere.
    return (fold_domain(address.domain) == account.domain
            and fold_local_part(address.local_part) == fold_local_part(account.local_part))
