"""What the tests of the directory share: one with some names in it, and names to attack it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mailsvc.directory import SqliteDirectory
from mailsvc.logins import Credentials, StoredPassword
from mailsvc.mail import Account, Alias
from mailsvc.names import DirectoryError, parse_address

at = parse_address

#: What SQL, shells, LDAP and file systems have been attacked with; none of it names anything.
HOSTILE = ["' OR '1'='1", "bob'--", '" OR ""="', "%", "_", "*", "b?b", "bob\0", "bob\n", "bob ",
           " bob", "bob)(uid=*", "../bob", ";id", "$(id)", "\udc80", "", "bob/", "x" * 100_000,
           "ｂｏｂ", "b\u043eb", "bob\u200b"]


TEAM_ADDRESS = at("team@example.org")


@contextmanager
def some_directory(path: Path) -> Iterator[SqliteDirectory]:
    """example.org with Bob (quota), alice, the alias team; example.net empty."""
    with SqliteDirectory(path) as directory:
        directory.add_domain("example.org")
        directory.add_domain("example.net", separators="-")
        directory.add_account(at("Bob@example.org"), verifier="$v", secret="s", quota_octets=10,
                              quota_messages=2)
        directory.add_account(at("alice@example.org"))
        directory.add_alias(TEAM_ADDRESS, [at("bob@example.org"), at("alice@example.org")])
        yield directory


#: When all passwords of these tests are made.
NOW = 1_800_000_000


BOB = Account("Bob", "example.org", 10, 2)
ALICE = Account("alice", "example.org")
TEAM = Alias("team", "example.org", (at("bob@example.org"), at("alice@example.org")))


def logins(account: Account, verifier: str | None = None,
           secret: str | None = None) -> Credentials:
    """What there is of an account with just a main password, made now."""
    return Credentials(account, (StoredPassword("", verifier, None, secret, made=NOW),))


def refused(change: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    with pytest.raises(DirectoryError) as caught:
        change(*arguments, **options)
    return str(caught.value)
