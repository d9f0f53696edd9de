"""MTA-STS and TLS of mail that leaves: mailsvc dev, DNS, a policy host, exchangers on loopback."""

from __future__ import annotations

import contextlib
import gzip
import json
import smtplib
import sqlite3
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from mailsvc.state import State
from tests.authority import Authority
from tests.command_line import CommandLine
from tests.daemons import PATIENCE
from tests.exchanger import Exchanger
from tests.net import Net, held, returned
from tests.relay import MESSAGE, mail, queued, relaying, submit, until, unverified
from tests.test_queue_tls_reports import opened

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
        log, told = service.log.read_text(), returned(service)
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
            assert "MTA-STS policy of b.example" in returned(service)["bob@b.example"][1]
        assert mallory.messages == []
        # A new id, and the policy that goes with it.
        with relaying(tmp_path / "a", *net.settings) as service:
            net.domain("b.example", "mx.mallory.example", policy="enforce *.mallory.example",
                       id="2")
            submit(service, ["bob@b.example"])
            until(lambda: mallory.messages, service)
            listed, = json.loads(held(service, "list", "--json"))
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
        status, text = returned(service)["bob@b.example"]
        assert status == "4.4.7" and "mailsvc queue tls forget b.example" in text
        assert clear.messages == []
        listed, = json.loads(held(service, "list", "--json"))
        assert (listed["domain"], listed["verified"], listed["host"], listed["policy"]) == (
            "b.example", False, "mx.b.example", None)
        assert held(service, "forget", "B.example") == "Forgot b.example\n"
        submit(service, ["bob@b.example"])
        until(lambda: clear.messages, service)
        assert held(service, "list") == "DOMAIN  SINCE  LATEST  VERIFIED  HOST  POLICY\n"


def test_what_came_of_tls_is_reported(tmp_path: Path) -> None:
    with ExitStack() as stack:
        net = Net(stack, tmp_path)
        net.host_policies("good.example", "bad.example", "reports.example")
        assert net.policies is not None
        settings = (*net.settings, "relay.tls_reports=tls@a.example")
        for name, certified in ("good", ""), ("bad", "elsewhere.example"):
            net.domain(f"{name}.example", f"mx.{name}.example",
                       policy=f"enforce mx.{name}.example")
            net.exchanger(f"mx.{name}.example", certified=certified)
        with relaying(tmp_path / "a", *settings) as service:
            submit(service, ["bob@good.example", "bob@bad.example"])
            until(lambda: not queued(service), service)
        # Two days have passed.
        with contextlib.closing(sqlite3.connect(tmp_path / "a" / "state.sqlite")) as state:
            state.execute("UPDATE tls_results SET day = date(day, '-2 days')")
            state.commit()
        # One gets its report by HTTPS; the other by mail, its exchanger broken as it is.
        net.zone["_smtp._tls.good.example"] = [
            f"TXT v=TLSRPTv1; rua=https://mta-sts.reports.example:{net.policies.port}/in"]
        net.zone["mta-sts.reports.example"] = ["A 127.0.0.1"]
        net.zone["_smtp._tls.bad.example"] = ["TXT v=TLSRPTv1; rua=mailto:tls@bad.example"]
        with relaying(tmp_path / "a", *settings) as service:
            bad = net.exchangers["mx.bad.example"]
            until(lambda: bad.messages and net.policies and net.policies.posted, service)
        (host, path, kind, content), = net.policies.posted
        assert (host, path, kind) == (
            "mta-sts.reports.example", "/in", "application/tlsrpt+gzip")
        policy, = json.loads(gzip.decompress(content))["policies"]
        assert policy["policy"]["policy-domain"] == "good.example"
        assert policy["policy"]["policy-string"] == [
            "version: STSv1", "mode: enforce", "max_age: 604800", "mx: mx.good.example"]
        assert policy["summary"] == {
            "total-successful-session-count": 1, "total-failure-session-count": 0}
        (sender, recipients, message, _), = bad.messages
        assert sender.startswith("MAIL FROM:<tls@a.example>")
        assert recipients[0].startswith("RCPT TO:<tls@bad.example>")
        _, report = opened(message)
        policy, = report["policies"]
        detail, = policy["failure-details"]
        assert policy["summary"]["total-successful-session-count"] == 0
        assert detail["result-type"] == "certificate-host-mismatch"
        assert detail["receiving-mx-hostname"] == "mx.bad.example"
        assert detail["receiving-ip"] == bad.address
        assert detail["failed-session-count"] >= 2


