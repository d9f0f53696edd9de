"""The directory of domains, accounts and aliases: one SQLite file.

Any number of processes may read it while another changes it, and see the change at their next
look-up (:mod:`mailsvc.database`).  Changes are checked first; a refused one leaves the file as it
was and raises :class:`DirectoryError`, whose text says what to do.  Look-ups are single indexed
queries of 5 to 15 µs, with nothing cached; who caches what they found asks :meth:`version`.  SQL
gets values as parameters only.

**Names** are folded as :mod:`mailsvc.names` says: case does not matter.  The spelling an account
was made with is kept, for it names the maildir.

**Aliases.**  An alias of an account's name takes that account's mail; the account can still log in.
A target of the alias's own name means that account: ``bob@d -> bob@d, carol@d`` keeps a copy with
Bob.  A target of a domain that is not served here is forwarded to.  A *moved* alias delivers
nothing: the sender is told the new address (551, RFC 5321 §3.4).  A loop of aliases is refused when
its last link is added; one by way of a catch-all or a subaddress is refused by ``routing``.
"""

from __future__ import annotations

import dataclasses
import hmac
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

from zope.interface import implementer

from mailsvc import schema
from mailsvc.database import Database
from mailsvc.interfaces import IDirectory
from mailsvc.logins import COLUMNS, Credentials, PasswordTable, StoredPassword, stored
from mailsvc.mail import ROLES, Account, Address, Alias, Domain
from mailsvc.names import (
    RESERVED,
    SEPARATORS,
    DirectoryError,
    check_address,
    check_domain,
    check_maildir_name,
    fold_domain,
    fold_local_part,
)

# --- Rows --------------------------------------------------------------------------------------

_DOMAIN = "SELECT name, catch_all_local_part, catch_all_domain, separators FROM domain"
_ACCOUNT = "SELECT local_part, domain, quota_octets, quota_messages, role FROM mailbox"
_ALIAS = ("SELECT alias.id, alias.local_part, alias.domain, moved, target.local_part, "
          "target.domain FROM alias JOIN target ON target.alias = alias.id")


# Written so that the tables are looked into in the same order whether there is such an account.
_CREDENTIALS = ("SELECT local_part, domain, quota_octets, quota_messages, role, "
                f"{COLUMNS} FROM (SELECT coalesce((SELECT id FROM mailbox WHERE domain = ? "
                "AND key = ?), 0) AS asked) LEFT JOIN mailbox ON mailbox.id = asked "
                "LEFT JOIN password ON password.mailbox = asked ORDER BY password.id")

#: The id of an account.
_MAILBOX = "(SELECT id FROM mailbox WHERE domain = ? AND key = ?)"

#: A row as that finds it, of an account that is nobody's.
_NOBODY = [("", "", 0, 0, "both", "", "", "", None, "", "", None, 0, None, "", 0)]


def _domain(row: Any) -> Domain:
    name, local_part, domain, separators = row
    return Domain(name, None if domain is None else Address(local_part, domain), separators)


def _alias(rows: list[Any]) -> Alias:
    _, local_part, domain, moved, *_ = rows[0]
    return Alias(local_part, domain, tuple(Address(*row[4:]) for row in rows), bool(moved))


def _key(name: Address | Account | Alias) -> tuple[str, str]:
    """What accounts and aliases are found by."""
    return fold_domain(name.domain), fold_local_part(name.local_part)


def _some(names: Iterable[object]) -> str:
    """The names for a message, or the first few of them."""
    texts = [str(name) for name in names]
    return ", ".join(texts[:5]) + (f" and {len(texts) - 5} more" if len(texts) > 5 else "")


