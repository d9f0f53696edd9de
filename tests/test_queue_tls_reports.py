"""mailsvc.queue.security: results, reports and the reporter (RFC 8460), on a clock."""

from __future__ import annotations

import dataclasses
import email
import email.policy
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from mailsvc.errors import TemporaryFailure
from mailsvc.mail import Address, Envelope
from mailsvc.queue.security.https import HTTPFailure
from mailsvc.queue.security.lookup import LookupFailed
from mailsvc.queue.security.report import TLSReport, destinations, mailbox
from mailsvc.queue.security.reporter import Reporter
from mailsvc.queue.security.results import Applied, Count, Detail, Results
from mailsvc.state import State

DESTINATIONS: dict[tuple[str, ...], list[str]] = {
    (): [],
    ("v=spf1 -all",): [],
    ("v=TLSRPTv1; rua=mailto:reports@example.com",): ["mailto:reports@example.com"],
    ("v=TLSRPTv1;rua=https://reporting.example.com/v1/tlsrpt;",): [
        "https://reporting.example.com/v1/tlsrpt"],
    ("v=spf1", "v=TLSRPTv1 ; rua = mailto:a@b.example , https://b.example ; x=y"): [
        "mailto:a@b.example", "https://b.example"],
    ("v=TLSRPTv1; rua=mailto:a@b.example", "v=TLSRPTv1; rua=mailto:c@b.example"): [],
    ("v=TLSRPTv1;",): [],
    ("v=TLSRPTv10; rua=mailto:a@b.example",): [],
    ("v=TLSRPTv1; rua=http://b.example,ftp://b.example,mailto:,mailto:a,https:///x",): [],
    ("v=TLSRPTv1; rua=https://b.example:99999/,https://b.example:x/,https://[x/",): [],
    ("v=TLSRPTv1; rua=mailto:a%0d%0ab@b.example,mailto:a%20b@b.example,mailto:<a>@b.example",): [],
    ("v=TLSRPTv1; rua=mailto:a%2Bb@b.example?subject=x",): ["mailto:a%2Bb@b.example?subject=x"],
}


@pytest.mark.parametrize(("texts", "found"), DESTINATIONS.items())
def test_where_reports_go(texts: tuple[str, ...], found: list[str]) -> None:
    assert destinations(texts) == found


@given(st.text().map(lambda text: f"v=TLSRPTv1; rua={text}"))
def test_whatever_a_record_says_can_be_sent_to_or_is_left_out(text: str) -> None:
    for uri in destinations([text]):
        assert uri.isascii() and uri.isprintable()
        assert uri.startswith("https://") or mailbox(uri).count("@") == 1


def test_fields_of_a_mailto_do_not_count() -> None:
    assert mailbox("mailto:a%2Bb@b.example?subject=x") == "a+b@b.example"


STS = Applied("sts", ("version: STSv1", "mode: testing", "mx: *.b.example", "max_age: 86400"),
              ("*.b.example",))
EXPIRED = Detail("certificate-expired", "mx1.b.example", "192.0.2.1", "it has expired")
COUNTS = [Count(STS, None, 5326), Count(STS, EXPIRED, 100),
          Count(STS, Detail("starttls-not-supported", "mx2.b.example", "2001:db8::1"), 200),
          Count(STS, Detail("sts-policy-fetch-error", text="404"), 3),
          Count(Applied("tlsa", ("3 1 1 00ff",)), None, 7)]
REPORT = TLSReport("2026-11-26", "b.example", COUNTS, "a.example", "tls@a.example", "1K00")


