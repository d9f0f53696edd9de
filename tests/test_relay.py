"""Mail that leaves: mailsvc dev, a DNS server and exchangers on loopback."""

from __future__ import annotations

import json
import smtplib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dkim
import pytest
from click.testing import CliRunner

from mailsvc.dkim import Keys
from tests.daemons import Dovecot, Postfix, free_port
from tests.exchanger import Exchanger
from tests.nameserver import NameServer
from tests.relay import (
    MESSAGE,
    below_trace,
    mail,
    queued,
    relaying,
    statuses,
    submit,
    until,
)
from tests.service import PATIENCE, Service, fetch


def test_from_one_service_to_another_by_mx(tmp_path: Path) -> None:
    port = free_port()
    zone = {"b.example": ["MX 10 mx.b.example"], "mx.b.example": ["A 127.0.0.1"]}
    with NameServer(zone) as names, \
            Service(tmp_path / "b", ("bob@b.example:secret", "eve@b.example:secret"),
                    ("--smtp", f"127.0.0.1:{port}")) as there, \
            relaying(tmp_path / "a", f'relay.dns=["{names.address}"]', f"relay.port={port}",
                     accounts=("alice@a.example:secret", "carol@a.example:secret")) as here:
        submit(here, ["bob@b.example", "carol@a.example", "nobody@b.example"])
        until(lambda: mail(there, "bob@b.example") and mail(here), here)
        got, = fetch(there, "bob@b.example")
        assert below_trace(got) == MESSAGE
        assert got.count(b"Return-Path:") == 1 and got.startswith(
            b"Return-Path: <alice@a.example>\r\n")
        local, = fetch(here, "carol@a.example")
        assert below_trace(local) == MESSAGE
        report, = fetch(here, "alice@a.example")
        assert report.startswith(b"Return-Path: <>\r\n")
        assert statuses(report) == [("nobody@b.example", "failed", "5.1.1")]
        until(lambda: not queued(here), here)


def test_forwarding_rewrites_the_sender_and_leads_reports_back(tmp_path: Path) -> None:
    with Exchanger("127.0.0.1", 0, "") as there, relaying(
            tmp_path / "a", f"relay.smarthost=127.0.0.1:{there.port}",
            options=("--account", "bob@a.example:secret",
                     "--alias", "fwd@a.example=carol@far.example,bob@a.example")) as here:
        with smtplib.SMTP(*here.smtp, timeout=PATIENCE) as smtp:
            smtp.sendmail("stranger@sender.example", ["fwd@a.example"], MESSAGE)
        until(lambda: there.messages, here)
        sender, recipients, text, _ = there.messages[0]
        path = sender.split("<")[1].split(">")[0]
        assert path.startswith("SRS0=") and path.endswith("=sender.example=stranger@a.example")
        assert recipients[0].startswith("RCPT TO:<carol@far.example>")
        assert below_trace(text) == MESSAGE
        assert below_trace(mail(here, "bob@a.example")[0]) == MESSAGE
        # A report to that path goes back to the stranger, and a forged path nowhere.
        with smtplib.SMTP(*here.smtp, timeout=PATIENCE) as smtp:
            smtp.sendmail("", [path], b"Subject: a report\r\n\r\n")
            with pytest.raises(smtplib.SMTPRecipientsRefused) as refused:
                smtp.sendmail("", [path.replace("stranger", "mallory")], b"Subject: x\r\n\r\n")
            assert refused.value.recipients.popitem()[1][0] == 550
        until(lambda: len(there.messages) == 2, here)
        assert there.messages[1][0].startswith("MAIL FROM:<>")
        assert there.messages[1][1][0].startswith("RCPT TO:<stranger@sender.example>")