@implementer(IDirectory)
class SqliteDirectory:
    """The directory in the SQLite file *path*.

    :param create: make the file when it is missing.
    :raises DirectoryError: when it is missing, not ours, or not permitted.
    """

    def __init__(self, path: str | os.PathLike[str], *, create: bool = True) -> None:
        self._db = Database(Path(path), schema.script(), schema.VERSION, create=create,
                            migrations=schema.migrations())
        self._rows = self._db.rows
        self._change = self._db.change
        #: As ``IDirectory.version``.
        self.version = self._db.version
        #: What accounts log in with.
        self.passwords = PasswordTable(self._db)
        self._file_key: bytes | None = None

    def transaction(self) -> AbstractContextManager[None]:
        """Inside, changes become visible together, or none of them when the block raises.

        Otherwise each change is a transaction of its own.
        """
        return self._db.transaction()

    def close(self) -> None:
        """Let go of the file; may be called again."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- Look-ups ------------------------------------------------------------------------------

    def domain(self, name: str) -> Domain | None:
        rows = self._rows(f"{_DOMAIN} WHERE name = ?", fold_domain(name))
        return _domain(rows[0]) if rows else None

    def account(self, local_part: str, domain: str) -> Account | None:
        rows = self._rows(f"{_ACCOUNT} WHERE domain = ? AND key = ?",
                          fold_domain(domain), fold_local_part(local_part))
        return Account(*rows[0]) if rows else None

    def alias(self, local_part: str, domain: str) -> Alias | None:
        rows = self._rows(f"{_ALIAS} WHERE alias.domain = ? AND alias.key = ? ORDER BY position",
                          fold_domain(domain), fold_local_part(local_part))
        return _alias(rows) if rows else None

    def credentials(self, name: str) -> Credentials | None:
        local_part, _, domain = name.rpartition("@")
        rows = self._rows(_CREDENTIALS, fold_domain(domain), fold_local_part(local_part))
        # Where there is no account there is one row of NULLs, and the same is built, so that a
        # login takes as long.
        found = bool(rows) and rows[0][0] is not None
        built = rows if found else _NOBODY
        # The last column is the password's id: NULL in the one row of an account without any.
        credentials = Credentials(
            Account(*built[0][:5]), tuple(stored(row[5:]) for row in built if row[-1] is not None))
        return credentials if found else None

    def keyed(self, purpose: str, value: bytes) -> bytes:
        if self._file_key is None:
            ((self._file_key,),) = self._rows("SELECT value FROM file_key")
        return hmac.digest(self._file_key, purpose.encode() + b"\0" + value, "sha256")

    def domains(self, most: int = -1) -> Iterator[Domain]:
        return map(_domain, self._rows(f"{_DOMAIN} ORDER BY id LIMIT ?", most))

    def oldest_account(self, domain: str) -> Account | None:
        rows = self._rows(f"{_ACCOUNT} WHERE domain = ? AND role != 'send' ORDER BY id LIMIT 1",
                          fold_domain(domain))
        return Account(*rows[0]) if rows else None

    def accounts(self) -> Iterator[Account]:
        """Every account, the oldest first."""
        return (Account(*row) for row in self._rows(f"{_ACCOUNT} ORDER BY id"))

    def aliases(self) -> Iterator[Alias]:
        """Every alias, the oldest first."""
        gathered: dict[int, list[Any]] = {}
        for row in self._rows(f"{_ALIAS} ORDER BY alias.id, position"):
            gathered.setdefault(row[0], []).append(row)
        return map(_alias, gathered.values())

    def administers(self, account: Account) -> bool:
        """Whether *account* may change the service itself, in the console."""
        return bool(self._rows(f"SELECT 1 FROM administrator WHERE mailbox = {_MAILBOX}",
                               *_key(account)))

    def administrators(self) -> list[str]:
        """The names of the accounts that may, the oldest first."""
        return [f"{local_part}@{domain}" for local_part, domain in self._rows(
            "SELECT local_part, domain FROM mailbox JOIN administrator ON mailbox = id "
            "ORDER BY id")]

    def users_of(self, account: Account) -> list[str]:
        """The aliases, and domains as ``*@domain``, that give their mail to *account*."""
        return self._leading_to(_key(account))

    # --- Changes -------------------------------------------------------------------------------

    def add_domain(self, name: str, *, separators: str | None = None) -> Domain:
        """Take on the mail of a domain."""
        name = check_domain(name)
        if separators is not None and not SEPARATORS.issuperset(separators):
            raise DirectoryError(f"{separators!r} cannot part a subaddress",
                                 f"expected characters out of {''.join(sorted(SEPARATORS))}")
        with self.transaction():
            if self.domain(name):
                raise DirectoryError(f"domain {name} exists already", "there is nothing to do")
            self._change("INSERT INTO domain (name, separators) VALUES (?, ?)", name, separators)
        return Domain(name, None, separators)

    def remove_domain(self, name: str) -> Domain:
        """Give up the mail of a domain that has no accounts and aliases left."""
        with self.transaction():
            domain = self._domain(name)
            name = domain.name
            left = {kind: [f"{row[0]}@{name}" for row in self._rows(
                f"SELECT local_part FROM {table} WHERE domain = ? ORDER BY id", name)]
                for kind, table in (("account", "mailbox"), ("alias", "alias"))}
            if any(left.values()):
                raise DirectoryError(
                    f"{name} still has the " + " and the ".join(
                        f"{kind} {_some(names)}" for kind, names in left.items() if names),
                    "first remove each with: " + ", ".join(
                        f"mailsvc {kind} remove NAME" for kind, names in left.items() if names))
            users = [alias.name for alias in self.aliases()
                     if not alias.moved and any(target.domain == name for target in alias.targets)]
            users += [f"*@{other.name}" for other in self.domains()
                      if other.name != name and other.catch_all and other.catch_all.domain == name]
            self._refuse_if_used(name, users)
            self._change("DELETE FROM domain WHERE name = ?", name)
        return domain

    def set_catch_all(self, name: str, target: Address | None) -> Domain:
        """Give the mail for a domain's unknown local-parts to *target*; None refuses it."""
        with self.transaction():
            domain = self._domain(name)
            if target is not None:
                target = check_address(target)
                if not self.domain(target.domain):
                    raise DirectoryError(f"{target} is in a domain that is not served here",
                                         "to forward it all, choose an alias here that does")
                if not self._exists(target):
                    raise DirectoryError(f"there is no account or alias {target}",
                                         f"first add it with: mailsvc account add {target}")
            self._change(
                "UPDATE domain SET catch_all_local_part = ?, catch_all_domain = ? WHERE name = ?",
                target and target.local_part, target and target.domain, domain.name)
        return Domain(domain.name, target, domain.separators)

    def add_account(self, address: Address, *, verifier: str | None = None,
                    scram: str | None = None, secret: str | None = None, quota_octets: int = 0,
                    quota_messages: int = 0, role: str = "both") -> Account:
        """Make an account; without a *verifier* nobody can log in to it.

        Verifier, SCRAM keys and secret as in :class:`mailsvc.logins.StoredPassword`, quotas and
        role as in :class:`mailsvc.mail.Account`.
        """
        _check_quota(quota_octets, quota_messages)
        _check_role(role)
        with self.transaction():
            address = self.check_new_account(address)
            account = Account(address.local_part, address.domain, quota_octets, quota_messages,
                              role)
            self._change(
                "INSERT INTO mailbox (domain, key, local_part, quota_octets, quota_messages, role) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                *_key(account), account.local_part, quota_octets, quota_messages, role)
            self.passwords.set_main(account, verifier, scram, secret)
        return account

    def check_new_account(self, address: Address) -> Address:
        """*address* as an account of that name would have it; refuses what cannot be made."""
        address = check_address(address)
        check_maildir_name(address.local_part)
        with self.transaction():
            self._domain_to_add_to(address.domain)
            found = self._account_at(address)
            if found:
                raise DirectoryError(
                    f"account {found.name} exists already",
                    f"change its password with: mailsvc account passwd {found.name}")
            if self._alias_at(address):
                raise DirectoryError(f"alias {address} would take the mail of this account",
                                     f"first remove it with: mailsvc alias remove {address}")
        return address

    def remove_account(self, address: Address) -> Account:
        """Forget an account that nothing leads to.  Its mail is not touched."""
        with self.transaction():
            account = self._account(address)
            self._change("DELETE FROM mailbox WHERE domain = ? AND key = ?", *_key(account))
            self._refuse_if_used(account.name, self._users(account))
        return account

    def set_password(self, address: Address, verifier: str | None, secret: str | None = None, *,
                     scram: str | None = None) -> Account:
        """Replace the main password: what is not given is not kept."""
        with self.transaction():
            account = self._account(address)
            self.passwords.set_main(account, verifier, scram, secret)
        return account

    def renew_password(self, password: StoredPassword, verifier: str | None,
                       scram: str | None) -> None:
        self.passwords.renew(password, verifier, scram)

    def record_uses(self, uses: Iterable[tuple[int, int, str]]) -> None:
        self.passwords.record(uses)

    def set_role(self, address: Address, role: str) -> Account:
        """Change what an account is for.  Mail that it has stays where it is."""
        _check_role(role)
        with self.transaction():
            account = dataclasses.replace(self._account(address), role=role)
            self._change("UPDATE mailbox SET role = ? WHERE domain = ? AND key = ?",
                         role, *_key(account))
        return account

    def set_administrator(self, address: Address, administers: bool) -> Account:
        """Let an account change the service itself, in the console, or no longer."""
        with self.transaction():
            account = self._account(address)
            self._change(f"DELETE FROM administrator WHERE mailbox = {_MAILBOX}", *_key(account))
            if administers:
                self._change(f"INSERT INTO administrator (mailbox) VALUES ({_MAILBOX})",
                             *_key(account))
        return account

    def set_quota(self, address: Address, *, octets: int | None = None,
                  messages: int | None = None) -> Account:
        """Change what is not None; 0 is no limit."""
        with self.transaction():
            found = self._account(address)
            account = dataclasses.replace(
                found, quota_octets=found.quota_octets if octets is None else octets,
                quota_messages=found.quota_messages if messages is None else messages)
            _check_quota(account.quota_octets, account.quota_messages)
            self._change("UPDATE mailbox SET quota_octets = ?, quota_messages = ? "
                         "WHERE domain = ? AND key = ?",
                         account.quota_octets, account.quota_messages, *_key(account))
        return account

    def add_alias(self, address: Address, targets: Sequence[Address], *, moved: bool = False,
                  replace: bool = False) -> Alias:
        """Lead the mail for *address* to *targets*, or if *moved* tell senders the one target."""
        address = check_address(address)
        distinct = {_key(target): target for target in map(check_address, targets)}
        alias = Alias(address.local_part, address.domain, tuple(distinct.values()), moved)
        with self.transaction():
            self._domain_to_add_to(address.domain)
            found = self._alias_at(address)
            if found and not replace:
                raise DirectoryError(
                    f"alias {found.name} exists already and leads to {_some(found.targets)}",
                    "to change it, give all its targets and --replace")
            self._change("DELETE FROM alias WHERE domain = ? AND key = ?", *_key(alias))
            (self._check_moved if moved else self._check_targets)(alias)
            id = self._change(
                "INSERT INTO alias (domain, key, local_part, moved) VALUES (?, ?, ?, ?)",
                *_key(alias), alias.local_part, moved)
            for position, target in enumerate(alias.targets):
                self._change("INSERT INTO target (alias, position, domain, key, local_part) "
                             "VALUES (?, ?, ?, ?, ?)", id, position, *_key(target),
                             target.local_part)
        return alias

    def remove_alias(self, address: Address) -> Alias:
        """Forget an alias that nothing leads to."""
        address = check_address(address)
        with self.transaction():
            alias = self._alias_at(address)
            if not alias:
                raise DirectoryError(f"there is no alias {address}",
                                     "see `mailsvc alias list`")
            self._change("DELETE FROM alias WHERE domain = ? AND key = ?", *_key(alias))
            self._refuse_if_used(alias.name, self._users(alias))
        return alias

    # --- What changes must hold to; inside their transactions ------------------------------------

    def _domain(self, name: str, remedy: str = "see `mailsvc domain list`") -> Domain:
        domain = self.domain(name)
        if not domain:
            raise DirectoryError(f"domain {name!r} is not served here", remedy)
        return domain

    def _domain_to_add_to(self, name: str) -> Domain:
        return self._domain(name, f"add it with: mailsvc domain add {name}")

    def _account(self, address: Address) -> Account:
        account = self._account_at(address)
        if not account:
            raise DirectoryError(f"there is no account {address}", "see `mailsvc account list`")
        return account

    def _account_at(self, name: Address | Account | Alias) -> Account | None:
        return self.account(name.local_part, name.domain)

    def _alias_at(self, name: Address | Account | Alias) -> Alias | None:
        return self.alias(name.local_part, name.domain)

    def _exists(self, name: Address) -> bool:
        return bool(self._account_at(name) or self._alias_at(name))

    def _check_moved(self, alias: Alias) -> None:
        if len(alias.targets) != 1:
            raise DirectoryError("a moved mailbox has one new address",
                                 f"expected one target, not {len(alias.targets)}")
        if fold_local_part(alias.local_part) in RESERVED:
            raise DirectoryError(f"{alias.name} must stay reachable (RFC 5321 §4.5.1)",
                                 "choose a target here, without --moved")

    def _check_targets(self, alias: Alias) -> None:
        if not alias.targets:
            raise DirectoryError(f"alias {alias.name} leads nowhere", "expected a target")
        for target in alias.targets:
            if not self.domain(target.domain):
                continue  # forwarded there; nobody here knows whether it exists
            if _key(target) == _key(alias):
                names, found = [target], bool(self._account_at(target))
            else:
                # A subaddress will do; which characters part one is for the service to say.
                names = [target, *(Address(target.local_part[:end], target.domain)
                                   for end, character in enumerate(target.local_part)
                                   if end and character in SEPARATORS)]
                found = any(map(self._exists, names))
            if not found:
                raise DirectoryError(f"there is no account or alias {target}",
                                     f"first add it with: mailsvc account add {target}")
        loop = self._loop(alias)
        if loop:
            raise DirectoryError("the alias would lead back to itself: " + " -> ".join(loop),
                                 "choose another target")

    def _loop(self, start: Alias) -> list[str]:
        """The way from *start* along aliases back to it; empty when there is none."""
        ways = {_key(start): [start.name]}
        following = [start]
        for alias in following:
            for target in alias.targets:
                key, way = _key(target), [*ways[_key(alias)], str(target)]
                if key == _key(start) and alias is not start:
                    return way
                found = None if key in ways else self._alias_at(target)
                if found and not found.moved:
                    ways[key] = way
                    following.append(found)
        return []

    def _users(self, removed: Account | Alias) -> list[str]:
        """What leads to a name that was removed, unless an account or alias of it remains."""
        if self._account_at(removed):
            return []
        key, remaining = _key(removed), self._alias_at(removed)
        if remaining:
            # To itself the alias meant the account; to all others the alias is what they mean.
            return [remaining.name] if key in map(_key, remaining.targets) else []
        return self._leading_to(key)

    def _leading_to(self, key: tuple[str, str]) -> list[str]:
        rows = self._rows("SELECT alias.local_part || '@' || alias.domain FROM target "
                          "JOIN alias ON alias.id = target.alias "
                          "WHERE target.domain = ? AND target.key = ? AND NOT moved", *key)
        return [name for name, in rows] + [
            f"*@{domain.name}" for domain in self.domains()
            if domain.catch_all and _key(domain.catch_all) == key]

    def _refuse_if_used(self, name: str, users: list[str]) -> None:
        if users:
            raise DirectoryError(f"{name} still gets the mail of {_some(users)}",
                                 "first give that to another, with: mailsvc alias add --replace, "
                                 "alias remove, or domain catch-all")


def _check_quota(octets: int, messages: int) -> None:
    for value, unit in ((octets, "octets"), (messages, "messages")):
        if not 0 <= value < 1 << 63:
            raise DirectoryError(f"a quota of {value} {unit} is not possible",
                                 "expected a positive number, or 0 for no limit")


def _check_role(role: str) -> None:
    if role not in ROLES:
        raise DirectoryError(f"there is no role {role!r}", f"expected {', '.join(ROLES)}")
