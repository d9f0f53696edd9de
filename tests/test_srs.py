"""Sender rewriting: there and back, however many forwarders are between, and what is not ours."""

from __future__ import annotations

import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailsvc.mail import NULL_PATH, Address
from mailsvc.srs import DAYS, SRS

DAY = 86_400
ALICE = Address("Alice", "sender.example")


class Host:
    """A host that forwards.

    :ivar now: its clock.
    """

    def __init__(self, domain: str, now: float = 20_000 * DAY) -> None:
        self.domain = domain
        self.now = now
        self.srs = SRS(lambda value: hmac.digest(domain.encode(), value, "sha256"),
                       lambda: self.now)

    def forward(self, sender: Address) -> Address:
        return self.srs.forward(sender, self.domain)

    def reverse(self, recipient: Address) -> Address | None:
        assert recipient.domain == self.domain
        return self.srs.reverse(recipient.local_part)


def test_there_and_back() -> None:
    ours = Host("ours.example")
    path = ours.forward(ALICE)
    assert path.domain == "ours.example"
    assert path.local_part.startswith("SRS0=") and path.local_part.endswith("=sender.example=Alice")
    assert ours.reverse(path) == ALICE
    # Hosts between may change the case.
    assert ours.srs.reverse(path.local_part.lower()) == Address("alice", "sender.example")
    assert ours.srs.reverse(path.local_part.upper()) == Address("ALICE", "sender.example")


def test_the_way_back_does_not_grow_with_each_forwarder() -> None:
    first, second, third, fourth = (Host(f"{n}.example") for n in "1234")
    at_first = first.forward(ALICE)
    at_second = second.forward(at_first)
    at_third = third.forward(at_second)
    at_fourth = fourth.forward(at_third)
    assert at_second.local_part.startswith("SRS1=")
    assert len(str(at_second)) == len(str(at_third)) == len(str(at_fourth))
    # Whoever has it back sends it to the first, who alone knows.
    for host, path in (second, at_second), (third, at_third), (fourth, at_fourth):
        assert host.reverse(path) == at_first
    assert first.reverse(at_first) == ALICE


@pytest.mark.parametrize("sender", [
    NULL_PATH, Address("bob", "ours.example"), Address("bob", "[192.0.2.1]"),
    Address("x" * 50, "sender.example"), Address("SRS0+" + "x" * 60, "sender.example"),
    Address("é" * 20, "sender.example")])
def test_who_is_left_as_he_is(sender: Address) -> None:
    assert Host("ours.example").forward(sender) == sender


@pytest.mark.parametrize("separator", "=+-")
def test_what_others_write_after_srs0_and_srs1(separator: str) -> None:
    ours = Host("ours.example")
    theirs = Address(f"SRS0{separator}abcd=XY=a.example=bob", "fwd.example")
    assert ours.reverse(ours.forward(theirs)) == theirs
    wrapped = Address(f"SRS1{separator}abcd=fwd.example={separator}ab=XY=a.example=bob",
                      "other.example")
    assert ours.reverse(ours.forward(wrapped)) == Address(
        f"SRS0{separator}ab=XY=a.example=bob", "fwd.example")


def test_a_report_may_come_for_so_many_days() -> None:
    ours = Host("ours.example", now=(1024 * 20 - 3) * DAY)  # and the count of days turns over
    path = ours.forward(ALICE)
    for days in range(DAYS + 1):
        ours.now = (1024 * 20 - 3 + days) * DAY
        assert ours.reverse(path) == ALICE
    for days in (DAYS + 1, 100, 1000, -1):
        ours.now = (1024 * 20 - 3 + days) * DAY
        assert ours.reverse(path) is None


@pytest.mark.parametrize("local_part", [
    "", "SRS", "alice", "srs0", "SRS0=", "SRS0=AAAAAA=AA=sender.example=alice", "SRS2=AAAAAA=x=y",
    "SRS0=AAAAAA=AA=sender.example=", "SRS0=AAAAAA=AA==alice", "SRS0=AAAAA=AA=a.example=alice",
    "SRS0=AAAAA1=AA=a.example=alice", "SRS1=AAAAAA=fwd.example==AAAAAA=AA=a.example=alice",
    "SRS1=AAAAAA==x", "SRS0=ſſſſſſ=AA=a.example=alice", "SRS0=AAAAAA=ſſ=a.example=alice",
    # The Kelvin sign is a K to those who fold case without thinking.
    "SRS0=\u212a\u212a\u212a\u212a\u212a\u212a=AA=a.example=alice",
    "SRS0=AAAAAA=\u212a\u212a=a.example=alice",
    "SRS1=\u212a\u212a\u212a\u212a\u212a\u212a=fwd.example==AAAAAA=AA=a.example=alice"])
def test_what_we_did_not_make(local_part: str) -> None:
    """Nobody sends to whom he likes by us (an open relay)."""
    assert Host("ours.example").srs.reverse(local_part) is None


def test_no_part_can_be_exchanged() -> None:
    ours, other = Host("ours.example"), Host("other.example")
    path = ours.forward(ALICE).local_part
    assert other.srs.reverse(path) is None
    for part, instead in ("Alice", "bob"), ("sender.", "victim."), ("=", "+"):
        changed = path.replace(part, instead)
        assert changed != path
        assert ours.srs.reverse(changed) is None
    wrapped = ours.forward(other.forward(ALICE)).local_part
    assert ours.srs.reverse(wrapped) is not None
    assert ours.srs.reverse(wrapped.replace("other.", "victim.")) is None


@given(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=30))
def test_whoever_sends_is_found_again(local_part: str) -> None:
    ours, other = Host("ours.example"), Host("fwd.example")
    sender = Address(local_part, "s.example")
    path = ours.forward(sender)
    if path != sender:
        back = ours.reverse(path)
        assert back == sender
    through = other.forward(path)
    if through not in (path, sender):
        assert other.reverse(through) in (path, sender)


@given(st.text(max_size=70))
def test_anything_may_come_back(local_part: str) -> None:
    ours = Host("ours.example")
    for each in local_part, f"SRS0={local_part}", f"SRS1={local_part}":
        assert ours.srs.reverse(each) is None