def test_strangers_do_not_relay(tmp_path: Path) -> None:
    with relaying(tmp_path / "a", "relay.smarthost=127.0.0.1:1") as here, \
            smtplib.SMTP(*here.smtp, timeout=PATIENCE) as smtp:
        smtp.ehlo()
        smtp.mail("x@sender.example")
        code, text = smtp.rcpt("carol@far.example")
        assert (code, text[:5]) == (550, b"5.7.1")


def test_what_a_sender_asks_for_is_passed_on_or_done(tmp_path: Path) -> None:
    asked = {"mail": ["RET=HDRS", "ENVID=QQ+2B1"],
             "rcpt": ["NOTIFY=SUCCESS,FAILURE", "ORCPT=rfc822;Bob+2Bx@b.example"]}
    with Exchanger("127.0.0.1", 0, "dsn") as knows, Exchanger("127.0.0.1", 0, "") as plain, \
            relaying(tmp_path / "a",
                     f"relay.routes={{\"knows.example\"=\"127.0.0.1:{knows.port}\", "
                     f"\"plain.example\"=\"127.0.0.1:{plain.port}\"}}") as here:
        submit(here, ["bob@knows.example"], **asked)
        until(lambda: knows.messages, here)
        sender, recipients, _, _ = knows.messages[0]
        assert "RET=HDRS" in sender and "ENVID=QQ+2B1" in sender
        assert "NOTIFY=SUCCESS,FAILURE" in recipients[0]
        assert "ORCPT=rfc822;Bob+2Bx@b.example" in recipients[0]
        submit(here, ["bob@plain.example"], **asked)
        until(lambda: mail(here), here)
        report, = mail(here)
        assert statuses(report) == [("bob@plain.example", "relayed", "2.0.0")]
        assert b"\r\nOriginal-Envelope-Id: QQ+1\r\n" in report
        assert b"\r\nOriginal-Recipient: rfc822; Bob+x@b.example\r\n" in report
        assert "NOTIFY" not in plain.messages[0][1][0]

def test_reports_are_signed_where_there_is_a_key(tmp_path: Path) -> None:
    """By the key of the host's name, or of a domain above it."""
    keys = Keys(tmp_path / "a" / "dkim")
    (tmp_path / "a").mkdir()
    key = keys.add("example.org", "ed25519", "s")
    keys.use("example.org", ["s"])
    with Exchanger("127.0.0.1", 0, "rcpt=550_5.1.1_nobody") as there, relaying(
            tmp_path / "a", f"relay.smarthost=127.0.0.1:{there.port}") as here:
        submit(here, ["bob@far.example"])
        until(lambda: mail(here), here)
    report, = mail(here)
    assert statuses(report) == [("bob@far.example", "failed", "5.1.1")]
    assert dkim.DKIM(below_trace(report)).verify(
        0, lambda name, timeout=5: {f"{key.name}.".encode(): key.record.encode()}.get(name))


def test_success_here_is_told_where_it_was_asked_for(tmp_path: Path) -> None:
    with Exchanger("127.0.0.1", 0, "dsn") as there, relaying(
            tmp_path / "a", f"relay.smarthost=127.0.0.1:{there.port}",
            options=("--account", "bob@a.example:secret",
                     "--alias", "team@a.example=bob@a.example,carol@far.example")) as here:
        submit(here, ["bob@a.example"], mail=["ENVID=first"], rcpt=["NOTIFY=SUCCESS"])
        until(lambda: mail(here), here)
        assert statuses(mail(here)[0]) == [("bob@a.example", "delivered", "2.0.0")]
        assert b"\r\nOriginal-Envelope-Id: first\r\n" in mail(here)[0]
        assert b"Subject: hi\r\n" in mail(here)[0] and b"a dot" not in mail(here)[0]
        submit(here, ["team@a.example"], rcpt=["NOTIFY=SUCCESS,FAILURE"])
        until(lambda: len(mail(here)) == 2 and there.messages, here)
        assert statuses(mail(here)[1]) == [("team@a.example", "expanded", "2.0.0")]
        assert "NOTIFY=FAILURE" in there.messages[0][1][0]
        submit(here, ["bob@a.example"], rcpt=["NOTIFY=NEVER"])
        submit(here, ["bob@a.example"])
        until(lambda: len(mail(here, "bob@a.example")) == 4, here)
        assert len(mail(here)) == 2


