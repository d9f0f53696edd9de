"""mailsvc.queue.security.sts: records and policies; policies: what is kept, on a clock."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from mailsvc.queue.security.https import HTTPFailure
from mailsvc.queue.security.lookup import LookupFailed
from mailsvc.queue.security.policies import Finding, Policies, Shelf
from mailsvc.queue.security.sts import (
    MOST_SECONDS,
    Policy,
    Unusable,
    parse_policy,
    parse_record,
)
from mailsvc.state import State

RECORDS: dict[tuple[str, ...], str | None] = {
    (): None,
    ("v=spf1 -all", "anything"): None,
    ("v=STSv1; id=20160831085700Z;",): "20160831085700Z",
    ("v=STSv1;id=1",): "1",
    ("v=STSv1 ; id = 1 ; other=x",): "1",
    ("v=spf1", "v=STSv1; id=a"): "a",
    ("v=STSv1; id=a; id=b; x=1; x=2",): "a",
    ("v=STSv10; id=1",): None,
    ("V=STSv1; id=1",): None,
    ("id=1; v=STSv1",): None,
}
BAD_RECORDS = {
    ("v=STSv1; id=1", "v=STSv1; id=2"): "2 records with v=STSv1, expected one",
    ("v=STSv1;",): "expected an id",
    ("v=STSv1; id=",): "1 to 32 letters and digits",
    ("v=STSv1; id=a b",): "1 to 32 letters and digits",
    ("v=STSv1; id=" + "x" * 33,): "1 to 32 letters and digits",
    ("v=STSv1; nonsense",): "nonsense': expected name=value",
}


@pytest.mark.parametrize(("texts", "id"), RECORDS.items())
def test_records(texts: tuple[str, ...], id: str | None) -> None:
    assert parse_record(texts) == id


@pytest.mark.parametrize(("texts", "problem"), BAD_RECORDS.items())
def test_bad_records(texts: tuple[str, ...], problem: str) -> None:
    with pytest.raises(Unusable, match=problem):
        parse_record(texts)


GOOD = "version: STSv1\r\nmode: enforce\r\nmx: mail.example.com\r\nmx: *.Example.net\r\n" \
       "mx: backupmx.example.com\r\nmax_age: 604800\r\n"


def test_the_policy_of_the_rfc() -> None:
    policy = parse_policy(GOOD.encode())
    assert (policy.mode, policy.max_age) == ("enforce", 604800)
    assert policy.patterns == ("mail.example.com", "*.example.net", "backupmx.example.com")


POLICIES = {
    GOOD.replace("\r\n", "\n"): 604800,
    GOOD.replace(": ", ":"): 604800,
    GOOD.replace(": ", " \t: ").strip(): 604800,
    GOOD + "\r\nfuture: whatever: it is\r\n": 604800,
    GOOD + "max_age: 1\r\nmode: none\r\n": 604800,
    GOOD.replace("604800", "9999999999"): MOST_SECONDS,
    GOOD.replace("604800", "0"): 0,
}
BAD_POLICIES = {
    "": "no version: expected STSv1",
    "<html>hello</html>": r"line 1: '<html>hello</html>': expected key: value",
    GOOD.replace("STSv1", "STSv2"): "version: 'STSv2': expected STSv1",
    GOOD.replace("enforce", "Enforce"): "mode: 'Enforce': expected enforce or testing or none",
    GOOD.replace("max_age: 604800", ""): "no max_age",
    GOOD.replace("604800", "-1"): "max_age: '-1'",
    GOOD.replace("604800", "9" * 11): "max_age",
    GOOD.replace("604800", "\u0661"): "max_age",
    GOOD.replace("mx: *.Example.net", "mx: a.*.example.net"): "line 4: mx: 'a.*.example.net'",
    GOOD.replace("mx: *.Example.net", "mx: *"): "line 4",
    GOOD.replace("mx: *.Example.net", "mx:"): "line 4",
    GOOD.replace("mx: *.Example.net", "mx: mail.example.com."): "line 4",
    GOOD.replace("mx:", "nx:"): "no mx: mode enforce needs one at least",
    GOOD + "mx: a.example\n" * 1000: "1003 mx lines",
    GOOD + "x: " + "y" * 65_536: "more than 65536 octets",
}


@pytest.mark.parametrize(("text", "max_age"), POLICIES.items())
def test_policies(text: str, max_age: int) -> None:
    policy = parse_policy(text.encode())
    assert (policy.mode, policy.max_age, len(policy.patterns)) == ("enforce", max_age, 3)


@pytest.mark.parametrize(("text", "problem"), BAD_POLICIES.items())
def test_bad_policies(text: str, problem: str) -> None:
    with pytest.raises(Unusable) as raised:
        parse_policy(text.encode())
    assert problem.replace("\\", "") in str(raised.value)


def test_mode_none_needs_no_exchanger() -> None:
    assert parse_policy(b"version: STSv1\nmode: none\nmax_age: 1\n").patterns == ()


@given(st.one_of(st.binary(), st.lists(st.sampled_from(
    ["version: STSv1", "mode: enforce", "mode: none", "mx: *.a", "mx: a.b", "max_age: 7", ":",
     "mx", "\r", "é: 1", ""])).map(lambda lines: "\n".join(lines).encode())))
def test_whatever_is_no_policy_is_said_to_be_none(content: bytes) -> None:
    try:
        policy = parse_policy(content)
    except Unusable:
        return
    assert parse_policy(policy.text.encode()) == policy


MATCHES = {
    ("mail.example.com", "mail.example.com"): True,
    ("mail.example.com", "MAIL.Example.com."): True,
    ("mail.example.com", "amail.example.com"): False,
    ("*.example.com", "mail.example.com"): True,
    ("*.example.com", "example.com"): False,
    ("*.example.com", "a.mail.example.com"): False,
    ("example.com", "mail.example.com"): False,
    ("*.com", "example.com"): True,
}


@pytest.mark.parametrize(("pair", "matches"), MATCHES.items())
def test_matching(pair: tuple[str, str], matches: bool) -> None:
    pattern, host = pair
    assert Policy("enforce", (pattern,), 1).matches(host) is matches


# ---- what is kept -------------------------------------------------------------------------------

DAY = 86_400.0


class World:
    """A domain, its name server and its policy host, on a clock.

    :ivar texts_: the records, or the failure; *policy* likewise.
    :ivar fetched: how often the policy host was asked.
    """

    def __init__(self, path: Path) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000)
        self.state = State(path / "state.sqlite")
        self.texts_: list[str] | Exception = ["v=STSv1; id=1;"]
        self.policy: bytes | Exception = self.written("a.example")
        self.fetched = 0
        self.waiting: Deferred[bytes] | None = None
        self.open()

    def open(self) -> None:
        """As after a restart."""
        self.policies = Policies(Shelf(self.state), self, self, self, self.clock)  # type: ignore

    @staticmethod
    def written(host: str, max_age: float = 7 * DAY, mode: str = "enforce") -> bytes:
        return f"version: STSv1\nmode: {mode}\nmx: {host}\nmax_age: {max_age:.0f}\n".encode()

    async def texts(self, name: str) -> list[str]:
        assert name == "_mta-sts.b.example"
        if isinstance(self.texts_, Exception):
            raise self.texts_
        return self.texts_

    async def get(self, url: str, kind: str, most: int) -> bytes:
        assert (url, kind) == ("https://mta-sts.b.example/.well-known/mta-sts.txt", "text/plain")
        self.fetched += 1
        if self.waiting is not None:
            return await self.waiting
        if isinstance(self.policy, Exception):
            raise self.policy
        return self.policy

    def run(self, function, *args) -> Deferred[object]:  # type: ignore[no-untyped-def]
        return succeed(function(*args))

    async def find(self) -> Finding:
        return await self.policies.find("b.example")

    async def host(self) -> str | None:
        """The exchanger that the policy names now."""
        policy = (await self.find()).policy
        return policy.patterns[0] if policy is not None else None


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.policies.stop()
    made.state.close()


@pytest_twisted.ensureDeferred
async def test_a_policy_is_fetched_once_and_survives_a_restart(world: World) -> None:
    assert [await world.host() for _ in range(3)] == ["a.example"] * 3
    world.open()
    assert await world.host() == "a.example" and world.fetched == 1


@pytest_twisted.ensureDeferred
async def test_another_id_is_another_policy(world: World) -> None:
    await world.find()
    world.policy = world.written("new.example")
    assert await world.host() == "a.example"
    world.texts_ = ["v=STSv1; id=2;"]
    assert await world.host() == "new.example" and world.fetched == 2


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("change", ["gone", "lame", "broken", "two", "no host", "bad policy"])
async def test_a_policy_holds_until_its_age_is_over(world: World, change: str) -> None:
    await world.find()
    if change in ("gone", "lame", "broken", "two"):
        world.texts_ = {"gone": [], "lame": LookupFailed("no"), "broken": ["v=STSv1; id=-"],
                        "two": ["v=STSv1; id=1", "v=STSv1; id=2"]}[change]  # type: ignore
    else:
        world.texts_ = ["v=STSv1; id=2;"]
        world.policy = HTTPFailure("no") if change == "no host" else b"<html>"
    world.clock.advance(7 * DAY - 1)
    assert await world.host() == "a.example"
    world.clock.advance(2)
    assert await world.host() is None


@pytest_twisted.ensureDeferred
async def test_a_failed_fetch_is_made_again_after_five_minutes(world: World) -> None:
    world.policy = HTTPFailure("refused")
    for _ in range(3):
        finding = await world.find()
        assert (finding.policy, finding.reason) == (None, "sts-policy-fetch-error")
    world.policy = world.written("a.example")
    world.clock.advance(299)
    assert await world.host() is None and world.fetched == 1
    world.clock.advance(2)
    assert await world.host() == "a.example" and world.fetched == 2


@pytest_twisted.ensureDeferred
async def test_why_a_policy_cannot_be_had_is_told(world: World) -> None:
    reasons = {}
    for name, policy in {"cert": HTTPFailure("x", certificate=True), "http": HTTPFailure("404"),
                         "text": b"no policy"}.items():
        world.policy = policy  # type: ignore[assignment]
        world.clock.advance(301)
        reasons[name] = (await world.find()).reason
    assert reasons == {"cert": "sts-webpki-invalid", "http": "sts-policy-fetch-error",
                       "text": "sts-policy-invalid"}


@pytest_twisted.ensureDeferred
async def test_what_is_in_use_is_kept_fresh(world: World) -> None:
    world.policies.start()
    await world.find()
    for _ in range(20 * 24):
        world.clock.advance(3600)
    # Once a day, so it never came to its end.
    assert await world.host() == "a.example" and 18 <= world.fetched <= 21
    for _ in range(60 * 24):
        world.clock.advance(3600)
    # No mail for a month: it is let go of.
    assert world.fetched <= 52
    assert world.policies._shelf.all() == []


@pytest_twisted.ensureDeferred
async def test_many_who_come_at_once_fetch_once(world: World) -> None:
    world.waiting = Deferred()
    asking = [Deferred.fromCoroutine(world.find()) for _ in range(5)]
    assert world.fetched == 1
    world.waiting.callback(world.written("a.example"))
    assert {(await each).policy.patterns for each in asking} == {  # type: ignore[union-attr]
        ("a.example",)}
    assert world.fetched == 1 and not world.policies._locks
