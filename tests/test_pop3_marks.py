"""``mailsvc.pop3.marks`` and the commands that need it, against a naive model and in large."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailsvc.pop3 import events
from mailsvc.pop3.commands import State
from mailsvc.pop3.marks import BLOCK_LINES, MarkedMaildrop
from mailsvc.pop3.replies import plural
from tests.maildrops import Sizes
from tests.pop3 import ask, event, session, tell

T = State.TRANSACTION


class Naive:
    """Deletion marks in the plainest way."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = dict(enumerate(sizes, 1))
        self.all = dict(self.sizes)

    def ask(self, command: str) -> str:
        verb, *rest = command.split()
        number = int(rest[0]) if rest else None
        count, octets = len(self.sizes), sum(self.sizes.values())
        summary = f"+OK {plural(count, 'message')} ({plural(octets, 'octet')})\r\n"
        if verb == "STAT":
            return f"+OK {count} {octets}\r\n"
        if verb == "RSET":
            self.sizes = dict(self.all)
            return Naive(list(self.all.values())).ask("LIST").split("\r\n")[0] + "\r\n"
        if number is None:
            lines = ({n: str(size) for n, size in self.sizes.items()} if verb == "LIST"
                     else {n: f"{n:070}" for n in self.sizes})
            first = summary if verb == "LIST" else "+OK Unique-ids follow\r\n"
            return first + "".join(f"{n} {text}\r\n" for n, text in lines.items()) + ".\r\n"
        if number not in self.all:
            return f"-ERR No such message; the last one is {len(self.all)}\r\n"
        if number not in self.sizes:
            return f"-ERR Message {number} is marked as deleted\r\n"
        if verb == "DELE":
            del self.sizes[number]
            return f"+OK Message {number} deleted\r\n"
        text = self.sizes[number] if verb == "LIST" else f"{number:070}"
        return f"+OK {number} {text}\r\n"


NUMBER = st.integers(0, 7)
COMMAND = st.one_of(
    st.sampled_from(["STAT", "LIST", "UIDL", "RSET"]),
    st.builds("{} {}".format, st.sampled_from(["DELE", "DELE", "LIST", "UIDL"]), NUMBER),
)


@given(st.lists(st.integers(0, 10**12), max_size=6), st.lists(COMMAND, max_size=40))
def test_marks_against_a_naive_model(sizes: list[int], commands: list[str]) -> None:
    subject, model = session(T, Sizes(sizes)), Naive(sizes)
    for command in commands:
        assert ask(subject, command) == model.ask(command), command
    assert event(subject, "QUIT") == events.Update(frozenset(model.all.keys() - model.sizes.keys()))


@pytest.mark.parametrize("total", [BLOCK_LINES - 1, BLOCK_LINES, BLOCK_LINES + 1,
                                   2 * BLOCK_LINES, 2 * BLOCK_LINES + 1])
@pytest.mark.parametrize("verb", ["LIST", "UIDL"])
@pytest.mark.parametrize("deleted", [(), (1, 2, BLOCK_LINES - 1)])
def test_listings_around_the_size_of_a_block(
    total: int, verb: str, deleted: tuple[int, ...]
) -> None:
    sizes = [n * 7 for n in range(total)]
    subject, model = session(T, Sizes(sizes)), Naive(sizes)
    for number in deleted:
        assert ask(subject, f"DELE {number}") == model.ask(f"DELE {number}")
    happened = event(subject, verb)
    said = subject.data_to_send()
    assert isinstance(happened, events.Listing) == (total > BLOCK_LINES)
    if isinstance(happened, events.Listing):
        blocks = list(happened.blocks)
        assert len(blocks) == -(-total // BLOCK_LINES)
        subject.listed()
        said += b"".join(blocks) + subject.data_to_send()
    assert said.decode() == model.ask(verb)
    assert ask(subject, "NOOP") == "+OK Nothing done\r\n"


class Counted(Sequence[int]):
    """A hundred thousand sizes that count how often they are looked at."""

    def __init__(self) -> None:
        self.looks = 0

    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, index: Any) -> Any:
        numbers = range(1000, 101_000)[index]
        self.looks += 1 if isinstance(numbers, int) else len(numbers)
        return numbers


def test_a_hundred_thousand_messages() -> None:
    sizes = Counted()
    maildrop = Sizes(sizes)
    sizes.looks = 0
    subject = session(T, maildrop)
    left, octets = 100_000, maildrop.octets
    assert sizes.looks == 0
    for number in range(1, 100_001):
        tell(subject, f"DELE {number}", "STAT")
        assert subject.next_event() is None
        left -= 1
        octets -= number + 999
        assert subject.data_to_send().endswith(b"+OK %d %d\r\n" % (left, octets))
    # A look for each message: nothing was gone through again and again.
    assert sizes.looks == 100_000
    assert ask(subject, "RSET").startswith("+OK 100000 messages")
    sizes.looks = 0
    listing = event(subject, "LIST")
    assert isinstance(listing, events.Listing)
    assert next(listing.blocks).startswith(b"1 1000\r\n2 1001\r\n")
    # A block is made when it is asked for, and not before.
    assert sizes.looks == BLOCK_LINES
    rest = list(listing.blocks)
    assert max(map(len, rest)) < 65_536
    assert rest[-1].endswith(b"\r\n100000 100999\r\n")
    assert len(rest) == 97
    subject.listed()
    assert subject.data_to_send().endswith(b".\r\n")


def test_marks_take_an_octet_each_and_none_before_the_first() -> None:
    marks = MarkedMaildrop(Sizes([1] * 1000))
    assert not marks.is_marked(1)
    assert marks._unmarked is None
    marks.mark(1000)
    assert marks.is_marked(1000)
    assert not marks.is_marked(999)
    assert len(marks._unmarked or b"") == 1000
    assert marks.deleted == {1000}
    marks.unmark_all()
    assert marks._unmarked is None
    assert marks.deleted == frozenset()
    assert (marks.count, marks.octets, marks.total) == (1000, 1000, 1000)
