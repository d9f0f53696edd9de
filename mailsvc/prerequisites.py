"""What has to be so before the service can start, besides what its parts find out by themselves.

Each function refuses with a :class:`CannotStart`, whose text says what to do.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress

from twisted.cred.checkers import ICredentialsChecker

from mailsvc.acme.limits import CHALLENGES
from mailsvc.config import Settings
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
    if not settings.acme.names:
        return
    if not settings.acme.agreed:
        raise CannotStart(
            f"mailsvc cannot start: acme.names is set, and acme.agreed is not: read the terms of "
            f"service of {settings.acme.directory} and set it to true, or take acme.names out")
    listeners, kind = settings.listeners, settings.acme.challenge
    if not (listeners.acme or (
            kind == "tls-alpn-01" and (listeners.console or listeners.api))):
        raise CannotStart(
            "mailsvc cannot start: acme.names is set, and the authority would find nobody to "
            f'answer: give listeners.acme an endpoint, as ["tcp:{CHALLENGES[kind]}"], or take '
            "acme.names out")


def refuse_unusable(authorities: str) -> None:
    """Do not serve with authorities that nobody could be verified by: mail would go unprotected."""
    try:
        Trust(authorities=authorities).connections("localhost")
    except Untrusted as problem:
        raise CannotStart(
            f"mailsvc cannot start: relay.authorities: {problem.text}") from problem


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
        except FileNotFoundError:
            raise CannotStart(
                f"mailsvc cannot start: there is no directory {data} (service.data); make it for "
                f"the user that runs mailsvc: install -d -o USER -g USER -m 700 {data}") from None
        except PermissionError:
            user = name_of(os.geteuid())
            raise CannotStart(
                f"mailsvc cannot start: {user} may not write in {data} (service.data); give it to "
                f"the user that runs mailsvc: chown -R {user} {data}") from None
