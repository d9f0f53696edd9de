"""MTA-STS and TLS of mail that leaves: mailsvc dev, DNS, a policy host, exchangers on loopback."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from click.testing import CliRunner

from mailsvc.cli import main
from tests.authority import Authority, pem
from tests.daemons import free_port
from tests.exchanger import Exchanger
from tests.nameserver import NameServer
from tests.policyhost import PolicyHost
from tests.service import Service
from tests.test_relay import mail, queued, relaying, statuses, submit, until

QUICK = ("queue.retry_first_seconds=0.5", "queue.retry_factor=1", "queue.lifetime_seconds=3",
         "queue.warning_seconds=0", "relay.connect_seconds=1", "relay.reply_seconds=2")


class Net:
    """Domains with exchangers, a policy host, an authority and a name server.

    :ivar zone: of the name server.
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
            certificate.write_bytes((authority or self.authority).issue(
                certified or name, days=days, since=-10).combined)
            behaviour = (" ".join((*behaviour, "starttls")),)
        exchanger = self.exchangers[name] = self.stack.enter_context(
            Exchanger(address, self.port, *behaviour, certificate=certificate))
        return exchanger

    def domain(self, name: str, *exchangers: str, policy: str = "", id: str = "1") -> None:
        """The domain *name*, perhaps with a policy: "enforce *.b.example"."""
        self.zone[name] = [f"MX {number} {host}" for number, host in enumerate(exchangers)]
        if policy:
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

    def service(self) -> Service:
        return self.stack.enter_context(relaying(self.directory / "a", *self.settings))


def reports(service: Service) -> dict[str, tuple[str, str]]:
    """Recipient -> status and text of the report."""
    found = {}
    for report in mail(service):
        for recipient, action, status in statuses(report):
            assert action == "failed"
            found[recipient] = status, " ".join(report.decode().split())
    return found


#: domain -> policy, exchangers (the certificate's name; "" its own; "-" no TLS; "other:" another
#: authority), and which of them gets the message, by TLS or not, or what the report says.
CASES: dict[str, tuple[str, list[str], tuple[int, bool] | str]] = {
    "good": ("enforce mx0.good.example", [""], (0, True)),
    "wildcard": ("enforce *.wildcard.example", [""], (0, True)),
    "deep": ("enforce *.example", [""], "is not among the exchangers that the MTA-STS policy of "
             "deep.example names (*.example)"),
    "wrong-name": ("enforce *.wrong-name.example", ["elsewhere.example"],
                   "mx0.wrong-name.example: the certificate is not for mx0.wrong-name.example but "
                   "for elsewhere.example; TLS is required by the MTA-STS policy of "
                   "wrong-name.example"),
    "stranger": ("enforce *.stranger.example", ["other:"], "cannot be trusted"),
    "expired": ("enforce *.expired.example", ["expired:"], "certificate has expired"),
    "clear": ("enforce *.clear.example", ["-"], "does not offer STARTTLS"),
    "second": ("enforce *.second.example", ["elsewhere.example", ""], (1, True)),
    "testing": ("testing *.testing.example", ["elsewhere.example"], (0, True)),
    "testing-mx": ("testing mx.nowhere.example", ["-"], (0, False)),
    "none": ("none", ["-"], (0, False)),
    "no-policy": ("", ["elsewhere.example"], (0, True)),
}


