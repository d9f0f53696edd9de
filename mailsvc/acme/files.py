"""What is kept of ACME in the data directory: ``{data}/acme``, mode 0700, of the service's user.

``certificate.pem``
    the certificate with its chain, and its key.
``account.json``
    the key of our account, as a JWK (RFC 7517), its URL, and the authority that it is for.
``thumbprint``
    of that key (RFC 7638), in base64url: all that answering takes.
``lock``
    held by whoever asks for a certificate.

Each appears whole or not at all.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mailsvc.ownership import give_to_owner_of, make_folder, write_private


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
