"""Domains on loopback: name server, exchangers with certificates, a policy host, and a service."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from click.testing import CliRunner

from mailsvc.cli import main
from tests.authority import Authority, Issued, pem
from tests.daemons import free_port
from tests.exchanger import Exchanger
from tests.nameserver import NameServer
from tests.policyhost import PolicyHost
from tests.relay import mail, relaying, statuses
from tests.service import Service

QUICK = ("queue.retry_first_seconds=0.5", "queue.retry_factor=1", "queue.lifetime_seconds=3",
         "queue.warning_seconds=0", "relay.connect_seconds=1", "relay.reply_seconds=2")


class Net:
    """Domains with exchangers, a policy host, an authority and a name server.

    :ivar zone: of the name server.
    :ivar issued: the certificates of exchangers.
    """

    def __init__(self, stack: ExitStack, directory: Path) -> None:
        self.directory = directory
        self.stack = stack
        self.authority = Authority()
        self.ca = directory / "ca.pem"
        self.ca.write_bytes(pem(self.authority.root))
        self.port = free_port()
        self.zone: dict[str, list[str]] = {}
        self.names = stack.enter_context(NameServer(self.zone))
        self._number = 20
        self.exchangers: dict[str, Exchanger] = {}
        self.issued: dict[str, Issued] = {}
        self.policies: PolicyHost | None = None

    def host_policies(self, *domains: str) -> None:
        """A policy host with a certificate for *domains*."""
        certificate = self.directory / "policies.pem"
        certificate.write_bytes(
            self.authority.issue(*(f"mta-sts.{domain}" for domain in domains)).combined)
        self.policies = self.stack.enter_context(PolicyHost(certificate))

    def exchanger(self, name: str, *behaviour: str, certified: str | None = "",
                  authority: Authority | None = None, days: float = 90) -> Exchanger:
        """The exchanger *name*, with a certificate for *certified* ("": its name; None: no TLS)."""
        self._number += 1
        address = f"127.0.0.{self._number}"
        self.zone[name] = [f"A {address}"]
        certificate = None
        if certified is not None:
            certificate = self.directory / f"{name}.pem"
            issued = self.issued[name] = (authority or self.authority).issue(
                certified or name, days=days, since=-10)
            certificate.write_bytes(issued.combined)
            behaviour = (" ".join((*behaviour, "starttls")),)
        exchanger = self.exchangers[name] = self.stack.enter_context(
            Exchanger(address, self.port, *behaviour, certificate=certificate))
        return exchanger

    def domain(self, name: str, *exchangers: str, policy: str = "", id: str = "1") -> None:
        """The domain *name*, perhaps with a policy: "enforce *.b.example"."""
        self.zone[name] = [f"MX {number} {host}" for number, host in enumerate(exchangers)]
        if policy:
            self.publish(name, policy, id)

    def publish(self, name: str, policy: str, id: str = "1") -> None:
        """A policy of *name*: "enforce *.b.example"."""
        assert self.policies is not None
        mode, *patterns = policy.split(" ")
        self.zone[f"_mta-sts.{name}"] = [f"TXT v=STSv1; id={id};"]
        self.zone[f"mta-sts.{name}"] = ["A 127.0.0.1"]
        self.policies.answers[f"mta-sts.{name}"] = (200, "text/plain", "".join(
            [f"version: STSv1\r\nmode: {mode}\r\nmax_age: 604800\r\n",
             *(f"mx: {pattern}\r\n" for pattern in patterns)]).encode())

    @property
    def settings(self) -> Sequence[str]:
        policy_port = self.policies.port if self.policies is not None else 443
        return (f'relay.dns=["{self.names.address}"]', f"relay.port={self.port}",
                f"relay.policy_port={policy_port}", f"relay.authorities={self.ca}", *QUICK)

    def service(self, *more: str) -> Service:
        return self.stack.enter_context(relaying(self.directory / "a", *self.settings, *more))


def returned(service: Service) -> dict[str, tuple[str, str]]:
    """Recipient -> status and text of the report."""
    found = {}
    for report in mail(service):
        for recipient, action, status in statuses(report):
            assert action == "failed"
            found[recipient] = status, " ".join(report.decode().split())
    return found


def held(service: Service, *arguments: str) -> str:
    """The output of mailsvc queue tls."""
    result = CliRunner().invoke(
        main, ["--dir", str(service.directory), "queue", "tls", *arguments])
    assert result.exit_code == 0, result.output
    return result.output