def test_a_message_may_say_that_it_can_go_without(tmp_path: Path) -> None:
    with ExitStack() as stack:
        net = Net(stack, tmp_path)
        net.host_policies("b.example")
        net.domain("b.example", "mx.b.example", policy="enforce mx.elsewhere.example")
        exchanger = net.exchanger("mx.b.example", certified=None)
        service = net.service()
        submit(service, ["bob@b.example"], b"TLS-Required:  no\r\n" + MESSAGE)
        until(lambda: exchanger.messages, service)
        submit(service, ["bob@b.example"], b"X: y\r\nTLS-Required:\r\n No\r\n" + MESSAGE)
        until(lambda: len(exchanger.messages) == 2, service)
        submit(service, ["bob@b.example"], MESSAGE + b"\r\nTLS-Required: No\r\n")
        until(lambda: mail(service), service)
        assert len(exchanger.messages) == 2


#: domain -> policy; whether its MX records are signed; its exchangers, each what it is certified
#: for, as in Net, "-" for no TLS, "down" for none, or what it does; and who gets a message with
#: REQUIRETLS, or with which status it comes back, and why.
REQUIRED: dict[str, tuple[str, bool, list[str], int | tuple[str, str]]] = {
    "sts": ("enforce *.sts.example", False, [""], 0),
    "testing": ("testing *.testing.example", False, [""], 0),
    "signed": ("", True, [""], 0),
    "itself": ("", False, [], 0),
    "unsigned": ("", False, [""], ("5.7.10", "neither DNSSEC nor an MTA-STS policy proves that "
                                   "mx0.unsigned.example is an exchanger of unsigned.example")),
    "none": ("none", False, [""], ("5.7.10", "neither DNSSEC nor")),
    "other-policy": ("testing *.x.example", False, [""], ("5.7.10", "neither DNSSEC nor")),
    "not-named": ("enforce *.x.example", True, [""], ("5.7.10", "is not among the exchangers")),
    "certified": ("", True, ["elsewhere.example"], ("5.7.10", "is not for mx0.certified.example")),
    "clear": ("", True, ["-"], ("5.7.10", "does not offer STARTTLS")),
    "lacks": ("", True, ["lacks"], ("5.7.30", "where REQUIRETLS is offered")),
    "second": ("", True, ["lacks", "elsewhere.example", ""], 2),
    "half": ("", True, ["lacks", "down"], ("4.4.7", "where REQUIRETLS is offered")),
    "refuses": ("", True, ["starttls=454_4.7.0_later"], ("4.4.7", "454 4.7.0 later")),
}


@pytest.mark.slow
def test_required_tls(tmp_path: Path) -> None:
    """RFC 8689 §4.2.1."""
    with ExitStack() as stack:
        net = Net(stack, tmp_path)
        net.host_policies(*(f"{name}.example" for name in REQUIRED))
        taken: dict[str, list[Exchanger | None]] = {}
        for name, (policy, signed, kinds, _) in REQUIRED.items():
            domain = f"{name}.example"
            hosts = [f"mx{number}.{domain}" for number in range(len(kinds))]
            if hosts:
                net.domain(domain, *hosts, policy=policy)
            taken[name] = []
            for host, kind in zip(hosts or [domain], kinds or [""], strict=True):
                if kind == "down":
                    net.zone[host] = ["A 127.0.0.19"]
                    continue
                words = [] if kind == "lacks" else ["requiretls"]
                certified: str | None = kind
                if kind == "lacks" or "=" in kind:
                    words.append(kind)
                    certified = ""
                taken[name].append(net.exchanger(
                    host, " ".join(words), certified=None if kind == "-" else certified))
            if signed:
                net.zone[domain].append("SECURE")
        service = net.service()
        for name in REQUIRED:
            submit(service, [f"bob@{name}.example"], mail=["REQUIRETLS", "RET=FULL"])
        until(lambda: not queued(service), service, 60)
        log, told = service.log.read_text(), returned(service)
        for name, (*_, end) in REQUIRED.items():
            got = [(number, message[0].endswith(" REQUIRETLS"), message[3])
                   for number, each in enumerate(taken[name]) if each is not None
                   for message in each.messages]
            if isinstance(end, tuple):
                status, text = told.pop(f"bob@{name}.example", ("", ""))
                assert (name, got, status) == (name, [], end[0]), log
                assert end[1] in text and "a dot" not in text, text
            else:
                assert (name, got) == (name, [(end, True, True)]), log
        assert told == {}


