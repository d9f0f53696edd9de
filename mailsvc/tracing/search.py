"""Stories found by what people know of a message: an id, a Message-ID, an address.

:class:`OwnReader` reads what one account may see of it all: what it sent, what came to it, and who
logged in as it.  Of a message that came to it, that is how it came in, and what became of its own
copy; neither the other recipients (RFC 5321 §7.2 on Bcc) nor what befell their copies.  Of a
message that it sent, it is what became of each recipient that it named, but not where an alias led
from there, nor what the recipients did with it.  What may not be seen is taken away before anything
is looked for, so that no search tells of it either.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from mailsvc.networks import address_of
from mailsvc.tracing.archive import Reader
from mailsvc.tracing.events import Entry, folded, is_id
from mailsvc.tracing.story import Story, story_of, told_of

#: How many events of an account are looked at, the newest first, and how many of one message.
_LOOKED_AT, _OF_MESSAGE = 10_000, 2_000


def stories(reader: Reader, what: str, since: float = 0.0, most: int = 10) -> list[Story]:
    """What is known of *what*, the newest message or connection first, *most* of them.

    :param what: an id of either; a Message-ID; an address of a sender or recipient, or a client's.
    """
    if is_id(what.upper()):
        ids = [what.upper()]
    else:
        found = (told_of(reader.newest(name, since), most) for name in _names(what.strip()))
        ids = next(filter(None, found), [])
    return [story for id in ids if (story := story_of(reader, id)) is not None]


def _names(what: str) -> Iterable[str]:
    """What *what* may mean, the likeliest first."""
    if re.fullmatch(r"<[^<>]*>", what):
        yield what
        what = what[1:-1]
    with suppress(ValueError):
        yield str(address_of(what.strip("[]").removeprefix("IPv6:")))
        return
    yield folded(what)
    yield f"<{what}>"


class OwnReader(Reader):
    """What *account*, a name as :attr:`mailsvc.mail.Account.name`, may see of *directory*."""

    def __init__(self, directory: Path, account: str) -> None:
        super().__init__(directory)
        self._account = folded(account)
        self._name = account
        self._submissions: dict[str, frozenset[str] | None] = {}

    def newest(self, name: str, since: float = 0.0) -> Iterator[Entry]:
        # What names a message is about few events.  An address may be about millions of others':
        # there the account's own are gone through.
        by_id = is_id(name.removeprefix("@"))
        found = super().newest(name if by_id else self._account, since)
        for entry in islice(found, _OF_MESSAGE if by_id else _LOOKED_AT):
            seen = self._seen(entry)
            if seen is not None and seen.is_found_by(name):
                yield seen

    def _seen(self, entry: Entry) -> Entry | None:
        """*entry* as the account may see it; None when it may not."""
        fields = entry.fields
        id, about = fields.get("id"), fields.get("about")
        if about:
            return entry if self._named(about) is not None else None
        if not id:
            return entry if self._is_own(fields.get("user")) else None
        recipient, accounts = fields.get("recipient"), fields.get("accounts", [])
        named = self._named(id)
        if named is not None:
            known = named | {self._account}
            if recipient is not None and folded(recipient) not in known:
                return None
            return _with(entry, accounts=_among(accounts, known),
                         queued=_among(fields.get("queued", []), known))
        if any(map(self._is_own, accounts)):
            return _with(entry, recipients=[self._name], recipient=self._name,
                         accounts=[self._name], queued=[], user="")
        if self._is_own(fields.get("user")):
            return entry
        return _with(entry, user="") if self._is_own(recipient) else None

    def _is_own(self, address: Any) -> bool:
        return isinstance(address, str) and folded(address) == self._account

    def _named(self, id: str) -> frozenset[str] | None:
        """The recipients that the account named of message *id*; None if it did not send it."""
        if id not in self._submissions:
            named: set[str] | None = None
            for entry in islice(super().newest(id), _OF_MESSAGE):
                fields = entry.fields
                if (entry.kind.namespace == "mailsvc.smtp" and fields.get("id") == id
                        and self._is_own(fields.get("user"))):
                    named = (named or set()) | set(map(folded, [
                        *fields.get("recipients", []),
                        *filter(None, [fields.get("recipient")])]))
            self._submissions[id] = None if named is None else frozenset(named)
        return self._submissions[id]


def _among(names: Iterable[str], known: frozenset[str]) -> list[str]:
    return [name for name in names if folded(name) in known]


def _with(entry: Entry, **instead: Any) -> Entry:
    """*entry*, with other values of those fields that it has."""
    fields = entry.kind.fields
    return entry._replace(values=[instead.get(field, value)
                                  for field, value in zip(fields, entry.values, strict=True)])