@pytest.mark.slow
def test_policies_are_obeyed(tmp_path: Path) -> None:
    with ExitStack() as stack:
        net = Net(stack, tmp_path)
        net.host_policies(*(f"{name}.example" for name in CASES))
        for name, (policy, exchangers, _) in CASES.items():
            hosts = [f"mx{number}.{name}.example" for number in range(len(exchangers))]
            net.domain(f"{name}.example", *hosts, policy=policy)
            for host, certified in zip(hosts, exchangers, strict=True):
                kind, _, other = certified.rpartition(":")
                net.exchanger(host, certified=None if certified == "-" else other,
                              authority=Authority("other") if kind == "other" else None,
                              days=-1 if kind == "expired" else 90)
        service = net.service()
        for name in CASES:
            submit(service, [f"bob@{name}.example"])
        until(lambda: not queued(service), service, 60)
        log, told = service.log.read_text(), reports(service)
        for name, (_, exchangers, end) in CASES.items():
            taken = [(number, message[3]) for number in range(len(exchangers))
                     for message in net.exchangers[f"mx{number}.{name}.example"].messages]
            if isinstance(end, str):
                status, text = told.pop(f"bob@{name}.example", ("", ""))
                assert (name, taken, status) == (name, [], "4.4.7"), log
                assert end in text, text
            else:
                assert (name, taken) == (name, [end]), log
        assert told == {}


def test_a_policy_holds_while_its_host_and_record_are_gone(tmp_path: Path) -> None:
    with ExitStack() as stack:
        net = Net(stack, tmp_path)
        net.host_policies("b.example")
        assert net.policies is not None
        exchanger = net.exchanger("mx.b.example")
        net.domain("b.example", "mx.b.example", policy="enforce mx.b.example")
        with relaying(tmp_path / "a", *net.settings) as service:
            submit(service, ["bob@b.example"])
            until(lambda: not queued(service), service)
            submit(service, ["bob@b.example"])
            until(lambda: not queued(service), service)
        assert len(exchanger.messages) == 2
        assert net.policies.asked == [("mta-sts.b.example", "/.well-known/mta-sts.txt")]
        # Another exchanger, as somebody who rules the DNS would have it; no policy to be seen.
        del net.zone["_mta-sts.b.example"]
        net.policies.answers.clear()
        mallory = net.exchanger("mx.mallory.example")
        net.zone["b.example"] = ["MX 0 mx.mallory.example"]
        with relaying(tmp_path / "a", *net.settings) as service:
            submit(service, ["bob@b.example"])
            until(lambda: mail(service), service)
            assert "MTA-STS policy of b.example" in reports(service)["bob@b.example"][1]
        assert mallory.messages == []
        # A new id, and the policy that goes with it.
        with relaying(tmp_path / "a", *net.settings) as service:
            net.domain("b.example", "mx.mallory.example", policy="enforce *.mallory.example",
                       id="2")
            submit(service, ["bob@b.example"])
            until(lambda: mallory.messages, service)
            listed, = json.loads(run(service, "list", "--json"))
            assert listed["policy"]["mx"] == ["*.mallory.example"] and listed["verified"]
        assert len(net.policies.asked) == 2


def test_what_was_reached_by_tls_is_not_sent_to_in_the_clear(tmp_path: Path) -> None:
    with ExitStack() as stack:
        net = Net(stack, tmp_path)
        net.domain("b.example", "mx.b.example")
        first = net.exchanger("mx.b.example", certified="elsewhere.example")
        service = stack.enter_context(
            relaying(tmp_path / "a", *net.settings, "queue.idle_seconds=0"))
        submit(service, ["bob@b.example"])
        until(lambda: first.messages, service)
        clear = net.exchanger("mx.b.example", certified=None)
        submit(service, ["bob@b.example"])
        until(lambda: mail(service), service)
        status, text = reports(service)["bob@b.example"]
        assert status == "4.4.7" and "mailsvc queue tls forget b.example" in text
        assert clear.messages == []
        listed, = json.loads(run(service, "list", "--json"))
        assert (listed["domain"], listed["verified"], listed["host"], listed["policy"]) == (
            "b.example", False, "mx.b.example", None)
        assert run(service, "forget", "B.example") == "Forgot b.example\n"
        submit(service, ["bob@b.example"])
        until(lambda: clear.messages, service)
        assert run(service, "list") == "DOMAIN  SINCE  LATEST  VERIFIED  HOST  POLICY\n"


def run(service: Service, *arguments: str) -> str:
    """The output of mailsvc queue tls."""
    result = CliRunner().invoke(
        main, ["--dir", str(service.directory), "queue", "tls", *arguments])
    assert result.exit_code == 0, result.output
    return result.output