def test_a_report_about_what_requires_tls_goes_all_the_same(tmp_path: Path) -> None:
    """RFC 8689 §5: by REQUIRETLS where that can be."""
    with ExitStack() as stack:
        net = Net(stack, tmp_path)
        net.host_policies("good.example")
        net.domain("good.example", "mx.good.example", policy="enforce mx.good.example")
        net.domain("bad.example", "mx.bad.example")
        good = net.exchanger("mx.good.example", "requiretls")
        # It offers REQUIRETLS as well, but might be anybody.
        bad = net.exchanger("mx.bad.example", "requiretls")
        service = net.service("smtp.starttls=true")
        CommandLine(service.directory)("alias", "add", "gone@a.example", "gone@nowhere.example")
        with smtplib.SMTP(*service.listeners["smtp"], timeout=PATIENCE) as smtp:
            smtp.starttls(context=unverified())
            for sender in "bob@good.example", "bob@bad.example":
                assert smtp.sendmail(sender, ["gone@a.example"], MESSAGE, ["REQUIRETLS"]) == {}
        until(lambda: good.messages and bad.messages, service)
        (to_good, _, report, by_tls), = good.messages
        assert to_good.startswith("MAIL FROM:<>") and to_good.endswith(" REQUIRETLS") and by_tls
        assert b"Status: 5.1.2" in report and b"a dot" not in report
        (to_bad, *_), = bad.messages
        assert to_bad.startswith("MAIL FROM:<>") and "REQUIRETLS" not in to_bad


def test_a_domain_is_looked_up(tmp_path: Path) -> None:
    with ExitStack() as stack:
        net = Net(stack, tmp_path)
        net.host_policies("b.example")
        net.domain("b.example", "mx.b.example", "mx.c.example", policy="enforce *.b.example")
        net.zone["mx.b.example"] = net.zone["mx.c.example"] = ["A 127.0.0.99"]
        net.domain("plain.example", "mx.b.example")
        config = tmp_path / "mailsvc.toml"
        config.write_text(f"""
[service]
data = "{tmp_path}"
[relay]
dns = ["{net.names.address}"]
loopback = true
policy_port = {net.settings[2].partition("=")[2]}
authorities = "{net.ca}"
""")
        with State(tmp_path / "state.sqlite").transaction():
            pass

        def check(domain: str) -> tuple[int, str]:
            result = subprocess.run(
                [sys.executable, "-c", "from mailsvc.cli import main; main()", "--config",
                 str(config), "queue", "tls", "check", domain, "--json"],
                capture_output=True, text=True, timeout=60, check=False)
            return result.returncode, result.stdout or result.stderr

        status, text = check("b.example")
        found = json.loads(text)
        assert (status, found["policy"]["mode"]) == (0, "enforce")
        assert [(each["host"], each["usable"]) for each in found["exchangers"]] == [
            ("mx.b.example", True), ("mx.c.example", False)]
        assert found["exchangers"][0]["demand"] == (
            "TLS, a certificate for its name; required by the MTA-STS policy of b.example")
        status, text = check("plain.example")
        assert json.loads(text)["exchangers"][0]["demand"] == (
            "TLS if it is offered, any certificate")
        assert check("nowhere.example") == (1, "Error: there is no domain nowhere.example\n")


def test_authorities_that_cannot_be_read_stop_the_start(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    result = subprocess.run(
        [sys.executable, "-c", "from mailsvc.cli import main; main()", "dev",
         "--dir", str(tmp_path / "a"),
         "--smtp", "127.0.0.1:0", "--pop3", "127.0.0.1:0",
         "--set", f"relay.authorities={tmp_path}/ca.pem"],
        capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert f"relay.authorities: {tmp_path}/ca.pem: expected a PEM file" in result.stderr