@pytest.mark.parametrize("chunking", [False, True])
def test_eight_bits_that_nobody_declared(tmp_path: Path, chunking: bool) -> None:
    with Service(tmp_path / "b", ("bob@far.example:secret",)) as chunks, Exchanger(
            "127.0.0.1", 0, "") as plain, relaying(
            tmp_path / "a", 'routing.relay_domains=["far.example"]',
            f"relay.smarthost=127.0.0.1:{chunks.smtp[1] if chunking else plain.port}") as here:
        for length in 1, 200_000:
            text = b"Subject: x\r\n\r\n" + b"\xc3\xa4\r\n" * length
            with smtplib.SMTP(*here.smtp, timeout=PATIENCE) as smtp:
                smtp.sendmail("x@sender.example", ["bob@far.example"], text)
            until(lambda: not queued(here), here)
            got, = (fetch(chunks, "bob@far.example") if chunking
                    else [plain.messages.pop()[2]])
            assert below_trace(got) == text


PART = b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nX: %s\r\n\r\n"


@pytest.mark.parametrize(("offers", "message", "status"), [
    ("ascii", b"Subject: x\r\n\r\n", ""),
    ("ascii", "Subject: \u00e9\r\n\r\n".encode(), "5.6.7"),
    ("ascii", "Subject: x\r\n\r\n\u00e9\r\n".encode(), ""),
    ("ascii", PART % b"x" + "\u00e9\r\n".encode() * 80_000, ""),
    ("ascii", PART % "\u00e9".encode(), "5.6.7"),
    ("ascii 7bit", b"Subject: x\r\n\r\n", ""),
    ("ascii 7bit", "Subject: x\r\n\r\n\u00e9\r\n".encode(), "5.6.3"),
    ("ascii 7bit", b"Subject: x\r\n\r\n" + "\u00e9\r\n".encode() * 80_000, "5.6.3"),
], ids=["ascii", "header", "body", "large", "part", "7bit", "7bit-body", "7bit-large"])
def test_smtputf8_that_nothing_needs(tmp_path: Path, offers: str, message: bytes,
                                     status: str) -> None:
    """RFC 6531 §3.2: what needs it is what the message holds, not what its sender said."""
    with Exchanger("127.0.0.1", 0, offers) as there, relaying(
            tmp_path / "a", f"relay.smarthost=127.0.0.1:{there.port}") as here:
        submit(here, ["bob@far.example"], message + b"body\r\n", mail=["SMTPUTF8"])
        until(lambda: not queued(here), here)
        assert len(there.messages) == (not status)
        assert [statuses(each) for each in mail(here)] == (
            [[("bob@far.example", "failed", status)]] if status else [])
        assert not any("SMTPUTF8" in line for line in there.lines)
        assert any("BODY=8BITMIME" in line for line in there.lines) == (
            not status and not message.isascii())


