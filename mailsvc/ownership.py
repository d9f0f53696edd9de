"""Whose the files of the data directory are.

The service runs as a user of its own, and its administrator calls ``mailsvc`` as root: what that
makes in the service's directory must stay usable for the service, so it is given to the owner of
the directory.
"""

from __future__ import annotations

import os
import pwd
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def give_to_owner_of(folder: Path, made: Path) -> None:
    """Give *made* to the user and group that *folder* belongs to, where we are root."""
    if os.geteuid() == 0:
        owner = folder.stat()
        os.chown(made, owner.st_uid, owner.st_gid)


def make_folder(folder: Path) -> None:
    """Make *folder*, with mode 0700, if need be, in one that must be there."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        give_to_owner_of(folder.parent, folder)


@contextmanager
def acting_as_owner_of(folder: Path) -> Iterator[None]:
    """Where we are root, be meanwhile the user and group that *folder* belongs to.

    What is made is theirs, and no link that they could lay leads us where they may not go.  It
    holds for all threads of the process.
    """
    if os.geteuid() != 0:
        yield
        return
    owner, group = folder.stat(), os.getegid()
    os.setegid(owner.st_gid)
    try:
        os.seteuid(owner.st_uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)


def make_folders(folder: Path) -> None:
    """Make *folder*, with mode 0700, and those above it that are missing."""
    for place in reversed([folder, *folder.parents]):
        if not place.exists():
            make_folder(place)


def write_private(path: Path, content: bytes) -> None:
    """Make or replace the file *path*, durably, with mode 0600; it appears whole or not at all.

    It belongs to the owner of its directory, where we are root.
    """
    owner = path.parent.stat()
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            if os.geteuid() == 0:
                os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def name_of(user: int) -> str:
    """The name of a user, in the form that sudo takes where it has none."""
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"'#{user}'"


def remedy_for(place: Path) -> str:
    """What to do when *place* may not be used by us."""
    # Where we may not even look at it, the directory that forbids that says whose it is.
    place = next(each for each in (place, *place.parents) if os.path.exists(each))
    owner = place.stat().st_uid
    remedy = f"run as the user who owns it: sudo -u {name_of(owner)} mailsvc …"
    if owner == 0:
        remedy += f", or give it to the user that runs the service: chown -R USER {place}"
    return remedy
