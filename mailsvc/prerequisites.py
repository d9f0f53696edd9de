"""What has to be so before the service can start, besides what its parts find out by themselves.

Each function refuses with a :class:`CannotStart`, whose text says what to do.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from contextlib import suppress

from twisted.cred.checkers import ICredentialsChecker

from mailsvc import contradictions
from mailsvc.config import Settings
from mailsvc.holding import NAME, Holding, InUse
from mailsvc.listeners import CannotStart
from mailsvc.ownership import name_of
from mailsvc.store.tree import sync_directory
from mailsvc.trust import Trust, Untrusted


def refuse_root(settings: Settings) -> None:
    """Do not serve as root what belongs to somebody else, who could not use it afterwards."""
    try:
        owner = os.stat(settings.service.data).st_uid
    except OSError:
        return  # opening what lies there tells better what is wrong
    if os.geteuid() == 0 and owner != 0:
        name = name_of(owner)
        raise CannotStart(
            f"mailsvc cannot start: {settings.service.data} belongs to {name}, and what root made "
            f"there {name} could not use; give twistd --uid {name} --gid {name}, or run it as "
            f"{name}: runuser -u {name} -- …")


def refuse_unreadable(checkers: Iterable[ICredentialsChecker]) -> None:
    """Do not serve with a file of passwords that would refuse everybody; Twisted only warns."""
    for checker in checkers:
        path = getattr(checker, "filename", None)
        if isinstance(path, str) and not os.access(path, os.R_OK):
            raise CannotStart(f"mailsvc cannot start: --auth: {path} cannot be read by user "
                              f"{os.geteuid()}; name a file that the user who runs the service may "
                              "read")


def refuse_unanswered(settings: Settings) -> None:
    """Do not serve when no certificate will ever come."""
    if (problem := contradictions.unanswered(settings)) is not None:
        raise CannotStart(f"mailsvc cannot start: {problem}")


def refuse_unusable(settings: Settings) -> None:
    """Do not serve with authorities that nobody could be verified by: mail would go unprotected."""
    try:
        Trust(authorities=settings.relay.authorities).connections("localhost")
    except Untrusted as problem:
        raise CannotStart(f"mailsvc cannot start: {settings.where('relay.authorities')}: "
                          f"relay.authorities: {problem.text}") from problem


def make_mail_directory(settings: Settings) -> None:
    """Make the directory that mail lies in, in a data directory that must be there.

    A data directory that is missing is a wrong name or a file system that is not mounted.
    """
    scheme, _, place = settings.service.store.partition(":")
    data = settings.service.data
    if scheme == "maildir" and os.path.dirname(os.path.abspath(place)) == data:
        try:
            with suppress(FileExistsError):
                os.mkdir(place, 0o700)
            # Whoever made it may not have got as far as this, and all mail would go with it.
            sync_directory(os.fsencode(data))
        except OSError as error:
            raise _unusable(data, error) from None


def hold_data(settings: Settings, holding: Holding, inherited: Collection[int] = ()) -> None:
    """Do not serve what another service serves: each would take the other's sockets and work.

    :param inherited: as :meth:`Holding.take` has it.
    """
    data = settings.service.data
    try:
        holding.take(inherited)
    except InUse as problem:
        stop = f"kill {problem.pid}" if problem.pid else f"`fuser -v {data}` names it"
        raise CannotStart(
            f"mailsvc cannot start: {problem} serves the data in {data} already; stop that first "
            f"(systemctl stop mailsvc, or {stop}), or give this one a data directory of its own "
            "(service.data)") from None
    except OSError as error:
        if error.filename == NAME:
            raise CannotStart(
                f"mailsvc cannot start: {data}/{NAME} cannot be used: {error.strerror}; move it "
                "away while no service runs with these data") from None
        raise _unusable(data, error) from None


def _unusable(data: str, error: OSError) -> CannotStart:
    if isinstance(error, FileNotFoundError):
        return CannotStart(
            f"mailsvc cannot start: there is no directory {data} (service.data); make it for "
            f"the user that runs mailsvc: install -d -o USER -g USER -m 700 {data}")
    if isinstance(error, PermissionError):
        user = name_of(os.geteuid())
        return CannotStart(
            f"mailsvc cannot start: {user} may not write in {data} (service.data); give it to "
            f"the user that runs mailsvc: chown -R {user} {data}")
    return CannotStart(f"mailsvc cannot start: {data} (service.data) cannot be used: "
                       f"{error.strerror}; see to that, or name another directory")
