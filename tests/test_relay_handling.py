"""Mail that is held, that has a time, that is urgent or needs TLS, through a service that runs."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.command_line import CommandLine
from tests.daemons import free_port
from tests.exchanger import Exchanger
from tests.nameserver import NameServer
from tests.relay import (
    MESSAGE,
    QUICK,
    below_trace,
    mail,
    queued,
    relaying,
    statuses,
    submit,
    until,
)
from tests.service import Service


def routes(**hosts: Exchanger | str) -> str:
    """The setting that leads NAME.example to each."""
    return "relay.routes={" + ", ".join(
        f'"{name}.example"="' + (host if isinstance(host, str) else f"127.0.0.1:{host.port}") + '"'
        for name, host in hosts.items()) + "}"


def listed(service: Service, *words: str) -> list[Any]:
    return list(json.loads(CommandLine(service.directory)("queue", "list", *words, "--json")))


def test_future_release(tmp_path: Path) -> None:
    with Exchanger("127.0.0.1", 0, "") as there, relaying(
            tmp_path / "a", routes(far=there), *QUICK,
            accounts=("alice@a.example:secret", "bob@a.example:secret")) as here:
        run = CommandLine(here.directory)
        submit(here, ["bob@a.example", "carol@far.example"], mail=["HOLDFOR=3"],
               rcpt=["NOTIFY=SUCCESS,FAILURE"])
        began = time.time()
        late = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began + 86_400))
        submit(here, ["bob@a.example"], mail=[f"HOLDUNTIL={late}"])
        submit(here, ["bob@a.example"], mail=["HOLDFOR=86400"])
        assert [each["status"] for each in listed(here)] == ["scheduled"] * 3
        assert {each["address"] for each in listed(here)[0]["recipients"]} == {
            "bob@a.example", "carol@far.example"}
        _, second, third = (each["id"] for each in listed(here))
        assert "scheduled" in run("queue", "list") and "release:" in run("queue", "show", second)
        assert run("queue", "drop", third) == "Dropped 1 message\n"
        assert not there.messages and mail(here, "bob@a.example") == []
        assert run("queue", "release", second) == "Released 1 message\n"
        until(lambda: mail(here, "bob@a.example"), here)
        until(lambda: there.messages and len(mail(here, "bob@a.example")) == 2, here)
        assert time.time() - began > 1.5
        got = mail(here, "bob@a.example")[1]
        assert below_trace(got) == MESSAGE and got.count(b"Return-Path:") == 1
        assert got.startswith(b"Return-Path: <alice@a.example>\r\nReceived: ")
        until(lambda: len(mail(here)) == 2 and not queued(here), here)
        assert {statuses(report)[0][:2] for report in mail(here)} == {
            ("bob@a.example", "delivered"), ("carol@far.example", "relayed")}
        # RFC 4865 §5.1.2: as it was said.
        assert all(b"\r\nFuture-Release-Request: for;3\r\n" in report for report in mail(here))


def test_a_kill_loses_nothing_that_is_held(tmp_path: Path) -> None:
    accounts = ("alice@a.example:secret", "bob@a.example:secret")
    here = relaying(tmp_path / "a", accounts=accounts)
    try:
        submit(here, ["bob@a.example"], mail=["HOLDFOR=4"])
    finally:
        here.kill()
    assert mail(here, "bob@a.example") == []
    with relaying(tmp_path / "a", accounts=accounts) as here:
        until(lambda: mail(here, "bob@a.example"), here)


def test_deliver_by(tmp_path: Path) -> None:
    with Exchanger("127.0.0.1", 0, "offer=DELIVERBY_60") as minds, \
            Exchanger("127.0.0.1", 0, "dsn") as plain, \
            Exchanger("127.0.0.1", 0, "offer=DELIVERBY rcpt=450_4.2.1_busy") as busy, relaying(
                tmp_path / "a", routes(minds=minds, plain=plain, busy=busy),
                "queue.retry_first_seconds=0.3", "queue.retry_factor=1") as here:
        submit(here, ["bob@minds.example"], mail=["BY=3600;RT"])
        until(lambda: minds.messages, here)
        by = re.search(r" BY=([0-9]+);RT", minds.messages[0][0])
        assert by is not None and 3590 <= int(by[1]) <= 3600
        submit(here, ["bob@minds.example"], mail=["BY=-5;N"])
        until(lambda: len(minds.messages) == 2, here)
        assert re.search(r" BY=-([5-9]|1[0-9]);N( |$)", minds.messages[1][0])
        for recipient, option in (
                ("late@minds.example", "BY=59;R"), ("r@plain.example", "BY=3600;R"),
                ("n@plain.example", "BY=3600;N"), ("r@busy.example", "BY=1;R")):
            submit(here, [recipient], mail=[option])
        until(lambda: len(mail(here)) == 5 and not queued(here), here)
        assert {each for report in mail(here) for each in statuses(report)} == {
            ("bob@minds.example", "relayed", "2.0.0"), ("late@minds.example", "failed", "5.4.7"),
            ("r@plain.example", "failed", "5.3.3"), ("n@plain.example", "relayed", "2.0.0"),
            ("r@busy.example", "failed", "5.4.7")}
        assert all(b"\r\nDeliver-By-Date: " in report for report in mail(here))
        assert len(plain.messages) == 1 and " BY=" not in plain.messages[0][0]
        # RFC 2852 §4.1.4.2: who does not mind the time may at least tell of a delay.
        for number, (option, notify, said) in enumerate((
                ("BY=3600;N", "", "FAILURE,DELAY"), ("BY=3600;N", "SUCCESS", "SUCCESS,DELAY"),
                ("BY=3600;N", "NEVER", "NEVER"), ("BY=-5;N", "FAILURE", "FAILURE"),
                ("", "FAILURE", "FAILURE")), 1):
            submit(here, ["n@plain.example"], mail=[option] if option else [],
                   rcpt=[f"NOTIFY={notify}"] if notify else [])
            until(lambda most=number: len(plain.messages) > most, here)
            assert f" NOTIFY={said} " in plain.messages[number][1][0] + " "


def test_whichever_exchanger_offers_it(tmp_path: Path) -> None:
    """One that lacks what the message needs is passed over; when all do, it is returned."""
    port = free_port()
    zone = {"far.example": ["MX 10 first.example", "MX 20 second.example"],
            "first.example": ["A 127.0.0.2"], "second.example": ["A 127.0.0.3"],
            "half.example": ["MX 10 first.example", "MX 20 down.example"],
            "down.example": ["A 127.0.0.4"], "none.example": ["MX 10 first.example"]}
    with NameServer(zone) as names, Exchanger("127.0.0.2", port, "") as first, \
            Exchanger("127.0.0.3", port, "offer=DELIVERBY") as second, relaying(
                tmp_path / "a", f'relay.dns=["{names.address}"]', f"relay.port={port}",
                "relay.loopback=true", "queue.retry_first_seconds=0.3",
                "queue.retry_factor=1") as here:
        submit(here, ["bob@far.example"], mail=["BY=60;R"])
        until(lambda: second.messages, here)
        submit(here, ["bob@none.example"], mail=["BY=60;R"])
        until(lambda: mail(here), here)
        assert statuses(mail(here)[0]) == [("bob@none.example", "failed", "5.3.3")]
        # The other may offer it once it is there again.
        submit(here, ["bob@half.example"], mail=["BY=60;R"])
        until(lambda: [each["attempts"] for each in listed(here)] > [1], here)
        with Exchanger("127.0.0.4", port, "offer=DELIVERBY") as third:
            until(lambda: third.messages, here)
        assert first.messages == [] and len(mail(here)) == 1


def test_priorities(tmp_path: Path) -> None:
    with Exchanger("127.0.0.1", 0, "offer=MT-PRIORITY") as minds, \
            Exchanger("127.0.0.1", 0, "") as plain, relaying(
                tmp_path / "a", routes(minds=minds, plain=plain)) as here:
        submit(here, ["bob@minds.example"], mail=["MT-PRIORITY=9"])
        until(lambda: len(minds.messages) == 1, here)
        submit(here, ["bob@minds.example"], mail=["MT-PRIORITY=-7"])
        until(lambda: len(minds.messages) == 2, here)
        assert [message[0].split()[-1] for message in minds.messages] == [
            "MT-PRIORITY=4", "MT-PRIORITY=-7"]
        # RFC 6710 §4.2: what none was said for has one as well.
        submit(here, ["bob@minds.example"])
        until(lambda: len(minds.messages) == 3, here)
        assert minds.messages[2][0].endswith(" MT-PRIORITY=0")
        submit(here, ["bob@plain.example"], mail=["MT-PRIORITY=3"])
        until(lambda: plain.messages, here)
        assert "PRIORITY" not in plain.messages[0][0]
    with Exchanger("127.0.0.1", 0, "offer=MT-PRIORITY") as minds, relaying(
            tmp_path / "b", routes(minds=minds),
            'submission.priority_accounts=["Alice@a.example"]') as here:
        submit(here, ["bob@minds.example"], mail=["MT-PRIORITY=9"])
        until(lambda: minds.messages, here)
        assert minds.messages[0][0].endswith(" MT-PRIORITY=9")


def test_require_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    (tmp_path / "key.pem").write_bytes(
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    key = tmp_path / "key.pem"
    with Exchanger("127.0.0.1", 0, "starttls requiretls", certificate=key) as minds, \
            Exchanger("127.0.0.1", 0, "starttls", certificate=key) as lacks, \
            Exchanger("127.0.0.1", 0, "") as plain, relaying(
                tmp_path / "a", routes(minds=minds, lacks=lacks, plain=plain), *QUICK) as here:
        submit(here, ["bob@minds.example"], mail=["REQUIRETLS"])
        until(lambda: minds.messages, here)
        assert minds.messages[0][0].endswith(" REQUIRETLS") and minds.messages[0][3]
        submit(here, ["bob@lacks.example"], mail=["REQUIRETLS", "RET=FULL"])
        submit(here, ["bob@plain.example"], mail=["REQUIRETLS", "RET=FULL"])
        until(lambda: len(mail(here)) == 2, here)
        assert {each for report in mail(here) for each in statuses(report)} == {
            ("bob@lacks.example", "failed", "5.7.30"),
            ("bob@plain.example", "failed", "5.7.10")}
        assert not any(b"a dot" in report for report in mail(here))
        assert lacks.messages == plain.messages == []
