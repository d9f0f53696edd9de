"""``twistd mailsvc``: the options, and the service they make.

twistd's own options keep their meaning: ``--logfile`` and ``--nodaemon`` say where the log goes and
``[log]`` in the configuration says in what form; ``--logger`` and ``--syslog`` replace both.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import IO, Any, cast

from twisted.cred.credentials import IUsernameHashedPassword, IUsernamePassword
from twisted.cred.strcred import AuthOptionMixin, InvalidAuthArgumentString
from twisted.logger import Logger
from twisted.python import usage
from twisted.python.failure import Failure

from mailsvc import contradictions, log
from mailsvc.config import DEFAULT_PATH, ConfigurationError, Settings, load
from mailsvc.credentials import IToken
from mailsvc.front import Configuration
from mailsvc.listeners import KINDS, CannotStart
from mailsvc.log import SharedLogFile, no_new_log
from mailsvc.service import MailService
from mailsvc.serving import serve
from mailsvc.stopping import StopSignals
from mailsvc.succession import Origin, Predecessor, command
from mailsvc.toml import literal
from mailsvc.workers import Supervisor

_log = Logger("mailsvc")

#: The pid file of twistd, unless it is told another.
_PIDFILE = "twistd.pid"


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
        self._checkers: list[str] = []

    (opt_smtp, opt_submission, opt_submissions, opt_lmtp, opt_odmr, opt_pop3, opt_pop3s,
     opt_http, opt_acme, opt_console, opt_api) = map(_endpoints, KINDS)

    def opt_auth(self, description: str) -> None:
        """Check passwords or tokens by this plug-in; see --help-auth."""
        self._checkers.append(description)
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
        try:
            self.settings = self._load()
        except ConfigurationError as error:
            # Not UsageError: twistd would put a page about its own options before them.
            raise CannotStart(f"the configuration has mistakes:\n{error}") from error

    def _load(self) -> Settings:
        """The settings, of which a service can be made.

        :raises ConfigurationError: with every mistake.
        """
        overrides = list(self["set"])
        overrides += (f"listeners.{kind}={literal(self[kind])}" for kind in KINDS if self[kind])
        settings = load(self["config"], overrides)
        contradictions.refuse(settings)
        return settings

    def read_again(self) -> Configuration:
        """What the configuration, and the files that --auth names, say now.

        :raises ConfigurationError: with every mistake.
        :raises CannotStart: when a checker cannot be made.
        """
        again = Options()
        for description in self._checkers:
            again.opt_auth(description)
        return self._load(), tuple(again.get("credCheckers", ()))


def makeService(options: Options) -> MailService | Supervisor:
    """The service for *options*, which twistd has parsed."""
    # Not at the top: twistd may still have to choose a reactor when it reads the options.
    from twisted.internet import reactor as installed  # noqa: PLC0415

    reactor: Any = installed
    settings = options.settings
    twistd: Mapping[str, Any] = options.parent or {}
    file = _log_file(twistd)
    service = serve(settings, reactor, checkers=options.get("credCheckers", ()),
                    read_again=options.read_again, log_file=file,
                    predecessor=Predecessor.from_environment())
    service.for_good = True

    def let_go() -> None:
        # Both are the successor's now: twistd would remove the one at its end, the other would be
        # rotated by two.
        if options.parent is not None:
            options.parent["pidfile"] = ""
        if file is not None:
            file.rotateLength = None

    pidfile = twistd.get("pidfile") or ""
    # In the foreground nobody reads the file that twistd makes unasked.
    unread = bool(twistd.get("nodaemon")) and pidfile == os.path.abspath(_PIDFILE)
    service.origin = Origin(command(), os.getcwd(), pidfile, let_go, watched=not unread)
    StopSignals().serve(reactor, service.hurry)
    if file is not None:
        service.log_observer = log.observer(settings.log, log.ByTurns(cast(IO[str], file)))
    elif not (twistd.get("logger") or twistd.get("syslog")):
        service.log_observer = log.observer(settings.log, log.ByTurns(sys.stdout))
    # As twistd does: SIGUSR1 begins a new file, unless somebody else has a use for it.
    if not signal.getsignal(signal.SIGUSR1):
        rotate = (no_new_log if file is None else
                  service.rotate_log if isinstance(service, Supervisor) else file.rotate)
        signal.signal(signal.SIGUSR1, lambda *_: reactor.callFromThread(rotate))
    if signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL:
        signal.signal(signal.SIGUSR2,
                      lambda *_: reactor.callFromThread(service.upgrade_by_signal))
    if not isinstance(service, Supervisor) and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda *_: reactor.callFromThread(service.hang_up))
    for outcome in service.ready, service.broken:
        outcome.addErrback(_give_up, reactor)
    return service


def _give_up(failure: Failure, reactor: Any) -> None:
    """End the process: a listener turned out, too late to raise it, not to be possible."""
    _log.critical("{problem}", problem=str(failure.value))
    # twistd has no other way to end with a status.
    reactor.addSystemEventTrigger("after", "shutdown", os._exit, 1)
    reactor.stop()


def _log_file(twistd: Mapping[str, Any]) -> SharedLogFile | None:
    """The file that *twistd* would log to, or None when it would not to a file."""
    path = twistd.get("logfile") or ("-" if twistd.get("nodaemon", True) else "twistd.log")
    if path == "-" or twistd.get("logger") or twistd.get("syslog"):
        return None
    # As the service's user, who has to begin new files; and it names who writes to whom.
    file: SharedLogFile = SharedLogFile.fromFullPath(path, defaultMode=0o640)
    if os.geteuid() == 0:
        uid, gid = (twistd.get(key) for key in ("uid", "gid"))
        os.chown(path, -1 if uid is None else int(uid), -1 if gid is None else int(gid))
    return file
