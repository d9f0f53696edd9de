"""OpenSMTPD as a final destination: a mail.maildir(8) process delivers each message.

Its 250 means that the message is in the queue, not synced.  Its limit on messages in one session is
lifted.  Paths are compiled in and it wants users of its own, so it runs in a private view of the
file system.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.bench.peers import DOMAIN, Peer, Server, Site, mail_owner, said_by
from tests.bench.process import ServerProcess, free_port, private_view, with_users

_PROGRAM = "/usr/sbin/smtpd"
_LIBEXEC = "/usr/libexec"
_USERS = {"opensmtpd": "/var/lib/opensmtpd/empty", "opensmtpq": "/var/lib/opensmtpd/empty"}

_CONFIGURATION = """\
smtp limit max-mails 1000000
table accounts {{ "@{domain}" = "mail" }}
listen on 127.0.0.1 port {port} hostname mx.{domain}
action "maildir" maildir "{site}/mail/{domain}/%{{rcpt.user}}" virtual <accounts>
match from any for domain "{domain}" action "maildir"
"""


@dataclass
class OpenSmtpd(Peer):
    """OpenSMTPD in the foreground, with a private configuration and queue."""

    name: str = "opensmtpd"

    def missing(self) -> str:
        return self.needs(_PROGRAM)

    def version(self) -> str:
        return "OpenSMTPD " + said_by([str(self.find(_PROGRAM)), "-h"]).split()[-1]

    def start(self, site: Site) -> Server:
        owner = mail_owner()
        site.make_maildirs(owner)
        port = free_port()
        # It asks for the name of each client: from /etc/hosts, as the other servers do.
        process = self.launch(site, _CONFIGURATION.format(
            site=site.directory, domain=DOMAIN, port=port), "lookup file\n")
        return Server(process, site, owner, smtp=("127.0.0.1", port)).wait_until_ready()

    def launch(self, site: Site, configuration: str, resolver: str, *prefix: str) -> ServerProcess:
        """Run it with *configuration* and *resolver* for its ``resolv.conf``; it logs to ``log``.

        :param prefix: a command that ends by executing the one behind it.
        """
        written = site.write("smtpd.conf", configuration)
        for path in ("spool", "lib/opensmtpd/empty", "run"):
            (site.directory / path).mkdir(parents=True)
        layers = {"/etc": with_users(site.directory / "etc", _USERS)}
        site.write("etc/resolv.conf", resolver)
        if (self.unpacked / _LIBEXEC.lstrip("/")).is_dir():
            layers[_LIBEXEC] = self.unpacked / _LIBEXEC.lstrip("/")
        command = private_view(
            [*prefix, str(self.find(_PROGRAM)), "-d", "-f", str(written)], layers=layers,
            binds={"/var/spool": site.directory / "spool", "/var/lib": site.directory / "lib",
                   "/run": site.directory / "run"})
        return ServerProcess(command, site.directory / "log")
