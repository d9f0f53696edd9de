"""Postfix and Dovecot as private instances: configuration, spool and ports of their own.

Both give up root for the mail itself, so that their mail belongs to :data:`OWNER`; run by an
ordinary user, Dovecot runs as that user, and Postfix is started through sudo.
"""

from __future__ import annotations

import getpass
import grp
import os
import pwd
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

PATIENCE = 20.0
ROOT = os.geteuid() == 0
#: Who owns the mail that these daemons write, and must own what Dovecot reads.
OWNER = "nobody" if ROOT else getpass.getuser()
_ACCOUNT = pwd.getpwnam(OWNER)
_GROUP = grp.getgrgid(_ACCOUNT.pw_gid).gr_name


class Daemon:
    """A directory of its own that daemons of several users can reach, removed in the end."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.directory = Path(tempfile.mkdtemp(prefix="mailsvc-test-"))
        self._stack.callback(self._remove)
        self.directory.chmod(0o755)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._stack.close()

    def _remove(self) -> None:
        # Postfix's spool belongs to its own user.
        subprocess.run([*_as_root(), "rm", "-rf", str(self.directory)], check=True)

    def log(self) -> str:
        """What it logged so far."""
        path = self.directory / "log"
        return path.read_text(errors="replace") if path.exists() else ""


class Postfix(Daemon):
    """Postfix with an SMTP listener.

    :param address: where it is; by default on loopback, at any port.
    :param parameters: what to add to main.cf; ``{directory}`` in a value is its directory.
    """

    def __init__(self, program: Callable[[str], str], address: tuple[str, int] | None = None,
                 **parameters: str) -> None:
        self.address = address or ("127.0.0.1", free_port())
        self._postfix = [*_as_root(), program("postfix"), "-c"]
        sendmail = subprocess.run([program("postconf"), "-dh", "sendmail_path"], check=True,
                                  capture_output=True, text=True).stdout.strip()
        self._sendmail = sendmail
        self._parameters = parameters

    def __enter__(self) -> Postfix:
        super().__init__()
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def _start(self) -> None:
        self.configuration = self.directory / "etc"
        for name in ("etc", "spool", "data"):
            (self.directory / name).mkdir()
        subprocess.run([*_as_root(), "chown", "postfix", str(self.directory / "data")], check=True)
        settings = {
            "compatibility_level": "3.6",
            "queue_directory": str(self.directory / "spool"),
            "data_directory": str(self.directory / "data"),
            "maillog_file": str(self.directory / "log"),
            "maillog_file_prefixes": str(self.directory),
            "inet_interfaces": self.address[0],
            "inet_protocols": "ipv4",
            "myhostname": "upstream.example.net",
            "mydestination": "",
            "alias_maps": "",
            "local_recipient_maps": "",
            "smtp_tls_security_level": "none",
            "in_flow_delay": "0",
            **{name: value.replace("{directory}", str(self.directory))
               for name, value in self._parameters.items()},
        }
        (self.configuration / "main.cf").write_text(
            "".join(f"{name} = {value}\n" for name, value in settings.items()))
        (self.configuration / "master.cf").write_text(
            _POSTFIX_SERVICES.format(port=self.address[1]))
        start = [*self._postfix, str(self.configuration), "start"]
        subprocess.run(start, check=True, capture_output=True, timeout=PATIENCE)
        self._stack.callback(self._stop)
        wait_for(self.address)

    def _stop(self) -> None:
        subprocess.run([*self._postfix, str(self.configuration), "stop"], check=True,
                       capture_output=True, timeout=PATIENCE)

    def sendmail(self, message: bytes, recipients: Iterable[str],
                 sender: str = "sender@example.net") -> None:
        """Hand *message* (lines ending in LF) in as a local program would."""
        # As root too: others may not name a configuration of their own.
        subprocess.run([*_as_root(), self._sendmail, "-C", str(self.configuration), "-i",
                        "-f", sender, *recipients], input=message, check=True, timeout=PATIENCE)

    def until_sent(self, count: int) -> None:
        """Wait until *count* deliveries succeeded; fails at once when one is put off or bounces."""
        deadline = time.monotonic() + PATIENCE
        while (log := self.log()).count(" status=sent ") < count:
            assert "status=deferred" not in log and "status=bounced" not in log, log
            assert time.monotonic() < deadline, log
            time.sleep(0.05)


_POSTFIX_SERVICES = """\
{port} inet n - n - - smtpd
pickup unix n - n 1 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
retry unix - - n - - error
error unix - - n - - error
smtp unix - - n - - smtp
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
tlsmgr unix - - n 1000? 1 tlsmgr
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""


