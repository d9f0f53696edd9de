"""One request as what answers it sees it: who asks, what for, and what may be answered."""

from __future__ import annotations

import urllib.parse
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.interfaces import IConsumer

from mailsvc.api.problems import Problem
from mailsvc.console.call import Backend
from mailsvc.mail import Account, Address

#: Below what everything is.
ROOT = "/api/v1"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks.

    :ivar account: the account that is logged in; None for the machine's own administrator, who has
        come by the Unix socket.
    :ivar password: what it showed, or None if that was no password.
    :ivar client: the other end's IP address, or "" on a Unix socket.
    """

    account: Account | None
    administrator: bool
    client: str
    password: bytes | None = field(default=None, repr=False)

    @property
    def local(self) -> bool:
        """Whether it is root, or the user who runs the service."""
        return self.account is None

    @property
    def name(self) -> str:
        """For the log."""
        return self.account.name if self.account is not None else "(local)"

    def is_account(self, name: str) -> bool:
        """Whether that name of an account is its own."""
        return self.account is not None and name == self.account.name


@dataclass(slots=True)
class Call:
    """One request.

    :ivar words: what stood in the path where the route has names.
    :ivar query: what stood behind "?", checked.
    :ivar value: the body, checked; None without.
    :ivar known: the entity tags that the client has (If-None-Match).
    """

    backend: Backend
    caller: Caller
    path: str
    words: dict[str, str]
    query: dict[str, Any]
    value: Any = None
    known: Sequence[str] = ()

    async def account(self) -> Account:
        """The account that the path names; raises Problem."""
        local_part, _, domain = self.words["account"].rpartition("@")
        found = self.backend.directory.account(local_part, domain)
        if found is None:
            raise Problem(404, "There is no such account.")
        return found


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered.

    :ivar value: as JSON; unless there is nothing (204), or *write* writes something else.
    :ivar type: its media type, then.
    :ivar length: of how many octets.
    """

    value: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    write: Callable[[IConsumer], Awaitable[None]] | None = None
    type: str = "application/json"
    length: int = 0


#: Done, and there is nothing to say.
NOTHING = Answer(status=204)


def address(account: Account) -> Address:
    """Its address."""
    return Address(account.local_part, account.domain)


def segment(text: str) -> str:
    """*text* as a segment of a path."""
    return urllib.parse.quote(text, safe="@")


def part(call: Call, everything: Sequence[Any], plain: Callable[[Any], Any] = lambda each: each
         ) -> Answer:
    """The part of a list that the query asks for."""
    offset, limit = call.query["offset"], call.query["limit"]
    return paged(call, [plain(each) for each in everything[offset:offset + limit]],
                 len(everything))


def paged(call: Call, items: Sequence[Any], total: int) -> Answer:
    """*items* are the part of a list that the query asks for."""
    query = call.query
    following = query["offset"] + len(items)
    next = None
    if items and following < total:
        next = f"{ROOT}{call.path}?{urllib.parse.urlencode({**query, 'offset': following})}"
    return Answer({"items": list(items), "total": total, "next": next})
