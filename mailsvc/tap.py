"""``twistd mailsvc``: the options, and the service they make.

twistd's own options keep their meaning: ``--logfile`` and ``--nodaemon`` say where the log goes and
``[log]`` in the configuration says in what form; ``--logger`` and ``--syslog`` replace both.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

from twisted.cred.credentials import IUsernameHashedPassword, IUsernamePassword
from twisted.cred.strcred import AuthOptionMixin, InvalidAuthArgumentString
from twisted.logger import ILogObserver, Logger
from twisted.python import usage
from twisted.python.failure import Failure
from twisted.python.logfile import LogFile

from mailsvc import log
from mailsvc.config import DEFAULT_PATH, ConfigurationError, Settings, load
from mailsvc.credentials import IToken
from mailsvc.listeners import KINDS, CannotStart
from mailsvc.service import MailService, build
from mailsvc.toml import literal


def _endpoints(kind: str) -> Callable[[Options, str], None]:
    def option(self: Options, endpoint: str) -> None:
        self[kind].append(endpoint)

    option.__doc__ = f"Listen on this ENDPOINT, instead of listeners.{kind} of the configuration."
    return option


class Options(usage.Options, AuthOptionMixin):
    """What may stand behind ``twistd mailsvc``."""

    synopsis = "[options]"
    longdesc = (
        "Receives mail by SMTP into maildirs and hands it out by POP3.  An ENDPOINT is a Twisted "
        "endpoint string: tcp:25, tcp:2525:interface=127.0.0.1, tcp6:25, "
        "systemd:domain=INET6:index=0, haproxy:tcp:25.  Those for endpoints, --auth and --set may"
        " be given several times.  Accounts are made with `mailsvc account add`; "
        "`mailsvc config reference` lists the keys of the configuration file; `mailsvc dev` starts "
        "a service to try things out, without twistd.")
    supportedInterfaces = (IUsernamePassword, IUsernameHashedPassword, IToken)
    optParameters = [  # noqa: RUF012 - so usage.Options has it
        ["config", "c", None,
         f"Configuration file [default: {DEFAULT_PATH} if there is one]"],
    ]

    settings: Settings

    def __init__(self) -> None:
        super().__init__()
        for name in (*KINDS, "set"):
            self[name] = []

    opt_smtp, opt_submission, opt_submissions, opt_lmtp, opt_pop3, opt_pop3s = map(
        _endpoints, KINDS)

    def opt_auth(self, description: str) -> None:
        """Check passwords or tokens by this plug-in; see --help-auth."""
        try:
            super().opt_auth(description)
        except usage.UsageError as error:
            if isinstance(error.__context__, InvalidAuthArgumentString):
                raise CannotStart(f"--auth {description.partition(':')[0]}: {error.__context__}"
                                  ) from error
            raise

    def opt_set(self, assignment: str) -> None:
        """Override one key of the configuration: SECTION.KEY=VALUE"""
        self["set"].append(assignment)

    def postOptions(self) -> None:
        overrides = list(self["set"])
        overrides += (f"listeners.{kind}={literal(self[kind])}" for kind in KINDS if self[kind])
        try:
            self.settings = load(self["config"], overrides)
        except ConfigurationError as error:
            # Not UsageError: twistd would put a page about its own options before them.
            raise CannotStart(f"the configuration has mistakes:\n{error}") from error


def makeService(options: Options) -> MailService:
    """The service for *options*, which twistd has parsed."""
    # Not at the top: twistd may still have to choose a reactor when it reads the options.
    from twisted.internet import reactor  # noqa: PLC0415

    service = build(options.settings, reactor, checkers=options.get("credCheckers", ()))
    service.for_good = True
    service.log_observer = _log_observer(options.settings, options.parent or {}, reactor)
    service.ready.addErrback(_give_up, reactor)
    return service


def _give_up(failure: Failure, reactor: Any) -> None:
    """End the process: a listener turned out, too late to raise it, not to be possible."""
    Logger("mailsvc").critical("{problem}", problem=str(failure.value))
    # twistd has no other way to end with a status.
    reactor.addSystemEventTrigger("after", "shutdown", os._exit, 1)
    reactor.stop()


def _log_observer(
    settings: Settings, twistd: Mapping[str, Any], reactor: Any
) -> ILogObserver | None:
    """An observer in the configured form that writes to where *twistd* would."""
    if twistd.get("logger") or twistd.get("syslog"):
        return None
    path = twistd.get("logfile") or ("-" if twistd.get("nodaemon", True) else "twistd.log")
    if path == "-":
        return log.observer(settings.log, sys.stdout)
    # As the service's user, who has to begin new files; and it names who writes to whom.
    file = LogFile.fromFullPath(path, defaultMode=0o640)
    if os.geteuid() == 0:
        uid, gid = (twistd.get(key) for key in ("uid", "gid"))
        os.chown(path, -1 if uid is None else int(uid), -1 if gid is None else int(gid))
    # As twistd does: SIGUSR1 begins a new file, unless somebody else has a use for it.
    if not signal.getsignal(signal.SIGUSR1):
        signal.signal(signal.SIGUSR1, lambda *_: reactor.callFromThread(file.rotate))
    return log.observer(settings.log, file)
