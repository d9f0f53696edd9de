"""Exim as a final destination: its appendfile transport delivers into maildirs.

Its 250 means that the message is in the spool, synced; a process for each message delivers it.
Limits on connections and on messages in one connection are lifted, so that each message is
delivered at once.  Paths are compiled in and it wants a user of its own, so it runs in a private
view of the file system, where its configuration is the one it trusts.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.bench.peers import DOMAIN, SESSION_LIMIT, Peer, Server, Site, mail_owner, said_by
from tests.bench.process import ServerProcess, free_port, private_view, user_in, with_users

_PROGRAM = "/usr/sbin/exim4"

#: The user that Debian builds it for.
_USERS = {"Debian-exim": "/var/spool/exim4"}

_CONFIGURATION = """\
primary_hostname = mx.{domain}
spool_directory = {site}/spool
log_file_path = {site}/logs/%s
pid_file_path = {site}/exim.pid
exim_path = {site}/exim4
local_interfaces = 127.0.0.1
daemon_smtp_ports = {port}
domainlist local_domains = {domain}
acl_smtp_rcpt = recipient
smtp_accept_max = {limit}
smtp_accept_max_per_connection = 1000000
smtp_accept_queue_per_connection = 0
tls_advertise_hosts =
keep_environment =

begin acl

recipient:
  accept domains = +local_domains

begin routers

account:
  driver = accept
  domains = +local_domains
  local_parts = lsearch;{site}/accounts
  transport = maildir

begin transports

maildir:
  driver = appendfile
  directory = {site}/mail/{domain}/$local_part_data
  maildir_format
  return_path_add
  envelope_to_add
  user = {owner.uid}
  group = {owner.gid}

begin retry

* * F,1h,5s
"""


@dataclass
class Exim(Peer):
    """Exim in the foreground, with a private configuration and spool."""

    name: str = "exim"

    def missing(self) -> str:
        return self.needs(_PROGRAM)

    def version(self) -> str:
        with tempfile.TemporaryDirectory() as etc:
            words = said_by(private_view([str(self.find(_PROGRAM)), "-bV"],
                                         layers={"/etc": with_users(Path(etc), _USERS)})).split()
        return "Exim " + "".join(words[2:3])

    def start(self, site: Site) -> Server:
        owner = mail_owner()
        site.make_maildirs(owner)
        port = free_port()
        site.write("accounts", "".join(f"{name}: {name}\n" for name in site.local_parts))
        process = self.launch(site, _CONFIGURATION.format(
            site=site.directory, domain=DOMAIN, owner=owner, port=port, limit=SESSION_LIMIT))
        return Server(process, site, owner, smtp=("127.0.0.1", port)).wait_until_ready()

    def launch(self, site: Site, configuration: str, resolver: str | None = None) -> ServerProcess:
        """Run it with *configuration*, by which its program is ``exim4`` in the site's directory,
        its spool ``spool`` and its logs in ``logs``.

        :param resolver: its ``resolv.conf``, should it not be the host's.
        """
        # It executes itself, as its user, who may not reach where it was unpacked.
        program = Path(shutil.copy2(self.find(_PROGRAM), site.directory / "exim4"))
        site.write("etc/exim4/exim4.conf", configuration)
        etc = with_users(site.directory / "etc", _USERS)
        if resolver is not None:
            site.write("etc/resolv.conf", resolver)
        for name in ("spool", "logs"):
            (site.directory / name).mkdir()
            os.chown(site.directory / name, *user_in(etc, "Debian-exim"))
        return ServerProcess(private_view([str(program), "-bdf", "-q1m"], layers={"/etc": etc}),
                             site.directory / "stderr")