def test_a_report_is_as_the_rfc_has_it() -> None:
    assert REPORT.content == {
        "organization-name": "a.example",
        "date-range": {"start-datetime": "2026-11-26T00:00:00Z",
                       "end-datetime": "2026-11-26T23:59:59Z"},
        "contact-info": "tls@a.example",
        "report-id": "1K00@a.example",
        "policies": [{
            "policy": {"policy-type": "sts", "policy-string": list(STS.strings),
                       "policy-domain": "b.example", "mx-host": ["*.b.example"]},
            "summary": {"total-successful-session-count": 5326,
                        "total-failure-session-count": 303},
            "failure-details": [
                {"result-type": "certificate-expired", "receiving-mx-hostname": "mx1.b.example",
                 "receiving-ip": "192.0.2.1", "failed-session-count": 100,
                 "failure-reason-code": "it has expired"},
                {"result-type": "starttls-not-supported",
                 "receiving-mx-hostname": "mx2.b.example", "receiving-ip": "2001:db8::1",
                 "failed-session-count": 200},
                {"result-type": "sts-policy-fetch-error", "failed-session-count": 3,
                 "failure-reason-code": "404"}],
        }, {
            "policy": {"policy-type": "tlsa", "policy-string": ["3 1 1 00ff"],
                       "policy-domain": "b.example"},
            "summary": {"total-successful-session-count": 7, "total-failure-session-count": 0},
            "failure-details": [],
        }],
    }


def opened(message: bytes) -> tuple[Any, dict[str, Any]]:
    """A report by mail: the message, and what is attached."""
    assert b"\n" not in message.replace(b"\r\n", b"")
    parsed = email.message_from_bytes(message, policy=email.policy.default)
    assert not parsed.defects
    assert parsed.get_content_type() == "multipart/report"
    assert parsed.get_param("report-type") == "tlsrpt"
    text, attachment = parsed.iter_parts()
    assert text.get_content_type() == "text/plain"
    assert attachment.get_content_type() == "application/tlsrpt+gzip"
    return parsed, json.loads(gzip.decompress(attachment.get_content()))


def test_a_report_by_mail() -> None:
    message, content = opened(REPORT.mail("reports@b.example", 1_795_737_600))
    assert content == REPORT.content
    assert (message["From"], message["To"]) == ("tls@a.example", "reports@b.example")
    assert message["Subject"] == (
        "Report Domain: b.example Submitter: a.example Report-ID: <1K00@a.example>")
    assert message["TLS-Report-Domain"] == "b.example"
    assert message["TLS-Report-Submitter"] == "a.example"
    assert message["TLS-Required"] == "No"
    _, attachment = message.iter_parts()
    assert attachment.get_filename() == (
        "a.example!b.example!1795651200!1795737599!1K00.json.gz")


def test_a_report_goes_to_few() -> None:
    uris = [f"mailto:victim{number}@x.example" for number in (0, 0, *range(1000))]
    assert destinations(["v=TLSRPTv1; rua=" + ",".join(uris)]) == [
        f"mailto:victim{number}@x.example" for number in range(5)]


def test_who_reports_may_have_a_long_name() -> None:
    name = ".".join(["a" * 50] * 4)
    message, _ = opened(dataclasses.replace(REPORT, submitter=name, contact=f"tls@{name}").mail(
        "reports@b.example", 0))
    assert len(message.get_boundary()) == 70


# ---- when ---------------------------------------------------------------------------------------

DAY, HOUR = 86_400.0, 3600.0
#: Midnight UTC.
START = 20_000 * DAY


class World:
    """A reporter; what it sends is kept.

    :ivar rua: what the record says, or the failure.
    :ivar posted: by HTTPS; *mailed*: by mail: to whom.
    :ivar broken: by which ways nothing can be sent now.
    """

    def __init__(self, path: Path) -> None:
        self.clock = Clock()
        self.clock.advance(START + 12 * HOUR)
        self.state = State(path / "state.sqlite")
        self.rua: str | Exception = "mailto:r@b.example"
        self.posted: list[tuple[str, dict[str, Any]]] = []
        self.mailed: list[tuple[Envelope, str, dict[str, Any]]] = []
        self.broken: set[str] = set()
        self.open()

    def open(self) -> None:
        """As after a start."""
        self.results = Results(self.state, self, self.clock)  # type: ignore[arg-type]
        self.reporter = Reporter(
            self.results, self, self, self.mail, "tls@a.example", self,  # type: ignore[arg-type]
            self.clock, chance=lambda: 0.5)

    async def texts(self, name: str) -> list[str]:
        assert name.startswith("_smtp._tls.")
        if isinstance(self.rua, Exception):
            raise self.rua
        return [f"v=TLSRPTv1; rua={self.rua}"] if self.rua else []

    async def post(self, url: str, kind: str, body: bytes) -> None:
        assert kind == "application/tlsrpt+gzip"
        if "https" in self.broken:
            raise HTTPFailure("no")
        self.posted.append((url, json.loads(gzip.decompress(body))))

    async def mail(self, envelope: Envelope, to: Address, text: bytes) -> None:
        if "mail" in self.broken:
            raise TemporaryFailure("no")
        self.mailed.append((envelope, str(to), opened(text)[1]))

    def run(self, function: Any, *args: Any) -> Deferred[Any]:
        return succeed(function(*args))

    def pass_by(self, hours: float) -> None:
        for _ in range(int(hours * 4)):
            self.clock.advance(HOUR / 4)

    def left(self) -> list[tuple[str, str]]:
        """What is kept."""
        return self.results.before("9")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.reporter.stop()
    made.state.close()


