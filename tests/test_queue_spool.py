"""mailsvc.queue.spool and mailsvc.queue.message: what is on disk, at every moment."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailsvc.mail import NULL_PATH, Account, Address, DeliverBy, Envelope, Recipient, Remote
from mailsvc.queue.claims import Claims, Ownership
from mailsvc.queue.message import (
    STATES,
    QueuedMessage,
    QueuedRecipient,
    Unreadable,
    envelope_line,
    parse,
    priority_of,
    queued,
    state_line,
)
from mailsvc.queue.spool import Draft, Spool

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
ADDRESS = st.builds(Address, TEXT, TEXT)
RECIPIENT = st.builds(
    QueuedRecipient, ADDRESS, ADDRESS, st.none() | ADDRESS, st.lists(TEXT).map(tuple), TEXT,
    st.sampled_from(STATES), TEXT, TEXT, TEXT, st.floats(0, 2e9), st.booleans())
MESSAGE = st.builds(
    QueuedMessage, st.just("0ABC"), st.floats(0, 2e9), ADDRESS, st.lists(RECIPIENT, max_size=4),
    TEXT, st.booleans(), st.booleans(), TEXT, TEXT, TEXT, st.integers(0, 9), st.floats(0, 2e9),
    st.booleans(), st.booleans(), TEXT)


@given(MESSAGE)
def test_no_text_in_one_field_changes_another(message: QueuedMessage) -> None:
    envelope, state = envelope_line(message), state_line(message)
    for line in envelope, state:
        assert line.isascii() and line.count(b"\n") == 1 and line.endswith(b"\n")
        assert b"\r" not in line and b"\0" not in line
    assert parse(envelope, state) == message


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_anything_else_is_unreadable_and_no_more(envelope: bytes, state: bytes) -> None:
    with pytest.raises(Unreadable):
        parse(envelope, state)


#: What may stand where something else should.
ODD = [None, True, "x", "", 1, -1, 1.5, 10**400, float("inf"), float("nan"), [], ["a"], ["a", "b"],
       ["a", "b", "c"], [["a", "b"], "c"], {}, {"a": 1}, [{}], [None], [[]]]


@pytest.mark.parametrize("part", ["envelope", "state"])
@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_no_value_of_another_kind_is_more_than_unreadable(part: str, odd: Any) -> None:
    """As after an edit by hand, or by another version."""
    message = a_message("1A")
    lines = {"envelope": envelope_line(message), "state": state_line(message)}
    said = json.loads(lines[part])
    for holder in said, said["recipients"][0]:
        for key in list(holder):
            before = holder[key]
            for change in "replaced", "removed":
                if change == "replaced":
                    holder[key] = odd
                else:
                    del holder[key]
                changed = {**lines, part: json.dumps(said).encode() + b"\n"}
                with contextlib.suppress(Unreadable):
                    assert isinstance(parse(changed["envelope"], changed["state"]), QueuedMessage)
                holder[key] = before


@pytest.mark.parametrize(("part", "field", "value", "complaint"), [
    ("envelope", "version", 99, "not of version"), ("envelope", "id", 5, "expected a string"),
    ("envelope", "arrived", "now", "expected a number"),
    ("envelope", "reverse_path", ["a", "b", "c"], "another kind"),
    ("state", "attempts", "many", "another kind"), ("state", "due", True, "expected a number"),
    ("state", "recipients", [], "not as many recipients"),
    ("state", "recipients", [{"state": "lost"}], "no such state: 'lost'")])
def test_what_is_wrong_with_a_file_is_said(part: str, field: str, value: Any,
                                           complaint: str) -> None:
    lines = {"envelope": envelope_line(a_message("1A")), "state": state_line(a_message("1A"))}
    lines[part] = json.dumps({**json.loads(lines[part]), field: value}).encode()
    with pytest.raises(Unreadable, match=complaint):
        parse(lines["envelope"], lines["state"])


def test_a_state_of_another_envelope_is_not_taken(spool: Spool) -> None:
    message = a_message("1A")
    other = dataclasses.replace(message, recipients=message.recipients * 2)
    with pytest.raises(Unreadable):
        parse(envelope_line(message), state_line(other))


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    spool = Spool(tmp_path / "queue")
    spool.make()
    return spool


def a_message(id: str, **fields: Any) -> QueuedMessage:
    to = Address("bob", "example.net")
    return QueuedMessage(id, 1000.0, Address("alice", "example.org"),
                         [QueuedRecipient(to, to)], due=1000.0, **fields)


def put(spool: Spool, message: QueuedMessage, *blocks: bytes) -> None:
    draft = Draft(message)
    for block in blocks[:-1]:
        draft.add(block)
        spool.write(draft, draft.take())
    draft.add(blocks[-1])
    spool.commit(draft)


def test_what_goes_in_comes_out(spool: Spool) -> None:
    message = a_message("2B", envid="a\r\nb")
    put(spool, message, b"Subject: x\r\n\r\n", b"{\"version\":1}\r\nbody\r\n")
    assert spool.ids() == {"2B"}
    with spool.open("2B") as (found, stream):
        assert found == message
        assert stream.read() == b"Subject: x\r\n\r\n{\"version\":1}\r\nbody\r\n"
    assert spool.load("2B").size == 35


def test_nothing_is_queued_before_commit_and_nothing_left_after_abort(spool: Spool) -> None:
    draft = Draft(a_message("3C"))
    draft.add(b"half")
    spool.write(draft, draft.take())
    assert spool.ids() == set() and os.listdir(spool.root / "incoming") == ["3C"]
    spool.discard(draft)
    assert os.listdir(spool.root / "incoming") == []


def test_a_state_survives_and_its_time_is_that_of_the_next_attempt(spool: Spool) -> None:
    message = a_message("4D")
    put(spool, message, b"x\r\n")
    assert spool.due() == {"4D": 0.0}
    message.due, message.attempts, message.recipients[0].reply = 5000.0, 3, "450 later\r\n"
    spool.save(message)
    assert spool.load("4D") == message
    assert spool.due() == {"4D": 5000.0}
    message.held = True
    spool.save(message)
    assert spool.due()["4D"] > 4e9
    spool.end(message)
    spool.end(message)
    assert spool.ids() == set() and os.listdir(spool.root / "state") == []


def test_spoilt_files_are_set_aside(spool: Spool) -> None:
    put(spool, a_message("5E"), b"x\r\n")
    (spool.root / "message" / "5E").write_bytes(b"{}\nx\r\n")
    with pytest.raises(Unreadable):
        spool.load("5E")
    assert spool.set_aside("5E").read_bytes() == b"{}\nx\r\n"
    assert spool.ids() == set()


def test_what_has_not_changed_is_not_listed_again(spool: Spool) -> None:
    put(spool, a_message("7A"), b"x\r\n")
    # What came in the same moment may have come behind the listing.
    assert spool.ids_if_changed() == spool.ids_if_changed() == {"7A"}
    os.utime(spool.root / "message", (1e9, 1e9))
    assert spool.ids_if_changed() == {"7A"}
    assert spool.ids_if_changed() is None
    put(spool, a_message("7B"), b"x\r\n")
    assert spool.ids_if_changed() == {"7A", "7B"}


@pytest.mark.parametrize("id", ["", "../1", "a/b", ".", "a\0b"])
def test_ids_name_no_other_file(spool: Spool, id: str) -> None:
    with pytest.raises(FileNotFoundError):
        spool.load(id)


STEPS = ["open", "pwrite", "fsync", "rename", "directory"]


@pytest.mark.parametrize("step", STEPS)
def test_a_commit_that_fails_leaves_nothing(spool: Spool, monkeypatch: pytest.MonkeyPatch,
                                            step: str) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    real_fsync = os.fsync
    if step == "directory":
        monkeypatch.setattr("mailsvc.queue.spool.sync_directory", fail)
    else:
        monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="No space"):
        put(spool, a_message("6F"), b"x\r\n")
    monkeypatch.undo()
    assert os.fsync is real_fsync
    assert spool.ids() == set() and os.listdir(spool.root / "incoming") == []


def test_only_one_holds_the_lock(spool: Spool) -> None:
    one, other = Ownership(spool.root), Ownership(spool.root)
    assert one.acquire() and one.acquire()
    assert not other.acquire()
    one.release()
    assert other.acquire()
    other.release()


def test_sweeping_takes_what_is_old_and_nothing_else(spool: Spool) -> None:
    put(spool, a_message("7A"), b"x\r\n")
    (spool.root / "incoming" / "8B").write_bytes(b"half")
    (spool.root / "state" / "9C").write_bytes(b"{}\n")
    assert spool.sweep() == 1
    assert (spool.root / "incoming" / "8B").exists()
    assert spool.sweep(hours=-1) == 1
    assert spool.ids() == {"7A"}


def test_an_envelope_is_queued_once_for_each_address() -> None:
    bob, alias = Address("bob", "example.net"), Address("friends", "example.org")
    envelope = Envelope("ID", NULL_PATH, recipients=[
        Recipient(bob, (), (Remote(bob),), ("SUCCESS",), "rfc822;Bob@example.net"),
        Recipient(alias, (), (Remote(bob, alias), Remote(Address("eve", "example.com"), alias)))])
    message = queued(envelope, 5.0)
    assert [(str(each.address), str(each.original), each.alias, each.notify)
            for each in message.recipients] == [
        ("bob@example.net", "bob@example.net", None, ("SUCCESS",)),
        ("eve@example.com", "friends@example.org", alias, ())]




@pytest.mark.parametrize(("notify", "left"), [
    (("SUCCESS",), ("NEVER",)), (("SUCCESS", "FAILURE"), ("FAILURE",)), (("FAILURE",),) * 2,
    ((), ()), (("NEVER",),) * 2])
def test_success_with_an_alias_is_told_here_and_by_nobody_else(
    notify: tuple[str, ...], left: tuple[str, ...]
) -> None:
    """RFC 3461 §5.2.7.3: a list was expanded, and that is the end of it."""
    envelope = Envelope("8H", Address("alice", "example.org"))
    team = tuple(Remote(Address(name, "example.net")) for name in ("bob", "carol"))
    envelope.recipients = [Recipient(Address("team", "example.org"), (), team, notify),
                           Recipient(Address("dave", "example.net"), (), (
                               Remote(Address("dave", "example.net")),), notify)]
    assert [each.notify for each in queued(envelope, 1.0).recipients] == [left, left, notify]


def test_what_is_held_is_for_mailboxes_here_as_well() -> None:
    """RFC 4865: until its release it lies in the queue, whomever it is for."""
    bob = Recipient(Address("bob", "example.org"), (Account("bob", "example.org"),), (),
                    ("SUCCESS",))
    for release in 0.0, 50.0:
        envelope = Envelope("9J", NULL_PATH, recipients=[bob], release=release)
        message = queued(envelope, 1.0)
        assert [(str(each.address), each.local, each.notify) for each in message.recipients] == (
            [("bob@example.org", True, ("SUCCESS",))] if release else [])
        assert (message.due, message.release) == (release or 1.0, release)


def test_priorities_are_read_from_the_beginning_of_the_files(spool: Spool) -> None:
    for id, priority in ("1A", 0), ("2B", 9), ("3C", -9):
        put(spool, a_message(id, priority=priority), b"x\r\n")
    assert spool.priorities(["1A", "2B", "3C", "4D"]) == {"2B": 9, "3C": -9}
    assert priority_of(b"") == priority_of(b'{"version":1,"priority":x') == 0


@pytest.mark.parametrize("by", [None, DeliverBy(60, "R", True), DeliverBy(-5, "N")])
def test_the_time_that_a_message_has_is_kept(by: DeliverBy | None) -> None:
    message = a_message("5E", by=by)
    assert parse(envelope_line(message), None).by == by
    if by is not None:
        said = json.loads(envelope_line(message))
        said["by"]["mode"] = "X"
        with pytest.raises(Unreadable, match="expected R or N"):
            parse(json.dumps(said).encode(), None)


#: Claims the message that it is told of, and says whether it could, until its input ends.
CLAIMING = """
import sys
from mailsvc.queue.claims import Claims
claims = Claims(sys.argv[1].encode())
print(claims.take(sys.argv[2]), flush=True)
sys.stdin.read()
"""


def test_a_message_is_claimed_by_one_process_until_it_lets_go_or_ends(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path / "claims")

    @contextlib.contextmanager
    def another(id: str) -> Any:
        with subprocess.Popen([sys.executable, "-c", CLAIMING, path, id], text=True,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            yield process.stdout.readline() == "True\n"
            process.kill()

    claims = Claims(path)
    assert claims.take("0A") and not claims.take("0A") and claims.take("0B")
    with another("0A") as could:
        assert not could
    # With a descriptor that is closed, all locks of the process on its file would go.
    other = Claims(path)
    assert other.take("0A")
    del other
    gc.collect()
    with another("0A") as could:
        assert not could
    claims.give_back("0A")
    with another("0A") as could:
        assert could
        assert not claims.take("0A") and not claims.take("0B")
    assert claims.take("0A")


def test_claims_leave_no_file_open(tmp_path: Path) -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    claims = Claims(os.fsencode(tmp_path / "claims"))
    assert all(claims.take(f"{number:02X}") for number in range(40))
    assert len(os.listdir("/proc/self/fd")) > before
    del claims
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
