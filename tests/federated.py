"""The servers of ``tests/federation.py``: each takes mail from others, and sends to them by DNS.

Each offers STARTTLS with a certificate of its own, and as a sender obeys what it knows of: mailsvc
DANE and MTA-STS; Postfix DANE, and MTA-STS by postfix-mta-sts-resolver; Exim DANE; OpenSMTPD
neither.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from abc import ABC, abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests import daemons
from tests.apart import found
from tests.bench import exim, opensmtpd
from tests.bench import peers as bench
from tests.bench.fetch import UNPACKED
from tests.net import held
from tests.service import Service

#: Where Exim and OpenSMTPD were unpacked: they cannot be installed beside Postfix.
PEERS = Path(os.environ.get("BENCH_PEERS", UNPACKED)).expanduser()
PASSWORD = daemons.Dovecot.password
#: Without trust-ad the C library keeps from programs what the resolver has validated.
RESOLVER = "nameserver 127.0.0.1\noptions trust-ad\n"


@dataclass(frozen=True)
class Ground:
    """What all servers stand on.

    :ivar directory: each has one in it, of its name, with its certificate: fullchain.pem and
        privkey.pem.
    :ivar stack: what ends them.
    :ivar authorities: a PEM file of those whom everybody trusts.
    :ivar mail: where those without POP3 deliver, into ``domain/local-part`` and as
        :data:`tests.daemons.OWNER`.
    :ivar programs: the address of the mail programs.
    :ivar domains: of all servers.
    """

    directory: Path
    stack: ExitStack
    authorities: Path
    mail: Path
    programs: str
    domains: tuple[str, ...]


class End(NamedTuple):
    """What became of mail for a recipient.

    :ivar taken: whether the other side has it.
    :ivar verified: whether the sender says that the other side has proven who it is.
    :ivar reason: why it was not sent.
    """

    taken: bool
    verified: bool
    reason: str = ""


class Site(ABC):
    """The server *name*, running at *address*, for its domains: those that begin with its name.

    :ivar user: who sends.
    """

    def __init__(self, name: str, address: str, ground: Ground) -> None:
        self.name, self.address, self.ground = name, address, ground
        self.host, self.user = f"mx.{name}.sts.example", f"alice@{name}.sts.example"
        self.directory = ground.directory / name
        self.domains = [each for each in ground.domains if each.startswith(f"{name}.")]
        self.start()

    @abstractmethod
    def start(self) -> None:
        """Return when it takes mail."""

    @abstractmethod
    def log(self) -> str:
        """What it logged up to now."""

    @abstractmethod
    def ends(self) -> dict[str, End]:
        """What became of the mail that it sent, by recipient, as far as it has tried."""


class Mailsvc(Site):
    """Ours, whose users log in to send."""

    def start(self) -> None:
        options = ["--set", f"relay.authorities={self.ground.authorities}",
                   "--set", f'relay.bind=["{self.address}"]']
        for listener, port in ("smtp", 25), ("submission", 587), ("pop3", 110):
            options += [f"--{listener}", f"{self.address}:{port}"]
        accounts = (self.user, *(f"bob@{domain}" for domain in self.domains))
        self._service = self.ground.stack.enter_context(Service(
            self.directory / "data", tuple(f"{each}:{PASSWORD}" for each in accounts),
            ("--hostname", self.host, "--tls-cert", str(self.directory / "fullchain.pem"),
             "--tls-key", str(self.directory / "privkey.pem"), "--workers", "1", *options)))

    def log(self) -> str:
        return self._service.log.read_text()

    def ends(self) -> dict[str, End]:
        known = {each["domain"]: each for each in json.loads(held(self._service, "list", "--json"))}
        ends = {}
        for state, recipient, reply in re.findall(
                r" (relayed|deferred) recipient=(\S+) .*?attempt=\d+: (.*)", self.log()):
            # A certificate for the name is proof, also where none was needed: what is refused tells
            # by what it was held to.
            proven = known.get(recipient.partition("@")[2], {}).get("verified")
            ends[recipient] = End(True, bool(proven)) if state == "relayed" else End(
                False, False, reply)
        return ends


class Postfix(Site):
    """Postfix with postfix-mta-sts-resolver."""

    def start(self) -> None:
        resolver = self.directory / "mta-sts.yml"
        resolver.write_text("host: 127.0.0.1\nport: 8461\ncache:\n  type: internal\n"
                            "default_zone:\n  timeout: 30\n")
        with (self.directory / "mta-sts.log").open("wb") as log:
            policies = subprocess.Popen(
                [found("mta-sts-daemon"), "-c", str(resolver)], stdout=log, stderr=log,
                env={**os.environ, "SSL_CERT_FILE": str(self.ground.authorities)})
        self.ground.stack.callback(policies.wait, daemons.PATIENCE)
        self.ground.stack.callback(policies.terminate)
        daemons.wait_for(("127.0.0.1", 8461))
        maildirs = self.directory / "maildirs"
        maildirs.write_text("".join(f"bob@{each} {each}/bob/\n" for each in self.domains))
        self._daemon = self.ground.stack.enter_context(daemons.Postfix(
            found, (self.address, 25), myhostname=self.host,
            mynetworks=f"{self.ground.programs}/32", smtp_bind_address=self.address,
            virtual_mailbox_domains=" ".join(self.domains),
            virtual_mailbox_base=str(self.ground.mail),
            virtual_mailbox_maps=f"texthash:{maildirs}", virtual_minimum_uid="1",
            virtual_uid_maps=f"static:{daemons.uid()}", virtual_gid_maps=f"static:{daemons.gid()}",
            smtpd_tls_security_level="may",
            smtpd_tls_chain_files=f"{self.directory}/privkey.pem {self.directory}/fullchain.pem",
            smtp_host_lookup="dns", smtp_dns_support_level="dnssec",
            smtp_tls_security_level="dane", smtp_tls_loglevel="1",
            smtp_tls_CAfile=str(self.ground.authorities),
            smtp_tls_policy_maps="socketmap:inet:127.0.0.1:8461:postfix"))

    def log(self) -> str:
        return self._daemon.log()

    def ends(self) -> dict[str, End]:
        log = self.log()
        proven = set(re.findall(r" Verified TLS connection established to mx\.([^[]+)\[", log))
        return {recipient: End(status == "sent", recipient.partition("@")[2] in proven,
                               "" if status == "sent" else reply)
                for recipient, status, reply in re.findall(
                    r" to=<([^>]+)>, relay=(?!virtual).* status=(\w+) \((.*)\)", log)}


_EXIM = """\
primary_hostname = {host}
spool_directory = {directory}/spool
log_file_path = {directory}/logs/%s
pid_file_path = {directory}/exim.pid
exim_path = {directory}/exim4
local_interfaces = {address}
daemon_smtp_ports = 25
domainlist local_domains = {domains}
acl_smtp_rcpt = recipient
tls_advertise_hosts = *
tls_certificate = {directory}/fullchain.pem
tls_privatekey = {directory}/privkey.pem
dns_dnssec_ok = 1
remote_max_parallel = 20
log_selector = +tls_certificate_verified
keep_environment =