def test_a_day_is_reported_when_it_is_over_and_once(world: World) -> None:
    world.reporter.start()
    for _ in range(3):
        world.results.note("b.example", STS)
    world.results.note("b.example", STS, EXPIRED)
    world.pass_by(13.5)  # 01:30 of the next day; half of four hours have to pass
    assert world.mailed == []
    world.results.note("b.example", STS)
    world.pass_by(1)
    (envelope, to, content), = world.mailed
    assert (to, str(envelope.reverse_path), envelope.account) == (
        "r@b.example", "tls@a.example", "tls@a.example")
    assert content["policies"][0]["summary"] == {
        "total-successful-session-count": 3, "total-failure-session-count": 1}
    world.pass_by(20)
    assert len(world.mailed) == 1
    world.pass_by(5)
    assert [each[2]["policies"][0]["summary"]["total-successful-session-count"]
            for each in world.mailed] == [3, 1]
    assert world.left() == []


def test_what_was_counted_survives_a_restart(world: World) -> None:
    world.reporter.start()
    world.results.note("b.example", STS)
    world.reporter.stop()
    world.open()
    world.clock.advance(DAY)
    world.reporter.start()
    assert len(world.mailed) == 1 and world.left() == []


def test_domains_that_ask_for_nothing_get_nothing(world: World) -> None:
    world.rua = ""
    world.reporter.start()
    world.results.note("b.example", STS)
    world.pass_by(24)
    assert world.mailed == [] and world.left() == []


@pytest.mark.parametrize("trouble", ["dns", "mail", "https"])
def test_what_cannot_be_sent_is_sent_later_or_given_up(world: World, trouble: str) -> None:
    rua = "https://b.example/r" if trouble == "https" else "mailto:r@b.example"
    world.rua = LookupFailed("no") if trouble == "dns" else rua
    world.broken = {trouble}
    world.reporter.start()
    world.results.note("b.example", STS)
    world.pass_by(24)
    assert len(world.left()) == 1
    world.broken, world.rua = set(), rua
    world.pass_by(2)
    assert len(world.posted) + len(world.mailed) == 1 and world.left() == []
    world.broken = {"mail", "https"}
    world.results.note("b.example", STS)
    world.pass_by(24 * 4)
    assert len(world.posted) + len(world.mailed) == 1 and world.left() == []


def test_whoever_got_it_does_not_get_it_again(world: World) -> None:
    world.rua, world.broken = "https://b.example/r,mailto:r@b.example", {"https"}
    world.reporter.start()
    world.results.note("b.example", STS)
    world.pass_by(24 * 2)
    assert len(world.mailed) == 1 and world.left() == []


@pytest_twisted.ensureDeferred
async def test_counts_add_up_in_the_file(world: World) -> None:
    for _ in range(2):
        for _ in range(5):
            world.results.note("b.example", STS, EXPIRED)
        await world.results.write()
    (day, domain), = world.left()
    assert (day, domain) == ("2024-10-04", "b.example")
    assert world.results.of(day, domain) == [Count(STS, EXPIRED, 10)]
