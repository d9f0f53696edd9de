"""Which addresses a login may send as (RFC 6409 §6.1).

An account owns its own address and every address whose mail comes to it: subaddresses, aliases by
whatever way, the unknown names of a domain whose catch-all it is.  So an address may have several
owners, and what may be used follows from :mod:`mailsvc.routing` alone.  It does not own

- an address that has moved (:attr:`mailsvc.directory.Alias.moved`), its own name included;
- an address of a domain that is not served here;
- a subaddress of its own when an alias takes its mail: that goes where the alias leads.

The null reverse-path is everybody's: receipts (RFC 8098 §2.1) are submitted with it.
"""

from __future__ import annotations

from mailsvc.errors import EnhancedStatus, MailboxMoved, PermanentFailure, UnknownMailbox
from mailsvc.mail import NULL_PATH, Account, Address
from mailsvc.names import fold_domain, fold_local_part
from mailsvc.routing import Router


class SenderRefused(PermanentFailure):
    """A login may not use an address; to be answered with 550."""

    default = EnhancedStatus(5, 7, 1)


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


def require(router: Router, account: Account, address: Address) -> None:
    """Refuse *address* as a sender of *account* unless it owns it.

    :raises SenderRefused: naming what it may use instead.
    """
    if not owns(router, account, address):
        raise refusal(account, address)


def refusal(account: Account, *addresses: Address) -> SenderRefused:
    """Why *account* may send as none of *addresses*."""
    own = Address(account.local_part, account.domain)
    named = " or ".join(f"<{address}>" for address in addresses)
    return SenderRefused(
        f"This login may not send as {named}; use <{own}> or another address that leads to it")
