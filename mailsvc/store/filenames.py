"""File names in a maildir.

::

    1763683200.0DJ7W4K2M1Q00F3A.mail.example.org,S=4096,W=4096:2,S
    |---------------- unique part -------------|
    |---------------------- base name ----------------------| info

The *unique part* we give is seconds since 1970, the message's id and the host; no two messages
share one.  ``,S=`` is the size of the file and ``,W=`` the size with every line end counted as
CRLF, as Dovecot and Courier write them.  Everything behind ":" is *info*: flags, changed by whoever
reads the mail.  The base name never changes, so what a message is called for good (its POP3
unique-id) is made from it alone.

A message that comes with a unique-id of its own, from another server or out of a backup, gets a
name like any other, for no name is ever used twice, and the field ``,UIDL=`` with that unique-id::

    1763683200.0DJ7W4K2M1Q00F3A.mail.example.org,S=4096,W=4096,UIDL=MDAwMDAwMGE0ZjY1

A unique-id may hold octets that no file name may, or that part fields: hence base64url (RFC 4648
§5, without padding), at most 94 octets.

Nothing here does I/O.  Names are bytes, as the kernel has them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence

#: How many names are tried for one message before giving up.
VARIANTS = 10

#: Seconds that fit ten digits, so that names sort by time.
LATEST = 9_999_999_999

#: A base name is at most 255 octets, and flags must still fit behind it.
_LONGEST_HOST = 128

# Nineteen digits always fit into 64 bits.  A field ends at "," or ":" or with the name.
_SENT = re.compile(rb"[^:]*,W=([0-9]{1,19})(?![^,:])")
_STORED = re.compile(rb"[^:]*,S=([0-9]{1,19})(?![^,:])")
_SIZE_FIELDS = re.compile(rb",[SW]=[0-9]+(?![^,])")
_GIVEN = re.compile(rb"[^:]*,UIDL=([A-Za-z0-9_-]{2,94})(?![^,:])")
_UNIQUE_ID = re.compile(rb"[\x21-\x7e]{1,70}")

#: With a unique-id in it a name has less room for the host.
_SHORT_HOST = 64


def host_part(hostname: str) -> bytes:
    """*hostname* as it stands in file names: "/", ":" and "," escaped as the maildir rules say."""
    host = hostname.replace("/", r"\057").replace(":", r"\072").replace(",", r"\054")
    return host.encode()[:_LONGEST_HOST]


def unique_parts(seconds: int, id: str, host: bytes) -> Iterator[bytes]:
    """The name of a message, and the variants of it to try when the name is taken."""
    # Ten digits also for what is older than 2001, so that names sort by time.
    yield b"%010d.%b.%b" % (seconds, id.encode(), host)
    for variant in range(1, VARIANTS):
        yield b"%010d.%b_%d.%b" % (seconds, id.encode(), variant, host)


def with_sizes(unique: bytes, stored: int, sent: int) -> bytes:
    """The base name: *stored* octets in the file, *sent* octets by RETR."""
    return b"%b,S=%d,W=%d" % (unique, stored, sent)


def with_unique_id(seconds: int, id: str, host: bytes, stored: int, sent: int,
                   unique_id: bytes) -> bytes:
    """The base name of a message that keeps *unique_id*, whose form must be legal."""
    if not is_unique_id(unique_id):
        raise ValueError(f"not a unique-id: {unique_id!r}")
    unique = next(unique_parts(seconds, id, host[:_SHORT_HOST]))
    coded = base64.urlsafe_b64encode(unique_id).rstrip(b"=")
    return b"%b,UIDL=%b" % (with_sizes(unique, stored, sent), coded)


def renamed(name: bytes, seconds: int, id: str, host: bytes) -> bytes:
    """*name* with another unique part, so that it has another unique-id; sizes and info stay."""
    whole = base(name)
    sizes = b"".join(_SIZE_FIELDS.findall(whole))
    return next(unique_parts(seconds, id, host)) + sizes + name[len(whole):]


def base(name: bytes) -> bytes:
    """*name* without its info."""
    return name.partition(b":")[0]


def unique_part(name: bytes) -> bytes:
    """*name* without its fields and info."""
    return base(name).partition(b",")[0]


def stored_octets(name: bytes) -> int | None:
    """The size of the file according to ``,S=``; None without a sound one."""
    found = _STORED.match(name)
    return int(found[1]) if found else None


def sent_octets(name: bytes) -> int | None:
    """The size that RETR sends according to ``,W=``; None without a sound one."""
    found = _SENT.match(name)
    if found is None:
        return None
    sent, stored = int(found[1]), stored_octets(name)
    # Each octet may be an LF that gets its CR, and the last line may get its CRLF.  What does not
    # fit was not counted.
    if stored is not None and not stored <= sent <= 2 * stored + 2:
        return None
    return sent


def is_trashed(name: bytes) -> bool:
    """Whether the message is flagged as deleted (T)."""
    info = name.partition(b":")[2]
    return info.startswith(b"2,") and b"T" in info


def without_sizes(name: bytes) -> bytes:
    """The base name of *name* without its size fields; the unique-id stays as it is."""
    return _SIZE_FIELDS.sub(b"", base(name))


def plain_id(name: bytes) -> bytes:
    """The base name without its size fields: the unique-id of most messages."""
    return without_sizes(name)


def is_unique_id(text: bytes) -> bool:
    """Whether *text* can be a POP3 unique-id (RFC 1939 §7): 1 to 70 octets of 0x21 to 0x7E."""
    return _UNIQUE_ID.fullmatch(text) is not None


def given_id(name: bytes) -> bytes | None:
    """The unique-id that the message came with, according to ``,UIDL=``; None without a sound one.
    """
    found = _GIVEN.match(name)
    if found is None:
        return None
    try:
        given = base64.urlsafe_b64decode(found[1] + b"=" * (-len(found[1]) % 4))
    except binascii.Error:
        return None
    return given if is_unique_id(given) else None


def unique_id(name: bytes) -> bytes:
    """The POP3 unique-id (RFC 1939 §7: 1 to 70 octets of 0x21 to 0x7E) of the file *name*.

    The one the message came with, or the base name without its size fields; where that will not do,
    :func:`hashed_id`.  Of two files that have one, one is renamed (:mod:`mailsvc.store.namesakes`).
    """
    plain = given_id(name) or plain_id(name)
    return plain if is_unique_id(plain) else hashed_id(name)


def hashed_id(name: bytes, number: int = 0) -> bytes:
    """A hash of the whole base name behind a ".", with which no plain unique-id begins, because
    files whose names do are not messages.

    :param number: how many files of that base name have got one before.
    """
    what = base(name) + (b":%d" % number if number else b"")
    return b"." + base64.urlsafe_b64encode(hashlib.blake2b(what, digest_size=24).digest())


def unique_ids(names: Sequence[bytes]) -> list[bytes]:
    """A unique-id for each of *names*, which are all of one maildir that is only read.

    Those that would have the same get hashes.
    """
    plain = Counter(map(plain_id, names))
    bases: Counter[bytes] = Counter()
    ids = []
    for name in names:
        if plain[plain_id(name)] > 1:
            ids.append(hashed_id(name, bases[base(name)]))
            bases[base(name)] += 1
        else:
            ids.append(unique_id(name))
    count = Counter(ids)
    return [hashed_id(name) if count[id] > 1 and given_id(name) else id
            for name, id in zip(names, ids, strict=True)]


def message_id(name: bytes) -> str | None:
    """The id of the message in *name*, if it is one of our names."""
    parts = unique_part(name).split(b".", 2)
    return parts[1].decode("ascii") if len(parts) == 3 and parts[1].isalnum() else None


def seconds(name: bytes) -> int | None:
    """What *name* begins with, as a rule when its message arrived; None when that is no number."""
    number = unique_part(name).partition(b".")[0]
    return int(number) if number.isdigit() and len(number) <= 10 else None
