"""Postfix as a final destination: virtual(8) delivers into maildirs.

Its 250 means that the message is in the queue, synced; delivery follows.  Defaults, except the
limit on connections.  It logs through its own postlogd(8).
"""

from __future__ import annotations

import grp
import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from tests.bench.peers import DOMAIN, SESSION_LIMIT, Peer, Server, Site, mail_owner, said_by
from tests.bench.process import ServerProcess, free_port

_DAEMONS = "/usr/lib/postfix/sbin"

_MAIN = """\
compatibility_level = 3.6
queue_directory = {site}/queue
data_directory = {site}/data
daemon_directory = {daemons}
maillog_file = {site}/log
maillog_file_prefixes = {site}
myhostname = mx.{domain}
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
virtual_mailbox_domains = {domain}
virtual_mailbox_base = {site}/mail/{domain}
virtual_mailbox_maps = texthash:{site}/accounts
virtual_minimum_uid = 1
virtual_uid_maps = static:{owner.uid}
virtual_gid_maps = static:{owner.gid}
alias_maps =
alias_database =
"""

#: The services of the master.cf that Postfix ships, without chroot and without what is not used.
_MASTER = """\
127.0.0.1:{port} inet n - n - {limit} smtpd
pickup    unix  n       -       n       60      1       pickup
cleanup   unix  n       -       n       -       0       cleanup
qmgr      unix  n       -       n       300     1       qmgr
rewrite   unix  -       -       n       -       -       trivial-rewrite
bounce    unix  -       -       n       -       0       bounce
defer     unix  -       -       n       -       0       bounce
trace     unix  -       -       n       -       0       bounce
verify    unix  -       -       n       -       1       verify
flush     unix  n       -       n       1000?   0       flush
proxymap  unix  -       -       n       -       -       proxymap
proxywrite unix -       -       n       -       1       proxymap
error     unix  -       -       n       -       -       error
retry     unix  -       -       n       -       -       error
discard   unix  -       -       n       -       -       discard
virtual   unix  -       n       n       -       -       virtual
anvil     unix  -       -       n       -       1       anvil
scache    unix  -       -       n       -       1       scache
postlog   unix-dgram n  -       n       -       1       postlogd
"""

#: Directories of the queue: name, mode, whether Postfix owns it, whether postdrop may enter.
_QUEUE = (("active", 0o700), ("bounce", 0o700), ("corrupt", 0o700), ("defer", 0o700),
          ("deferred", 0o700), ("flush", 0o700), ("hold", 0o700), ("incoming", 0o700),
          ("private", 0o700), ("saved", 0o700), ("trace", 0o700), ("maildrop", 0o730),
          ("public", 0o710))


@dataclass
class Postfix(Peer):
    """Postfix with a private configuration, queue and data directory."""

    name: str = "postfix"

    def missing(self) -> str:
        return self.needs(f"{_DAEMONS}/master")

    def version(self) -> str:
        return "Postfix " + said_by(["postconf", "-d", "-h", "mail_version"])

    def start(self, site: Site) -> Server:
        owner = mail_owner()
        site.make_maildirs(owner)
        port = free_port()
        site.write("etc/main.cf", _MAIN.format(site=site.directory, domain=DOMAIN, owner=owner,
                                               daemons=_DAEMONS))
        site.write("etc/master.cf", _MASTER.format(port=port, limit=SESSION_LIMIT))
        site.write("accounts", "".join(f"{name}@{DOMAIN} {name}/\n" for name in site.local_parts))
        self._make_queue(site.directory)
        process = ServerProcess([f"{_DAEMONS}/master", "-c", str(site.directory / "etc"), "-d"],
                                site.directory / "stderr")
        return Server(process, site, owner, smtp=("127.0.0.1", port)).wait_until_ready()

    @staticmethod
    def _make_queue(directory: Path) -> None:
        postfix = pwd.getpwnam("postfix").pw_uid
        postdrop = grp.getgrnam("postdrop").gr_gid
        for name in ("queue", "queue/pid"):
            (directory / name).mkdir()
        for name, mode in (("data", 0o700), *((f"queue/{name}", mode) for name, mode in _QUEUE)):
            path = directory / name
            path.mkdir()
            os.chown(path, postfix, postdrop if mode & 0o070 else -1)
            path.chmod(mode)
