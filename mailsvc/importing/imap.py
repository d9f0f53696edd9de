"""Messages from folders of an IMAP server (RFC 9051, RFC 3501), by way of Python's imaplib.

Nothing is changed there: folders are opened read-only, texts are read with BODY.PEEK.  The date of
a message is its INTERNALDATE, flags stay, and what is flagged \\Deleted is left out.  Its key is
UIDVALIDITY and UID, which are good for ever (RFC 9051 §2.3.1.1) as long as the server does not
start anew with another UIDVALIDITY; then all is offered as new.
"""

from __future__ import annotations

import base64
import calendar
import imaplib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from mailsvc.importing.source import Offer, SourceFailure

Result = TypeVar("Result")

#: What is asked for at once: so many messages, while they have no more octets.
_AT_ONCE = 50
_OCTETS = 1024 * 1024

_UID = re.compile(rb"\bUID (\d+)")
_SIZE = re.compile(rb"\bRFC822\.SIZE (\d+)")
_FLAGS_FIELD = re.compile(rb"\bFLAGS \(([^)]*)\)")
_DATE = re.compile(rb'\bINTERNALDATE "( ?\d{1,2}-\w{3}-\d{4} \d\d:\d\d:\d\d [+-]\d{4})"')
_FLAGS = {"\\seen": "S", "\\answered": "R", "\\flagged": "F", "\\draft": "D"}


class IMAP:
    """The *folders* of an account, once *connect* has logged in to it.

    :param name: of user and server.
    :raises SourceFailure: it could not.
    """

    def __init__(self, name: str, connect: Callable[[], imaplib.IMAP4],
                 folders: Sequence[str] = ("INBOX",)) -> None:
        self.name = name
        self.notes: list[str] = []
        self._folders = folders
        self._selected = ""
        self._client = _guarded(connect)

    def offers(self) -> Sequence[Offer]:
        return [offer for folder in self._folders for offer in self._listed(folder)]

    def fetch(self, offers: Iterable[Offer]) -> Iterator[tuple[Offer, Iterable[bytes] | None]]:
        group: list[Offer] = []
        for offer in offers:
            if group and (len(group) == _AT_ONCE or offer.place[0] != group[0].place[0]
                          or sum(each.octets for each in group) + offer.octets > _OCTETS):
                yield from self._texts(group)
                group = []
            group.append(offer)
        if group:
            yield from self._texts(group)

    def close(self) -> None:
        with suppress(OSError, imaplib.IMAP4.error):
            self._client.logout()

    def _select(self, folder: str) -> None:
        if folder != self._selected:
            self._ask(f"folder {folder}",
                      lambda: self._client.select(_quoted(folder), readonly=True))
            self._selected = folder

    def _listed(self, folder: str) -> Iterator[Offer]:
        self._select(folder)
        validity = self._client.response("UIDVALIDITY")[1][0]
        if not validity:
            raise SourceFailure("the server tells no UIDVALIDITY, so messages could not be known "
                                "again")
        if self._client.response("EXISTS")[1][0] == b"0":
            return
        lines = self._ask("FETCH", lambda: self._client.uid(
            "FETCH", "1:*", "(UID FLAGS INTERNALDATE RFC822.SIZE)"))
        deleted = 0
        for line in lines:
            text = b" ".join(line) if isinstance(line, tuple) else line or b""
            uid, size, flags = _UID.search(text), _SIZE.search(text), _FLAGS_FIELD.search(text)
            if uid is None:
                continue
            named = set((flags[1] if flags else b"").decode("ascii", "replace").lower().split())
            if "\\deleted" in named:
                deleted += 1
                continue
            yield Offer(f"{folder} {validity.decode()} {uid[1].decode()}",
                        int(size[1]) if size else 0, _date(text),
                        "".join(sorted(_FLAGS[flag] for flag in named & set(_FLAGS))),
                        place=(folder, uid[1].decode()))
        if deleted:
            self.notes.append(f"left out: {deleted} messages in {folder} that are flagged as "
                              "deleted")

    def _texts(self, group: list[Offer]) -> Iterator[tuple[Offer, Iterable[bytes] | None]]:
        self._select(group[0].place[0])
        uids = ",".join(offer.place[1] for offer in group)
        parts = self._ask("FETCH", lambda: self._client.uid("FETCH", uids, "(UID BODY.PEEK[])"))
        texts: dict[str, bytes] = {}
        for at, part in enumerate(parts):
            if isinstance(part, tuple):
                # What stands behind the literal comes as the next part.
                behind = parts[at + 1] if at + 1 < len(parts) else b""
                uid = _UID.search(part[0]) or _UID.search(
                    behind if isinstance(behind, bytes) else b"")
                if uid is not None:
                    texts[uid[1].decode()] = part[1]
        for offer in group:
            text = texts.pop(offer.place[1], None)
            yield offer, None if text is None else [text]

    def _ask(self, what: str, ask: Callable[[], tuple[str, list[Any]]]) -> list[Any]:
        answer, found = _guarded(ask)
        if answer != "OK":
            text = b" ".join(part for part in found if isinstance(part, bytes))
            raise SourceFailure(f"{what}: the server says {text.decode('ascii', 'replace')!r}")
        return found


def _guarded(act: Callable[[], Result]) -> Result:
    try:
        return act()
    except imaplib.IMAP4.error as error:
        raise SourceFailure(str(error)) from None
    except OSError as error:
        raise SourceFailure(f"the connection failed: {error}") from None
    except UnicodeError as error:
        # Python's look-up, of a name with labels that are empty or too long.
        raise SourceFailure(f"that is no name of a host: {error}") from None


def _quoted(folder: str) -> str:
    """*folder* as a quoted string, in modified UTF-7 (RFC 3501 §5.1.3)."""
    def shifted(match: re.Match[str]) -> str:
        code = base64.b64encode(match[0].encode("utf-16-be"), b"+,").rstrip(b"=")
        return f"&{code.decode()}-"

    folder = re.sub(r"[^\x20-\x7e]+", shifted, folder.replace("&", "&-"))
    escaped = folder.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _date(text: bytes) -> float | None:
    found = _DATE.search(text)
    if found is None:
        return None
    # Not imaplib.Internaldate2tuple: it goes by way of the local time zone.
    try:
        stamp, zone = found[1].decode().rsplit(" ", 1)
        when = calendar.timegm(time.strptime(stamp.strip(), "%d-%b-%Y %H:%M:%S"))
    except ValueError:
        return None
    return when - (1 if zone[0] == "+" else -1) * (int(zone[1:3]) * 3600 + int(zone[3:]) * 60)
