"""What an OSError means to a peer.

The peer learns what to do; the operator finds path, error and occasion in the log.
"""

from __future__ import annotations

import errno
import os

from twisted.logger import Logger
from twisted.python.failure import Failure

from mailsvc.errors import MailFailure, StorageFull, TemporaryFailure

_log = Logger()


def mail_failure(error: OSError, occasion: str, **about: object) -> MailFailure:
    """Log *error* and return the failure to report.

    *occasion* completes "the store could not …"; *about* are fields for the log.
    """
    path = error.filename
    _log.error(
        "the store could not {occasion}: {error} ({path})",
        occasion=occasion, error=os.strerror(error.errno or 0),
        errno=errno.errorcode.get(error.errno or 0, ""),
        path=os.fsdecode(path) if isinstance(path, str | bytes) else "", **about)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull("The mail storage is full; try again later.")
    return TemporaryFailure("The mail storage is not working at the moment; try again later.")


def explain(failure: Failure, occasion: str, **about: object) -> Failure:
    """An errback: an OSError becomes the failure to report; any other is passed on."""
    if isinstance(failure.value, OSError):
        raise mail_failure(failure.value, occasion, **about)
    return failure
