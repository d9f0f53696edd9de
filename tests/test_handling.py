"""mailsvc.smtp.handling: HOLDFOR, HOLDUNTIL, BY, MT-PRIORITY; who may have which priority."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailsvc.mail import NULL_PATH, DeliverBy
from mailsvc.smtp import handling, writing
from mailsvc.smtp.grammar import SyntaxFault
from mailsvc.smtp.mode import SUBMISSION
from mailsvc.smtp.requests import Parameters
from tests.postoffice import Line


@pytest.mark.parametrize(("value", "seconds"), [
    ("1970-01-01T00:00:00Z", 0.0),
    ("2026-11-21T09:30:00Z", 1_795_253_400.0),
    ("2026-11-21t09:30:00.25z", 1_795_253_400.25),
    ("2028-02-29T23:59:59Z", 1_835_481_599.0),
    ("2016-12-31T23:59:60Z", 1_483_228_800.0),
])
def test_until_when(value: str, seconds: float) -> None:
    assert handling.hold_until(value) == seconds
    if seconds == int(seconds) and ":60" not in value:
        assert handling.date_time(seconds) == value.upper()


@pytest.mark.parametrize("value", [
    None, "2026-11-21", "2026-11-21T09:30Z", "2026-11-21T09:30:00", "2026-11-21T09:30:00+00:00",
    "2026-13-01T00:00:00Z", "2026-00-01T00:00:00Z", "2027-02-29T00:00:00Z", "2026-11-21T24:00:00Z",
    "2026-11-21T09:60:00Z", "2026-11-21T09:30:61Z", "1969-12-31T23:59:59Z", "0000-01-01T00:00:00Z",
    "２０２６-11-21T09:30:00Z", "2026-11-21T09:30:00Z\n", "2026-11-21 09:30:00Z"])
def test_what_is_no_time(value: str | None) -> None:
    with pytest.raises(SyntaxFault):
        handling.hold_until(value)


@pytest.mark.parametrize("value", [None, "0", "01", "-1", "+1", "1.5", "1000000000", "١", "1h"])
def test_what_is_no_interval(value: str | None) -> None:
    with pytest.raises(SyntaxFault):
        handling.hold_for(value)
    assert handling.hold_for("999999999") == 999_999_999


@pytest.mark.parametrize(("value", "meant"), [
    ("1;R", DeliverBy(1, "R")), ("999999999;rt", DeliverBy(999_999_999, "R", True)),
    ("+5;N", DeliverBy(5, "N")), ("-5;nT", DeliverBy(-5, "N", True)), ("0;N", DeliverBy(0, "N"))])
def test_what_by_means(value: str, meant: DeliverBy) -> None:
    assert handling.deliver_by(value) == meant


@pytest.mark.parametrize("value", [
    None, "", "1", ";R", "1;", "1;T", "1;X", "1;RN", "1;RX", "1;TR", "1,R", "R;1", "0;R", "-1;R",
    "1234567890;R", "1.5;R", "--1;N", "١;R", "1;R;T", "1 ;R"])
def test_what_by_does_not_mean(value: str | None) -> None:
    with pytest.raises(SyntaxFault):
        handling.deliver_by(value)


@given(st.builds(DeliverBy, st.integers(-999_999_999, 999_999_999), st.just("N"), st.booleans())
       | st.builds(DeliverBy, st.integers(1, 999_999_999), st.just("R"), st.booleans()),
       st.integers(-9, 9))
def test_what_is_written_is_read(by: DeliverBy, priority: int) -> None:
    line = writing.mail(NULL_PATH, Parameters(by=by, priority=priority)).decode()
    said = dict(word.split("=") for word in line.split()[2:])
    assert handling.deliver_by(said["BY"]) == by
    assert handling.priority(said.get("MT-PRIORITY", "0")) == priority


@pytest.mark.parametrize("value", [None, "", "10", "-10", "+1", "-0", "00", "1.0", "x", "٣"])
def test_what_is_no_priority(value: str | None) -> None:
    with pytest.raises(SyntaxFault):
        handling.priority(value)


@pytest.mark.parametrize(("mode", "most", "asked", "given"), [
    (None, {}, 1, 0), (None, {}, 0, 0), (None, {}, -9, -9), (None, {"priority_most": 6}, 9, 6),
    (None, {"priority_most": -3}, 0, -3), (SUBMISSION, {}, 4, 4), (SUBMISSION, {}, 9, 4)])
def test_who_may_have_which_priority(
    mode: object, most: dict[str, int], asked: int, given: int
) -> None:
    """RFC 6710: what is asked too high is lowered, and the reply tells."""
    line = (Line(queue=True, **most) if mode is None  # type: ignore[arg-type]
            else Line(queue=True, mode=SUBMISSION, known=True))
    line.say(b"EHLO x.example\r\n")
    line.heard()
    line.say(b"MAIL FROM:<alice@example.org> MT-PRIORITY=%d\r\n" % asked)
    wanted = (b"250 2.1.0 Sender OK\r\n" if given == asked else
              b"250 2.3.6 %d is the priority of this message; Sender OK\r\n" % given)
    assert line.heard().endswith(wanted)
    envelope = line.protocol.session.transactions.envelope
    assert envelope is not None and envelope.priority == given
