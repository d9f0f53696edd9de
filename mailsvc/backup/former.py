"""Accounts that are gone, made again as a snapshot has them."""

from __future__ import annotations

import hmac
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from mailsvc import database
from mailsvc.backup import manifest
from mailsvc.backup.manifest import Damaged
from mailsvc.directory import SqliteDirectory
from mailsvc.logins import StoredPassword
from mailsvc.mail import Account, Address

#: Where a snapshot has the accounts.
ACCOUNTS = "accounts.sqlite"


class Former:
    """The accounts of *snapshot*; use as a context manager.

    :raises Damaged: on entry: the snapshot has none, or not what it had.
    :raises mailsvc.names.DirectoryError: on entry: the file is of a newer version.
    """

    def __init__(self, snapshot: Path) -> None:
        self._snapshot = snapshot
        # The snapshot stays as it is, while a file of an older version is brought up to date.
        self._folder = tempfile.TemporaryDirectory(prefix="mailsvc-")

    def __enter__(self) -> Self:
        try:
            self._directory = SqliteDirectory(self._copied(), create=False)
        except BaseException:
            self._folder.cleanup()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._directory.close()
        self._folder.cleanup()

    def account(self, address: Address) -> Account | None:
        """As it was; None if there was none."""
        return self._directory.account(address.local_part, address.domain)

    def make(self, account: Account, directory: SqliteDirectory) -> list[str]:
        """Make *account* in *directory* as it was: its domain, role, quota and passwords.

        Aliases that led to it do not come back.

        :returns: the labels of app passwords that could not be kept: they are hashed with a key
            of the accounts file, and *directory* is another.
        :raises mailsvc.names.DirectoryError: an alias of that name is in the way, say.
        """
        former = self._directory.credentials(account.name)
        assert former is not None
        main = former.main or StoredPassword()
        same_key = hmac.compare_digest(*(each.keyed("restore", b"")
                                         for each in (self._directory, directory)))
        with directory.transaction():
            if directory.domain(account.domain) is None:
                domain = self._directory.domain(account.domain)
                assert domain is not None
                directory.add_domain(domain.name, separators=domain.separators)
            directory.add_account(
                Address(account.local_part, account.domain), role=account.role,
                quota_octets=account.quota_octets, quota_messages=account.quota_messages,
                verifier=main.verifier, scram=main.scram, secret=main.secret)
            for password in former.app_passwords if same_key else ():
                directory.passwords.add(account, password)
        return [] if same_key else [each.label for each in former.app_passwords]

    def _copied(self) -> Path:
        for entry in manifest.entries(self._snapshot):
            if entry.path == ACCOUNTS:
                with (self._snapshot / entry.path).open("rb") as file:
                    for _ in manifest.checked(file, entry):
                        pass
                copy = Path(self._folder.name) / ACCOUNTS
                database.restored(self._snapshot / entry.path, copy)
                return copy
        raise Damaged(f"{ACCOUNTS} is missing")
