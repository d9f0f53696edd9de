"""What the tests of accounts share: a directory with some, and passwords to log in with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from twisted.cred.credentials import IUsernameHashedPassword
from twisted.cred.error import UnauthorizedLogin
from zope.interface import implementer

from mailsvc.accounts import DirectoryChecker
from mailsvc.credentials import Attempt
from mailsvc.directory import SqliteDirectory
from mailsvc.logins import StoredPassword
from mailsvc.names import parse_address
from mailsvc.passwords import (
    PasswordHasher,
    app_verifier,
    prepare_password,
)

at = parse_address

PASSWORD = "päss word"
POP3 = Attempt("pop3", "192.0.2.7", "PLAIN")
SUBMISSION = Attempt("submission", "192.0.2.7", "PLAIN")
APP = "abcd-efgh-jkmn-pqrs-tuvw-xyza"


def add_app(directory: SqliteDirectory, label: str = "phone", name: str = "bob@example.org",
            password: str = APP, secret: str | None = None, **limits: Any) -> StoredPassword:
    found = directory.credentials(name)
    assert found
    verifier = app_verifier(directory, password.encode())
    return directory.passwords.add(found.account, StoredPassword(
        label, verifier, secret=secret, **limits))


@contextmanager
def some_accounts(path: Path, hasher: PasswordHasher) -> Iterator[SqliteDirectory]:
    with SqliteDirectory(path) as directory:
        directory.add_domain("example.org")
        verifier = hasher.hash(prepare_password(PASSWORD))
        directory.add_account(at("Bob@example.org"), verifier=verifier, secret=PASSWORD)
        directory.add_account(at("alice@example.org"), verifier=verifier)
        directory.add_account(at("closed@example.org"))
        directory.add_account(at("jürgen@example.org"), verifier=verifier)
        directory.add_alias(at("robert@example.org"), [at("bob@example.org")])
        yield directory


async def refused(checker: DirectoryChecker, credentials: Any) -> None:
    with pytest.raises(UnauthorizedLogin) as caught:
        await checker.requestAvatarId(credentials)
    assert caught.value.args == ("Authentication failed",)


@implementer(IUsernameHashedPassword)
class Apop:
    """RFC 1939 §7: the digest of a timestamp and the secret."""

    def __init__(self, username: bytes, secret: bytes) -> None:
        self.username = username
        self.digest = hashlib.md5(b"<1@mx>" + secret).digest()
        self.asked: list[bytes] = []

    def checkPassword(self, password: bytes) -> bool:
        self.asked.append(password)
        return hashlib.md5(b"<1@mx>" + password).digest() == self.digest
