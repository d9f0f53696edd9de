"""What accounts log in with: a table of passwords, several to an account.

The one labelled "" is the account's main password, chosen by a person.  The others are *app
passwords*: made here for one program each, of more than 100 random bits, and held to protocols,
networks and a time.  This module keeps them and says which may be used when; how they are hashed
and compared is :mod:`mailsvc.passwords`.

Nothing secret shows in a ``repr``, hence in no log.
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from mailsvc.database import Database
from mailsvc.mail import Account
from mailsvc.names import DirectoryError, fold_domain, fold_local_part
from mailsvc.networks import address_of, network_of

#: What a password may be for, as in :class:`mailsvc.credentials.Attempt`.
PROTOCOLS = ("pop3", "submission")

#: How many app passwords an account may have, and how many characters a label.
MOST = 100
LABEL_CHARACTERS = 64


@dataclass(frozen=True, slots=True)
class StoredPassword:
    """One password of an account, and what it is good for.

    :ivar label: the name that the account's owner knows it by; "" for the main password.
    :ivar verifier: its hash; None for a password that only ``secret`` can check.
    :ivar scram: its SCRAM-SHA-256 keys as PostgreSQL writes them, or None until they are derived.
    :ivar secret: the password itself, for mechanisms such as APOP that need it; else None.
    :ivar protocols: which of :data:`PROTOCOLS` it is for; empty for all.
    :ivar networks: where it may be used from, in CIDR notation; empty for everywhere.
    :ivar expires: the last second that it is good for (Unix time), or None.
    :ivar made: when it was made; 0 when that is not known.
    :ivar used: when somebody last logged in with it, to the minute or so; None for never.
    :ivar used_from: the address that was, "" when it is not known.
    """

    label: str = ""
    verifier: str | None = field(default=None, repr=False)
    scram: str | None = field(default=None, repr=False)
    secret: str | None = field(default=None, repr=False)
    protocols: frozenset[str] = frozenset()
    networks: tuple[str, ...] = ()
    expires: int | None = None
    made: int = 0
    used: int | None = None
    used_from: str = ""
    id: int = field(default=0, compare=False)

    def admits(self, protocol: str, client: str, now: float) -> bool:
        """Whether it is good for *protocol* from the address *client* at *now*.

        Either may be "", when it is not known: then a password that is held to some is no good.
        """
        return ((self.expires is None or now <= self.expires)
                and (not self.protocols or protocol in self.protocols)
                and (not self.networks or _is_within(client, self.networks)))


@dataclass(frozen=True, slots=True)
class Credentials:
    """What logins to an account are checked against."""

    account: Account
    passwords: tuple[StoredPassword, ...] = ()

    @property
    def main(self) -> StoredPassword | None:
        """The main password."""
        return next((each for each in self.passwords if not each.label), None)

    @property
    def app_passwords(self) -> tuple[StoredPassword, ...]:
        """The others, the oldest first."""
        return tuple(each for each in self.passwords if each.label)

    @property
    def verifier(self) -> str | None:
        """The main password's."""
        return self.main.verifier if self.main else None

    @property
    def secret(self) -> str | None:
        """The main password's."""
        return self.main.secret if self.main else None


def _is_within(client: str, networks: Iterable[str]) -> bool:
    try:
        address = address_of(client)
    except ValueError:  # a Unix socket
        return False
    return any(address in network_of(network) for network in networks)


#: The columns that :func:`stored` reads.
COLUMNS = ", ".join(f"password.{name}" for name in (
    "label", "verifier", "scram", "secret", "protocols", "networks", "expires", "made", "used",
    "used_from", "id"))


def stored(row: Iterable[Any]) -> StoredPassword:
    """The password in a row of :data:`COLUMNS`."""
    label, verifier, scram, secret, protocols, networks, *rest = row
    return StoredPassword(label, verifier, scram, secret, frozenset(protocols.split()),
                          tuple(networks.split()), *rest)


_MAILBOX = "(SELECT id FROM mailbox WHERE domain = ? AND key = ?)"


