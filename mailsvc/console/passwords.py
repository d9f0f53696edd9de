"""How passwords that are chosen in the console are kept: as the commands do it."""

from __future__ import annotations

from mailsvc.console.call import Backend
from mailsvc.directory import SqliteDirectory
from mailsvc.passwords import PasswordHasher, scram_salt


def hashed(backend: Backend, directory: SqliteDirectory, name: str, password: bytes, *,
           verifier: bool = True) -> tuple[str, str | None]:
    """The verifier ("" if it is not wanted) and the SCRAM keys of a prepared password for the
    account *name*; takes its time in the calling thread."""
    hasher = PasswordHasher(backend.settings.passwords, None)
    return (hasher.hash(password) if verifier else "",
            hasher.derive_scram(password, scram_salt(directory, name)))
