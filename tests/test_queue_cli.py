"""mailsvc queue: listing and acting, beside a service and without one."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from mailsvc.mail import NULL_PATH, Address
from mailsvc.queue.filter import STATUSES, FilterError, act, parse
from mailsvc.queue.message import (
    RELAYED,
    QueuedMessage,
    QueuedRecipient,
    envelope_line,
    state_line,
)
from mailsvc.queue.message import parse as parse_message
from mailsvc.queue.spool import Draft, Spool
from tests.command_line import CommandLine

NOW = 1_700_000_000.0


def message(id: str, *to: str, sender: str = "alice@example.org", age: float = 60,
            **fields: Any) -> QueuedMessage:
    path = Address(*sender.split("@")) if sender else NULL_PATH
    return QueuedMessage(id, NOW - age, path, [
        QueuedRecipient(a, a) for a in (Address(*each.split("@")) for each in to)], **fields)


@pytest.mark.parametrize(("words", "ids"), [
    ("", "A B C"), ("to:@example.net", "A C"), ("to:BOB@", "A"), ("to:bob@EXAMPLE.net", "A"),
    ("to:eve@example.com", "B"), ("from:<>", "B"), ("from:@example.org", "A C"),
    ("-from:<>", "A C"), ("status:new", "A"), ("status:deferred", "B"), ("status:held", "C"),
    ("age>1h", "B"), ("age<=60s", "A C"), ("size>1K", "C"), ("size<=1k", "A B"),
    ("attempts>=2", "B"), ("attempts<1", "A C"), ("reason:GREY", "B"), ("id:b", "B"),
    ("account:alice@example.org", "C"), ("to:@example.net status:held", "C"),
    ("to:@example.net -status:held age<2m", "A"), ("to:gone@example.net", "")])
def test_filters(words: str, ids: str) -> None:
    b = message("B", "eve@example.com", "gone@example.net", sender="", age=7200, attempts=2)
    b.recipients[0].reply, b.recipients[1].state = "450 greylisted", RELAYED
    c = message("C", "carol@example.net", held=True, account="Alice@example.org")
    c.size = 5000
    test = parse([words])
    found = [each.id for each in (message("A", "bob@example.net"), b, c) if test(each, NOW)]
    assert " ".join(found) == ids


def test_what_is_for_others_to_fetch_is_kept() -> None:
    kept = message("E", "bob@far.example", "eve@branch.example", attempts=1)
    kept.recipients[0].kept = True
    assert [word for word in STATUSES if parse([f"status:{word}"])(kept, NOW)] == ["deferred"]
    kept.recipients[1].state = RELAYED
    assert [word for word in STATUSES if parse([f"status:{word}"])(kept, NOW)] == ["kept"]
    again = parse_message(envelope_line(kept), state_line(kept))
    assert [each.kept for each in again.recipients] == [True, False]
    # As a former version has written it.
    former = state_line(kept).replace(b',"kept":true', b"").replace(b',"kept":false', b"")
    assert not any(each.kept for each in parse_message(envelope_line(kept), former).recipients)
    assert act(kept, "hold", "", NOW)
    assert [word for word in STATUSES if parse([f"status:{word}"])(kept, NOW)] == ["held"]


def test_what_waits_for_its_release_is_scheduled_until_an_operator_lets_it_go() -> None:
    waiting = message("D", "bob@example.net", release=NOW + 60, due=NOW + 60)
    assert [word for word in STATUSES if parse([f"status:{word}"])(waiting, NOW)] == ["scheduled"]
    assert act(waiting, "reroute", "relay.example", NOW)
    assert (waiting.route, waiting.due) == ("relay.example", NOW + 60)
    assert act(waiting, "hold", "", NOW) and waiting.held
    assert act(waiting, "release", "", NOW)
    assert (waiting.held, waiting.due, waiting.released) == (False, NOW, NOW)
    assert not act(waiting, "drop", "", NOW)


@pytest.mark.parametrize("words", ["to:", "to:bob", "x:y", "age>", "age>4", "age>4y", "size>1h",
                                   "status:x", "a-b", "age=4h", "-", "held", "-held", "all"])
def test_words_that_mean_nothing(words: str) -> None:
    with pytest.raises(FilterError):
        parse([words])


@pytest.mark.parametrize("command", ["list", "drop", "the documentation"])
def test_what_a_shell_would_take_for_a_file_is_quoted(command: str, tmp_path: Path) -> None:
    """Without quotes, drop to:@example.org age>4h would drop the young ones too."""
    text = ((Path(__file__).parent.parent / "docs" / "relaying.rst").read_text()
            if command == "the documentation" else
            CommandLine(tmp_path)("queue", command, "--help"))
    shown = re.findall(r"\S*(?:age|size|attempts)[<>]\S*", text)
    assert shown and all(re.match("'.*'", each) for each in shown), shown


@pytest.fixture
def run(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    spool = Spool(tmp_path / "queue")
    spool.make()
    for id, to in (("0A", "bob@example.net"), ("0B", "eve@example.com")):
        each = message(id, to)
        each.arrived = each.due = time.time() - 300
        draft = Draft(each)
        draft.add(b"Subject: x\r\n\r\nbody\r\n")
        spool.commit(draft)
    return spool


def test_an_empty_queue(run: CommandLine) -> None:
    assert run("queue", "list", "--json") == "[]\n"
    assert json.loads(run("queue", "stats", "--json"))["messages"] == 0
    assert run("queue", "hold", "--all") == "Held 0 messages\n"


def test_listing(run: CommandLine, spool: Spool) -> None:
    found = json.loads(run("queue", "list", "to:@example.net", "--json"))
    assert [(each["id"], each["status"], each["size"]) for each in found] == [("0A", "new", 20)]
    assert found[0]["recipients"][0]["state"] == "waiting"
    assert "bob@example.net" in run("queue", "list")
    assert run("queue", "show", "0a", "--text").endswith("Subject: x\n\nbody\n")
    assert "no message 9Z in the queue" in run.fails("queue", "show", "9Z")
    assert json.loads(run("queue", "stats", "--json"))["domains"] == {
        "example.net": 1, "example.com": 1}


def test_words_turned_round_are_no_options(run: CommandLine, spool: Spool) -> None:
    def ids(*words: str) -> list[str]:
        return [each["id"] for each in json.loads(run("queue", "list", "--json", *words))]

    assert ids("-to:bob@example.net") == ids("--", "-to:@example.net") == ["0B"]
    assert ids("-0b", "--", "-age>1h") == ["0A"]
    assert json.loads(run("queue", "stats", "-status:held", "--json"))["messages"] == 2
    assert run("queue", "reroute", "-to:@example.net", "127.0.0.1:25") == "Rerouted 1 message\n"
    assert spool.load("0B").route == "127.0.0.1:25" and not spool.load("0A").route
    assert run("queue", "drop", "-to:@example.com") == "Dropped 1 message\n"
    assert spool.ids() == {"0B"}
    assert "'shoe:x' means nothing" in run.misused("queue", "drop", "-shoe:x")
    assert "FILTER" in run("queue", "list", "--help")


def test_acting_without_a_service(run: CommandLine, spool: Spool) -> None:
    assert run("queue", "hold", "to:@example.net") == "Held 1 message\n"
    assert spool.load("0A").held and not spool.load("0B").held
    assert run("queue", "release", "0A") == "Released 1 message\n"
    assert not spool.load("0A").held
    run("queue", "reroute", "127.0.0.1:2525", "0A")
    assert spool.load("0A").route == "127.0.0.1:2525"
    before = time.time()
    run("queue", "retry", "--all")
    assert spool.load("0B").due >= before
    assert json.loads(run("queue", "drop", "0B", "--json")) == {"ids": ["0B"], "busy": []}
    assert spool.ids() == {"0A"}


def test_what_is_asked_wrongly(run: CommandLine, spool: Spool) -> None:
    assert "Say which messages" in run.misused("queue", "drop")
    assert "Say which messages" in run.misused("queue", "drop", "0A", "--all")
    assert "means nothing" in run.misused("queue", "list", "x:y")
    assert "expected a scheme" in run.misused("queue", "reroute", "http://x", "--all")
    assert spool.ids() == {"0A", "0B"}
