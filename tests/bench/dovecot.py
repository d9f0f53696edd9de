"""Dovecot: LMTP into maildirs, and POP3 out of them.

In its default mode each POP3 connection gets a login process and each session a mail process of its
own.  ``dovecot-perf`` keeps both for further sessions, as its documentation recommends for busy
servers, and caches successful logins.  The limits on processes are raised in both.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.bench.peers import (
    DOMAIN,
    PASSWORD,
    SESSION_LIMIT,
    Peer,
    Server,
    Site,
    mail_owner,
    said_by,
)
from tests.bench.process import ServerProcess, free_port

_CONFIGURATION = """\
base_dir = {site}/run
state_dir = {site}/state
log_path = {site}/log
protocols = lmtp pop3
listen = 127.0.0.1
ssl = no
disable_plaintext_auth = no
auth_mechanisms = plain
mail_location = maildir:{site}/mail/{domain}/%n
first_valid_uid = 1
default_client_limit = 5000
passdb {{
  driver = passwd-file
  args = scheme=PLAIN username_format=%u {site}/accounts
}}
userdb {{
  driver = static
  args = uid={owner.uid} gid={owner.gid} home={site}/mail/{domain}/%n
}}
service lmtp {{
  inet_listener lmtp {{
    address = 127.0.0.1
    port = {lmtp}
  }}
  process_limit = {limit}
}}
service pop3-login {{
  inet_listener pop3 {{
    port = {pop3}
  }}
  inet_listener pop3s {{
    port = 0
  }}
  process_limit = {limit}
}}
service pop3 {{
  process_limit = {limit}
}}
"""

_PERFORMANCE = """\
service pop3-login {
  service_count = 0
  process_min_avail = 2
}
service pop3 {
  service_count = 1000
  process_min_avail = 20
}
auth_cache_size = 16M
auth_cache_ttl = 1 hour
"""


@dataclass
class Dovecot(Peer):
    """Dovecot with a private configuration, as it comes or in its high-performance mode."""

    name: str = "dovecot"
    fetched: bool = True
    performance: bool = False

    def __post_init__(self) -> None:
        if self.performance:
            self.name = "dovecot-perf"
            self.receives = False  # LMTP has one mode

    def missing(self) -> str:
        if self.find("/usr/lib/dovecot/pop3") is None or self.find("/usr/lib/dovecot/lmtp") is None:
            return "dovecot-pop3d or dovecot-lmtpd is not installed"
        return self.needs("/usr/sbin/dovecot")

    def version(self) -> str:
        return "Dovecot " + said_by(["/usr/sbin/dovecot", "--version"]).split()[0]

    def start(self, site: Site) -> Server:
        owner = mail_owner()
        site.make_maildirs(owner)
        site.write("accounts", "".join(f"{name}@{DOMAIN}:{PASSWORD}\n"
                                       for name in site.local_parts))
        lmtp, pop3 = free_port(), free_port()
        configuration = site.write("dovecot.conf", _CONFIGURATION.format(
            site=site.directory, domain=DOMAIN, owner=owner, lmtp=lmtp, pop3=pop3,
            limit=SESSION_LIMIT) + (_PERFORMANCE if self.performance else ""))
        process = ServerProcess(["/usr/sbin/dovecot", "-F", "-c", str(configuration)],
                                site.directory / "stderr")
        return Server(process, site, owner, smtp=("127.0.0.1", lmtp), lmtp=True,
                      pop3=("127.0.0.1", pop3)).wait_until_ready()