def test_the_queue_of_a_service_that_runs(tmp_path: Path) -> None:
    from mailsvc.cli import main  # noqa: PLC0415

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(main, ["--dir", str(here.directory), "queue", *arguments])
        assert result.exit_code == 0, result.output
        return result.output

    closed = free_port()
    with Exchanger("127.0.0.1", 0, "") as there, relaying(
            tmp_path / ("long" * 30), f"relay.smarthost=127.0.0.1:{closed}") as here:
        submit(here, ["bob@far.example", "eve@far.example"])
        submit(here, ["carol@other.example"])

        def listed() -> list[Any]:
            return list(json.loads(run("list", "--json")))

        until(lambda: [each["attempts"] for each in listed()] == [1, 1], here)
        assert [each["status"] for each in listed()] == ["deferred", "deferred"]
        assert run("hold", "to:@far.example") == "Held 1 message\n"
        assert [each["status"] for each in listed()] == ["held", "deferred"]
        route = f"127.0.0.1:{there.port}"
        assert run("reroute", route, "to:@other.example") == "Rerouted 1 message\n"
        until(lambda: len(there.messages) == 1, here)
        until(lambda: len(listed()) == 1, here)
        run("reroute", route, "--all")
        run("release", "--all")
        until(lambda: len(there.messages) == 2 and not queued(here), here)
        submit(here, ["dan@far.example"])
        until(lambda: [each["attempts"] for each in listed()] == [1], here)
        assert run("drop", "--all") == "Dropped 1 message\n"
        assert listed() == [] and mail(here) == []


def test_postfix_is_the_next_host(tmp_path: Path, program: Callable[[str], str]) -> None:
    # What it takes it hands on to an exchanger, so that its own copy can be looked at.
    with Exchanger("127.0.0.1", 0, "") as last, \
            Postfix(program, relayhost=f"[127.0.0.1]:{last.port}") as postfix, \
            relaying(tmp_path / "a", "relay.smarthost={}:{}".format(*postfix.address)) as here:
        for number in range(5):
            submit(here, [f"bob{number}@far.example"])
        until(lambda: not queued(here), here)
        postfix.until_sent(5)
        assert mail(here) == []
        assert {below_trace(text) for _, _, text, _ in last.messages} == {MESSAGE}


def test_by_lmtp_to_dovecot(tmp_path: Path, program: Callable[[str], str]) -> None:
    with Dovecot(program) as dovecot, relaying(
            tmp_path / "a", "relay.smarthost=lmtp://{}:{}".format(*dovecot.lmtp)) as here:
        submit(here, ["bob@far.example", "carol@far.example"])
        until(lambda: not queued(here), here)
        for name in "bob", "carol":
            got, = (dovecot.maildir(f"{name}@far.example") / "new").iterdir()
            assert below_trace(got.read_bytes().replace(b"\r\n", b"\n").replace(
                b"\n", b"\r\n").split(b"\r\n", 1)[1]).endswith(b".a dot\r\nlast\r\n")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_backup_exchanger_sends_when_it_is_asked(tmp_path: Path, workers: int) -> None:
    port = free_port()
    zone = {"far.example": ["MX 10 mx.far.example", "MX 20 mx.example.org"],
            "mx.far.example": ["A 127.0.0.2"], "mx.example.org": ["A 127.0.0.1"]}
    with NameServer(zone) as names, relaying(
            tmp_path / "a", f'relay.dns=["{names.address}"]', f"relay.port={port}",
            'routing.relay_domains=["far.example"]', "smtp.etrn=true",
            options=("--smtp", f"127.0.0.1:{port}", "--workers", str(workers))) as here, \
            smtplib.SMTP(*here.smtp, timeout=PATIENCE) as smtp:
        # Anybody's mail for that domain is taken, and for no other.
        smtp.sendmail("x@sender.example", ["bob@far.example"], MESSAGE)
        assert smtp.docmd("MAIL", "FROM:<x@sender.example>")[0] == 250
        assert smtp.docmd("RCPT", "TO:<bob@sub.far.example>")[0] == 550
        smtp.rset()
        until(lambda: "deferred recipient=bob@far.example" in here.log.read_text(), here)
        with Exchanger("127.0.0.2", port, "") as there:
            assert smtp.docmd("ETRN", "other.example") == (
                459, b"4.7.1 Mail for that domain is not kept here")
            assert there.messages == []
            assert smtp.docmd("ETRN", "far.example")[0] == 250
            until(lambda: len(there.messages) == 1 and not queued(here), here)
            assert below_trace(there.messages[0][2]) == MESSAGE