class Dovecot(Daemon):
    """Dovecot over the maildirs ``mail/<domain>/<local-part>`` in its directory, password "secret".

    :param more: what else its configuration says, as it stands there.
    :ivar pop3: where it serves POP3.
    :ivar lmtp: where it takes mail by LMTP.
    """

    password = "secret"

    def __init__(self, program: Callable[[str], str], more: str = "", **settings: str) -> None:
        self._dovecot = program("dovecot")
        self._doveadm = program("doveadm")
        self._more = more
        self._settings = settings

    def __enter__(self) -> Dovecot:
        super().__init__()
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def _start(self) -> None:
        self.pop3 = ("127.0.0.1", free_port())
        self.lmtp = ("127.0.0.1", free_port())
        self.mail = self.directory / "mail"
        self.mail.mkdir()
        own(self.mail)
        self.configuration = self.directory / "dovecot.conf"
        self.configuration.write_text(
            _DOVECOT_CONFIGURATION.format(directory=self.directory, user=OWNER, group=_GROUP,
                                          password=self.password, pop3=self.pop3[1],
                                          lmtp=self.lmtp[1])
            + "".join(f"{name} = {value}\n" for name, value in self._settings.items())
            + self._more)
        self._master = subprocess.Popen([self._dovecot, "-F", "-c", str(self.configuration)],
                                        stdin=subprocess.DEVNULL, start_new_session=True)
        self._stack.callback(self._stop)
        wait_for(self.pop3)
        wait_for(self.lmtp)

    def _stop(self) -> None:
        self._master.terminate()
        self._master.wait(PATIENCE)

    def maildir(self, account: str) -> Path:
        local_part, domain = account.rsplit("@", 1)
        return self.mail / domain / local_part

    def doveadm(self, *arguments: str) -> str:
        """What ``doveadm`` prints."""
        return subprocess.run([self._doveadm, "-c", str(self.configuration), *arguments],
                              check=True, capture_output=True, text=True, timeout=PATIENCE).stdout

    def complaints(self) -> list[str]:
        """The lines of its log that are more than information."""
        return [line for line in self.log().splitlines() if ": Info: " not in line]


_DOVECOT_CONFIGURATION = """\
protocols = pop3 lmtp
base_dir = {directory}/run
state_dir = {directory}/state
log_path = {directory}/log
default_internal_user = {user}
default_internal_group = {group}
default_login_user = {user}
ssl = no
listen = 127.0.0.1
disable_plaintext_auth = no
mail_location = maildir:{directory}/mail/%Ld/%Ln
mail_uid = {user}
mail_gid = {group}
first_valid_uid = 1
first_valid_gid = 1
postmaster_address = postmaster@example.org
passdb {{
  driver = static
  args = password={password}
}}
userdb {{
  driver = static
  args = uid={user} gid={group} home={directory}/home/%d/%n allow_all_users=yes
}}
service pop3-login {{
  chroot =
  inet_listener pop3 {{
    port = {pop3}
  }}
  inet_listener pop3s {{
    port = 0
  }}
}}
service lmtp {{
  inet_listener lmtp {{
    address = 127.0.0.1
    port = {lmtp}
  }}
}}
service anvil {{
  chroot =
}}
"""


def _as_root() -> list[str]:
    return [] if ROOT else ["sudo", "-n"]


def own(path: Path) -> None:
    """Give everything at *path* to :data:`OWNER`."""
    if ROOT:
        for entry in (path, *path.rglob("*")):
            os.chown(entry, _ACCOUNT.pw_uid, _ACCOUNT.pw_gid)


def uid() -> int:
    """The numeric id of :data:`OWNER`."""
    return _ACCOUNT.pw_uid


def gid() -> int:
    return _ACCOUNT.pw_gid


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(address: tuple[str, int], patience: float = PATIENCE) -> None:
    """Return once something accepts connections there."""
    deadline = time.monotonic() + patience
    while True:
        try:
            socket.create_connection(address, 1).close()
        except OSError:
            assert time.monotonic() < deadline, f"nothing listens on {address}"
            time.sleep(0.05)
        else:
            return