begin acl

recipient:
  accept domains = +local_domains
  accept hosts = {programs}

begin routers

account:
  driver = accept
  domains = +local_domains
  local_parts = bob
  transport = maildir

exchangers:
  driver = dnslookup
  domains = ! +local_domains
  transport = smtp

begin transports

maildir:
  driver = appendfile
  directory = {mail}/${{lookup{{$domain}}lsearch{{{directory}/domains}}}}/bob
  maildir_format
  return_path_add
  user = {uid}
  group = {gid}

smtp:
  driver = smtp
  interface = {address}

begin retry

* * F,1h,1h
"""


class Exim(Site):
    """Exim, in a private view of the file system."""

    def start(self) -> None:
        (self.directory / "domains").write_text("".join(f"{each}: {each}\n"
                                                        for each in self.domains))
        server = exim.Exim(unpacked=PEERS)
        site = bench.Site(self.directory, ())
        process = server.launch(site, _EXIM.format(
            host=self.host, directory=self.directory, address=self.address,
            domains=" : ".join(self.domains), programs=self.ground.programs,
            mail=self.ground.mail, uid=daemons.uid(), gid=daemons.gid()), RESOLVER)
        self.ground.stack.callback(process.stop)
        process.wait_for((self.address, 25), b"220")

    def log(self) -> str:
        return "".join(each.read_text() for each in (self.directory / "logs").glob("*"))

    def ends(self) -> dict[str, End]:
        ends = {}
        for sign, recipient, rest in re.findall(r" (=>|->|==|\*\*) (\S+@\S+) (.*)", self.log()):
            taken = sign in ("=>", "->")
            # What is put off is not tried anew in time, which is noted as well.
            if "T=smtp" in rest and (taken or recipient not in ends):
                ends[recipient] = End(taken, "CV=dane" in rest, "" if taken else rest)
        return ends


_KEYS = Path(__file__).with_name("opensmtpd_keys.c")
#: It would let seconds pass between its connections to a host.
_OPENSMTPD = """\
mta limit conn-delay-host 0 conn-delay-route 0 conn-delay-domain 0 reconn-delay-route 0
pki here cert "{directory}/fullchain.pem"
pki here key "{directory}/privkey.pem"
table accounts {{ {accounts} }}
listen on {address} port 25 hostname {host} tls pki here
action "maildir" maildir "{mail}/%{{dest.domain}}/bob" virtual <accounts>
action "relay" relay helo {host} src {address}
match from any for domain {{ {domains} }} action "maildir"
match from src {programs} for any action "relay"
"""


class OpenSmtpd(Site):
    """OpenSMTPD, in a private view of the file system."""

    def start(self) -> None:
        server = opensmtpd.OpenSmtpd(unpacked=self.directory / "unpacked")
        if (PEERS / "usr").is_dir():
            # Its users may not reach where it was unpacked.
            shutil.copytree(PEERS / "usr", server.unpacked / "usr", symlinks=True)
        site = bench.Site(self.directory, ())
        (self.directory / "privkey.pem").chmod(0o600)  # or it does not start
        mended = self.directory / "keys.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(mended), str(_KEYS)], check=True)
        process = server.launch(site, _OPENSMTPD.format(
            directory=self.directory, address=self.address, host=self.host,
            mail=self.ground.mail, programs=self.ground.programs,
            accounts=", ".join(f'"bob@{each}" = "{daemons.OWNER}"' for each in self.domains),
            domains=", ".join(f'"{each}"' for each in self.domains)), RESOLVER,
            "env", f"LD_PRELOAD={mended}")
        self.ground.stack.callback(process.stop)
        process.wait_for((self.address, 25), b"220")

    def log(self) -> str:
        return (self.directory / "log").read_text()

    def ends(self) -> dict[str, End]:
        log = self.log()
        proven = set(re.findall(r'^(\w+) mta server-cert-check result="success"', log, re.M))
        return {recipient: End(result == "Ok", session in proven, "" if result == "Ok" else stat)
                for session, recipient, result, stat in re.findall(
                    r'^(\w+) mta delivery .* to=<([^>]+)> .* result="(\w+)" stat="(.*)"', log,
                    re.M)}