class PasswordTable:
    """The passwords in the accounts file *db*.

    Changes are made inside the directory's transactions, except those that say otherwise.
    """

    def __init__(self, db: Database) -> None:
        self._db = db

    def set_main(self, account: Account, verifier: str | None, scram: str | None,
                 secret: str | None) -> None:
        """Give *account* another main password, or none at all."""
        with self._db.transaction():
            self._db.change(f"DELETE FROM password WHERE mailbox = {_MAILBOX} AND key = ''",
                            *_key(account))
            if verifier is not None or secret is not None:
                self._insert(account, StoredPassword("", verifier, scram, secret))

    def add(self, account: Account, password: StoredPassword) -> StoredPassword:
        """Give *account* an app password; *made* is now, and it was never used.

        :raises DirectoryError: when the account has one of that label, or too many, or when it
            would be good for nothing.
        """
        password = _checked(password)
        with self._db.transaction():
            labels = [label for label, in self._db.rows(
                f"SELECT label FROM password WHERE mailbox = {_MAILBOX} AND key != '' ORDER BY id",
                *_key(account))]
            for label in labels:
                if fold_local_part(label) == fold_local_part(password.label):
                    raise DirectoryError(
                        f"{account.name} has an app password {label!r} already",
                        "choose another label, or first remove that with: mailsvc account "
                        f"app-password remove {account.name} LABEL")
            if len(labels) >= MOST:
                raise DirectoryError(f"{account.name} has {MOST} app passwords already",
                                     "remove those that are not used any more; see: mailsvc "
                                     f"account app-password list {account.name}")
            return self._insert(account, password)

    def remove(self, account: Account, label: str) -> StoredPassword:
        """Forget an app password: the next login with it fails.

        :raises DirectoryError: when there is none of that label.
        """
        with self._db.transaction():
            rows = self._db.rows(
                f"SELECT {COLUMNS} FROM password WHERE mailbox = {_MAILBOX} AND key = ? "
                "AND key != ''", *_key(account), fold_local_part(label))
            if not rows:
                raise DirectoryError(f"{account.name} has no app password {label!r}",
                                     f"see: mailsvc account app-password list {account.name}")
            password = stored(rows[0])
            self._db.change("DELETE FROM password WHERE id = ?", password.id)
        return password

    def _insert(self, account: Account, password: StoredPassword) -> StoredPassword:
        now = int(time.time())
        id = self._db.change(
            "INSERT INTO password (mailbox, key, label, verifier, scram, secret, protocols, "
            f"networks, expires, made) VALUES ({_MAILBOX}, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            *_key(account), fold_local_part(password.label), password.label, password.verifier,
            password.scram, password.secret, " ".join(sorted(password.protocols)),
            " ".join(password.networks), password.expires, now)
        return StoredPassword(
            password.label, password.verifier, password.scram, password.secret,
            password.protocols, password.networks, password.expires, now, id=id or 0)

    def renew(self, password: StoredPassword, verifier: str | None, scram: str | None) -> None:
        """See :meth:`mailsvc.interfaces.IDirectory.renew_password`; a transaction of its own."""
        self._db.update("UPDATE password SET verifier = ?, scram = ? "
                        "WHERE id = ? AND verifier IS ?",
                        verifier, scram, password.id, password.verifier)

    def record(self, uses: Iterable[tuple[int, int, str]]) -> None:
        """See :meth:`mailsvc.interfaces.IDirectory.record_uses`; a transaction of its own."""
        self._db.update_all("UPDATE password SET used = ?, used_from = ? WHERE id = ?",
                            [(used, address, id) for id, used, address in uses])


def _checked(password: StoredPassword) -> StoredPassword:
    """An app password as it is kept; refuses what no account should have."""
    label = unicodedata.normalize("NFC", password.label)
    if not label or label != label.strip() or not label.isprintable():
        raise DirectoryError(f"{label!r} cannot name an app password",
                             "expected a word or two, such as 'phone' or 'office printer'")
    if len(label) > LABEL_CHARACTERS:
        raise DirectoryError("the label is too long",
                             f"expected at most {LABEL_CHARACTERS} characters")
    for protocol in password.protocols.difference(PROTOCOLS):
        raise DirectoryError(f"a password cannot be for {protocol!r}",
                             f"expected {' or '.join(PROTOCOLS)}")
    if password.expires is not None and not time.time() < password.expires < 1 << 62:
        raise DirectoryError("the password would have expired already",
                             "choose a day to come")
    return StoredPassword(label, password.verifier, password.scram, password.secret,
                          password.protocols, tuple(map(_network, password.networks)),
                          password.expires)


def _network(text: str) -> str:
    try:
        network = network_of(text)
    except ValueError:
        raise DirectoryError(f"{text!r} is not a network",
                             "expected an address such as 192.0.2.7, or a network such as "
                             "192.0.2.0/24 or 2001:db8::/32") from None
    if address_of(text.partition("/")[0]) != network.network_address:
        raise DirectoryError(f"{text} is an address in a network",
                             f"expected the network, {network}, or the address alone")
    return str(network)


def _key(account: Account) -> tuple[str, str]:
    return fold_domain(account.domain), fold_local_part(account.local_part)
