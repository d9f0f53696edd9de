"""What is kept of ACME in the data directory: ``{data}/acme``, mode 0700, of the service's user.

``certificate.pem``
    the certificate with its chain, and its key.
``account.json``
    the key of our account, as a JWK (RFC 7517), its URL, and the authority that it is for.
``thumbprint``
    of that key (RFC 7638), in base64url: all that answering takes.
``answers``
    a directory: for each name that the authority is to see by TLS-ALPN-01, the certificate and key
    to show it (RFC 8737 §3).  A file there counts for ten minutes, and whoever asks next removes
    what an order that did not come to its end has left.
``lock``
    held by whoever asks for a certificate.

Each appears whole or not at all.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mailsvc.ownership import give_to_owner_of, make_folder, write_private

#: How long an answer counts, seconds: longer than an order takes.
_ANSWER = 600
#: A host name: it comes from strangers, and becomes the name of a file.
_NAME = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)+")


@dataclass(frozen=True, slots=True)
class Files:
    """Those below *data*."""

    data: Path

    @property
    def directory(self) -> Path:
        return self.data / "acme"

    @property
    def certificate(self) -> Path:
        return self.directory / "certificate.pem"

    @property
    def account(self) -> Path:
        return self.directory / "account.json"

    @property
    def thumbprint(self) -> bytes | None:
        """None before there is an account."""
        try:
            return (self.directory / "thumbprint").read_bytes()
        except FileNotFoundError:
            return None

    def answer(self, name: str) -> Path | None:
        """The file to show the authority for *name*, in lower case; None while it asks nothing."""
        try:
            path = self._answer(name)
            return path if time.time() - path.stat().st_mtime < _ANSWER else None
        except (ValueError, FileNotFoundError):
            return None

    def keep_answer(self, name: str, content: bytes) -> None:
        """Show the authority *content* for *name*; for who holds the lock.

        :raises ValueError: *name* is no host name in lower case.
        """
        path = self._answer(name)
        make_folder(self.directory)
        make_folder(path.parent)
        write_private(path, content)

    def drop_answers(self) -> None:
        """Show the authority nothing more; for who holds the lock."""
        with suppress(FileNotFoundError):
            for path in list(self._answers.iterdir()):
                path.unlink(missing_ok=True)

    def _answer(self, name: str) -> Path:
        if len(name) > 253 or not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no host name")
        return self._answers / f"{name}.pem"

    @property
    def _answers(self) -> Path:
        return self.directory / "answers"

    def keep(self, name: str, content: bytes) -> None:
        """Make or replace the file *name*, durably."""
        make_folder(self.directory)
        write_private(self.directory / name, content)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only one who asks.

        :raises BlockingIOError: somebody else does.
        """
        make_folder(self.directory)
        path = self.directory / "lock"
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            give_to_owner_of(self.directory, path)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            os.close(lock)
