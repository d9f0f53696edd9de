"""``mailsvc trace`` beside services that run, and beside none."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mailsvc.cli import main
from mailsvc.log import escape
from mailsvc.mail import new_id
from mailsvc.tracing.archive import Reader, Writer
from mailsvc.tracing.events import Entry, Kind
from mailsvc.tracing.limits import TraceSettings
from mailsvc.tracing.story import Story, story_of
from tests.command_line import CommandLine, fresh_command_line
from tests.service import Dialogue, Service, fetch, login, stuffed, submit

ONE = ("--set", "service.workers=1")
TEXT = b"Subject: lost?\r\nMessage-ID:\r\n <4711.abc@desk.example.com>\r\n\r\nHere I am.\r\n"


def traced(directory: Path, what: str, *, until: Callable[[Any], bool] = bool) -> Any:
    """What ``mailsvc trace WHAT --json`` prints, once it is as *until* wants it."""
    deadline = time.monotonic() + 20
    while True:
        result = CommandLine(directory).runner.invoke(
            main, ["--dir", str(directory), "trace", what, "--json"])
        if result.exit_code == 0 and until(found := json.loads(result.stdout)):
            return found
        assert time.monotonic() < deadline, result.output
        time.sleep(0.1)


def phases(story: Any) -> list[str]:
    return [step["phase"] for step in story["steps"]]


def words(story: Any, phase: str) -> str:
    return "\n".join(step["text"] for step in story["steps"] if step["phase"] == phase)


def message_id(reply: bytes) -> str:
    found = re.search(rb"[0-9A-Z]{16}\b", reply)
    assert found
    return found[0].decode()


# ---- from a desk to a mailbox elsewhere ----


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Service, str]]:
    """A message that was submitted to one service, relayed to another, fetched and removed there;
    and its id where it began.
    """
    places = tmp_path_factory.mktemp("journey")
    with Service(places / "there", ("bob@example.org:secret",), ONE) as there:
        host, port = there.smtp
        with Service(places / "here", ("alice@example.com:secret",), (
                *ONE, "--submission", "127.0.0.1:0",
                "--set", f"relay.smarthost=smtp+plain://{host}:{port}",
                "--set", 'submission.trusted_networks=["127.0.0.0/8"]')) as here:
            with Dialogue(here.listeners["submission"]) as desk:
                desk.reply()
                desk.say(b"EHLO desk.example.com")
                desk.say(b"MAIL FROM:<Alice@example.com>")
                desk.say(b"RCPT TO:<bob@example.org>")
                desk.say(b"DATA")
                desk.send(stuffed(TEXT))
                id = message_id(desk.reply())
                desk.say(b"QUIT")
            deadline = time.monotonic() + 20
            while not list((there.maildir("bob@example.org") / "new").glob("*")):
                assert time.monotonic() < deadline, here.log.read_text()
                time.sleep(0.05)
            assert len(fetch(there, "bob@example.org")) == 1
            yield here, there, id


def test_one_id_leads_from_the_desk_to_the_mailbox_and_out_of_it(
        journey: tuple[Service, Service, str]) -> None:
    here, there, id = journey
    (sent,) = traced(here.directory, id, until=lambda found: "delivered" in phases(found[0]))
    assert sent["id"] == id
    assert sent["facts"]["sender"] == "Alice@example.com"
    assert sent["facts"]["recipients"] == ["bob@example.org"]
    assert sent["facts"]["message_id"] == "<4711.abc@desk.example.com>"
    assert phases(sent) == ["came in", "came in", "accepted", "queue", "delivered", "queue"]
    assert "from 127.0.0.1 (desk.example.com)" in words(sent, "came in")
    assert "MAIL FROM:<Alice@example.com> by client:127.0.0.1" in words(sent, "came in")
    assert "to be sent to bob@example.org" in words(sent, "queue")
    assert [step["elapsed"] for step in sent["steps"]] == sorted(
        step["elapsed"] for step in sent["steps"])
    # The next host's own words, and in them its own id, which leads on.
    assert "250 2.0.0 Message accepted as" in words(sent, "delivered")
    onward = message_id(words(sent, "delivered").partition("250 ")[2].encode())
    (received,) = traced(there.directory, onward, until=lambda found: "deleted" in phases(found[0]))
    assert phases(received) == [
        "came in", "came in", "accepted", "delivered", "fetched", "deleted"]
    assert "into the mailbox of bob@example.org" in words(received, "delivered")
    assert "by bob@example.org from 127.0.0.1" in words(received, "fetched")


@pytest.mark.parametrize("what", [
    "bob@example.org", "BOB@Example.ORG", "alice@example.com", "<4711.abc@desk.example.com>",
    "4711.abc@desk.example.com", "127.0.0.1",
])
def test_the_same_is_found_by_address_message_id_and_client(
        journey: tuple[Service, Service, str], what: str) -> None:
    here, there, id = journey
    (sent,) = traced(here.directory, what, until=lambda found: "delivered" in phases(found[0]))
    assert sent["id"] == id
    (received,) = traced(there.directory, what, until=lambda found: "deleted" in phases(found[0]))
    assert received["facts"]["message_id"] == "<4711.abc@desk.example.com>"


def test_a_connection_tells_what_came_over_it(journey: tuple[Service, Service, str]) -> None:
    here, there, id = journey
    (sent,) = traced(here.directory, id)
    (connection,) = traced(here.directory, sent["facts"]["connection"])
    assert connection["kind"] == "connection"
    assert connection["facts"]["messages"] == [id]
    assert connection["facts"]["client"] == "127.0.0.1"
    (received,) = traced(there.directory, "bob@example.org",
                         until=lambda found: "deleted" in phases(found[0]))
    over = message_id(words(received, "fetched").partition("connection ")[2].encode())
    (session,) = traced(there.directory, over)
    assert session["facts"]["messages"] == [received["id"]]
    assert phases(session) == ["came in", "fetched", "deleted", "login"]
    assert "logged out after 1 messages, 1 deleted: quit" in words(session, "login")


def test_people_get_a_line_for_each_step(journey: tuple[Service, Service, str]) -> None:
    here, _, id = journey
    traced(here.directory, id, until=lambda found: "delivered" in phases(found[0]))
    text = CommandLine(here.directory)("trace", id.lower())
    lines = text.splitlines()
    assert lines[0] == f"message {id}"
    assert lines[1] == "  from <Alice@example.com> to bob@example.org"
    assert re.match(r"  \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d   \+0\.000 s  came in  ",
                    lines[4])


# ---- what happens to services ----


def test_what_was_traced_outlives_kill_9_and_the_service(tmp_path: Path) -> None:
    place = tmp_path / "data"
    with Service(place, ("alice@example.org:secret",)) as service:
        id = message_id(submit(service, TEXT, ("alice@example.org",)))
        traced(place, id)
        service.kill()
    assert phases(traced(place, id)[0])[-1] == "delivered"
    with Service(place, ("alice@example.org:secret",)) as service:
        fetch(service, "alice@example.org", delete=False)
    # Stopped, it has written all that it knew.
    assert phases(traced(place, id)[0])[-1] == "fetched"


@pytest.mark.parametrize("spoil", ["a file in its place", "garbage", "locked"])
def test_a_trace_that_cannot_be_used_holds_up_no_mail(tmp_path: Path, spoil: str) -> None:
    place = tmp_path / "data"
    place.mkdir()
    if spoil == "a file in its place":
        (place / "trace").write_bytes(b"")
    else:
        (place / "trace").mkdir()
        (place / "trace" / "00000001.sqlite").write_bytes(b"garbage" * 1000)
        if spoil == "locked":
            (place / "trace" / "00000001.sqlite").unlink()
            writer = Writer(place / "trace", TraceSettings())
            writer.write([])
            assert writer._segment is not None
            writer._segment.change("BEGIN EXCLUSIVE")
    with Service(place, ("alice@example.org:secret",), ONE) as service:
        submit(service, TEXT, ("alice@example.org",))
        assert len(fetch(service, "alice@example.org")) == 1
        deadline = time.monotonic() + 20
        wanted = "may be deleted" if spoil == "garbage" else "taken all the same"
        while wanted not in service.log.read_text():
            assert time.monotonic() < deadline, service.log.read_text()
            time.sleep(0.1)
        assert service.stop() == 0


def test_nothing_is_kept_when_it_is_off(tmp_path: Path) -> None:
    place = tmp_path / "data"
    with Service(place, ("alice@example.org:secret",),
                 (*ONE, "--set", "trace.enabled=false")) as service:
        submit(service, TEXT, ("alice@example.org",))
    assert not (place / "trace").exists()


def test_many_messages_of_one_session_are_all_told_of(tmp_path: Path) -> None:
    place = tmp_path / "data"
    with Service(place, ("alice@example.org:secret",), ONE) as service:
        with Dialogue(service.smtp) as smtp:
            smtp.reply()
            smtp.say(b"HELO x")
            for _ in range(120):
                smtp.send(b"MAIL FROM:<a@b.example>\r\nRCPT TO:<alice@example.org>\r\nDATA\r\n")
                for _ in range(3):
                    smtp.reply()
                smtp.send(b"Subject: x\r\n\r\n.\r\n")
                assert smtp.reply().startswith(b"250")
        with login(service, "alice@example.org") as pop3:
            pop3.ask(b"TOP 1 0")
            list(pop3.multiline())
            for number in range(2, 121):
                pop3.ask(b"RETR %d" % number)
                list(pop3.multiline())
            pop3.ask(b"DELE 1")
            # No QUIT: nothing is removed.
    with Reader(place / "trace") as reader:
        (connection,) = {entry.fields["connection"] for entry in reader.find("alice@example.org")
                         if entry.kind.namespace == "mailsvc.pop3"}
        entries = reader.find(connection)
    fetched = [id for entry in entries for id in entry.messages]
    assert len(set(fetched)) == len(fetched) == 119
    assert not [entry for entry in entries if "removed" in entry.kind.format]


# ---- beside no service ----


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return fresh_command_line(tmp_path, monkeypatch)


def kept(run: CommandLine, *told: tuple[str, str, dict[str, Any]], when: float = 0.0) -> None:
    """Keep entries: namespace, format, fields."""
    writer = Writer(run.dir / "trace", TraceSettings(), now=lambda: when)
    writer.write([Entry(when, Kind(f"mailsvc.{module}", "info", form, fields),
                        list(fields.values())) for module, form, fields in told])
    writer.close()


def test_what_is_unknown_is_told_with_what_is_kept(run: CommandLine) -> None:
    run.dir.mkdir()
    assert "nothing has been kept yet; is this the right service" in run.fails("trace", "a@b")
    kept(run, ("smtp", "{id} accepted", {"id": new_id()}), when=1_763_683_200)
    said = run.fails("trace", "1K16KWV2DBF00EP5")
    assert said.startswith("nothing is known of 1K16KWV2DBF00EP5; what is kept begins at 2025-11-2")
    assert "trace.days is 30" in said
    assert "in the last 3600 seconds" in run.fails("trace", "a@b", "--since", "1h")


def test_a_damaged_part_is_named_and_the_rest_told(run: CommandLine) -> None:
    id = new_id()
    kept(run, ("smtp", "{id} accepted x={x}", {"id": id, "x": 1}), when=time.time())
    (run.dir / "trace" / "00000000.sqlite").write_bytes(b"garbage" * 1000)
    assert id in run("trace", id)
    assert "00000000.sqlite" in run.notes


def test_the_newest_come_first_and_no_more_than_asked_for(run: CommandLine) -> None:
    now = time.time()
    ids = [new_id() for _ in range(12)]
    for place, id in enumerate(ids):
        kept(run, ("smtp", "{id} dropped sender={sender}: {reason}",
                   {"id": id, "sender": "a@b", "reason": "gone"}), when=now - 86_400 * (11 - place))
    assert [story["id"] for story in run.json("trace", "A@B")] == ids[:1:-1]
    assert [story["id"] for story in run.json("trace", "a@b", "--limit", "2")] == ids[:9:-1]
    assert [story["id"] for story in run.json("trace", "a@b", "--since", "36h")] == ids[:9:-1]


def test_no_peer_writes_on_the_terminal(run: CommandLine) -> None:
    id, nasty = new_id(), "\x1b]0;owned\x07\r\nforged\u202e"
    kept(run, ("queue", "{id} not connected host={host} address={address}: {reason}",
               {"id": id, "host": nasty, "address": "192.0.2.1", "reason": nasty}),
         when=time.time())
    text = run("trace", id)
    assert escape(nasty) in text
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", text)


@pytest.mark.parametrize(("module", "form", "fields", "phase", "text"), [
    ("smtp", "{id} refused sender={sender} user={user}", {"sender": "a@b", "reply": "550 5.7.1 No"},
     "refused", "sender <a@b>: 550 5.7.1 No"),
    ("smtp", "{id} dropped sender={sender}", {"reason": "connection lost"},
     "refused", "given up: connection lost"),
    ("smtp", "{id} not stored: {reason} ", {"reason": "disk full"},
     "refused", "could not be stored: disk full"),
    ("queue", "{id} {state} recipient={recipient}",
     {"state": "deferred", "recipient": "a@b", "host": "mx.b", "attempt": 2, "reply": "451 later"},
     "queue", "attempt 2 for <a@b>: put off by mx.b: 451 later"),
    ("queue", "{id} {state} recipient={recipient}",
     {"state": "failed", "recipient": "a@b", "host": "", "attempt": 1, "reply": "no such domain"},
     "queue", "attempt 1 for <a@b>: refused: no such domain"),
    ("queue", "{id} delivered here as {delivered}", {"delivered": "B", "accounts": ["a@b"]},
     "delivered", "into the mailbox of a@b, as message B"),
    ("queue", "{id} waits until={until:.0f}", {"until": 4600.0},
     "queue", "waits until 1970-01-01T01:16:40+00:00"),
    ("queue", "{id} done attempts={attempts}", {"attempts": 3}, "queue", "done, attempts: 3"),
    ("queue", "{id} changed by mailsvc queue {action}", {"action": "drop"},
     "queue", "by an operator: mailsvc queue drop"),
    # What this version does not know, and what it knows otherwise.
    ("queue", "{id} went to {place}", {"place": "the moon"}, "note", "{id} went to the moon"),
    ("queue", "{id} done attempts={attempts}", {"tries": 3}, "note", "'tries': 3"),
], ids=str)
def test_what_each_event_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str,
                              form: str, fields: dict[str, Any], phase: str, text: str) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    id = "0DJ7W4K2M1Q00F3A"
    assert tell(tmp_path, id, (module, form, {"id": id, **fields})).steps[-1].phase == phase
    assert text.replace("{id}", id) in tell(tmp_path, id).steps[-1].text


def tell(directory: Path, id: str, *told: tuple[str, str, dict[str, Any]]) -> Story:
    if told:
        writer = Writer(directory, TraceSettings(), now=lambda: 1000.0)
        writer.write([Entry(1000 + place / 1000, Kind(f"mailsvc.{module}", "info", form, fields),
                            list(fields.values()))
                      for place, (module, form, fields) in enumerate(told)])
        writer.close()
    with Reader(directory) as reader:
        story = story_of(reader, id)
    assert story is not None
    return story


def test_what_follows_from_a_message_is_part_of_its_story(tmp_path: Path) -> None:
    one, two, report = new_id(), new_id(), new_id()
    story = tell(
        tmp_path, one,
        ("queue", "{id} delivered here as {delivered} …",
         {"id": one, "delivered": two, "recipient": "a@b", "accounts": ["a@b"]}),
        ("pop3", "{connection} retrieved {messages} …",
         {"connection": new_id(), "messages": [f"1.{two}.mx"], "user": "a@b", "client": "",
          "since": 1001.0}),
        ("queue", "{id} reported {action} of {about} to {sender}",
         {"id": report, "action": "failed", "about": one, "sender": "c@d"}),
        ("queue", "{id} {state} recipient={recipient}",
         {"id": report, "state": "relayed", "recipient": "c@d", "host": "mx.d", "attempt": 1,
          "reply": "250 ok"}))
    assert [(step.phase, step.message) for step in story.steps if step.phase != "came in"] == [
        ("delivered", one), ("report", report), ("delivered", report), ("fetched", two)]
    assert story.steps[-1].time == 1001.0
    assert story.facts["recipients"] == ["a@b"]


def test_only_the_login_of_its_connection_is_part_of_it(tmp_path: Path) -> None:
    one, other, connection = new_id(), new_id(), new_id()
    story = tell(
        tmp_path, one,
        ("smtp", "{connection} logged in user={user} client={client}",
         {"connection": connection, "user": "a@b", "client": "192.0.2.7"}),
        *(("smtp", "{id} dropped …", {"id": id, "connection": connection, "sender": "a@b",
                                      "client": "192.0.2.7", "reason": f"of {id}"})
          for id in (one, other)))
    assert [step.phase for step in story.steps if step.phase != "came in"] == ["login", "refused"]
    assert other not in "".join(step.text for step in story.steps)


def test_what_happens_next_is_followed(run: CommandLine) -> None:
    id = new_id()
    kept(run, ("smtp", "{id} dropped …", {"id": id, "reason": "first"}), when=time.time())
    command = [sys.executable, "-c", "from mailsvc.cli import main; main()", "--dir", str(run.dir),
               "trace", id, "--follow"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        until = iter(following.stdout)
        assert any("given up: first" in line for line in until)
        kept(run, ("queue", "{id} done attempts={attempts}", {"id": id, "attempts": 7}),
             when=time.time())
        line = next(line for line in until if "attempts" in line)
        assert line.startswith(id)
        assert "done, attempts: 7" in line
        following.send_signal(signal.SIGINT)
        assert following.wait(20) == 0


def test_follow_and_json_do_not_go_together(run: CommandLine) -> None:
    assert "--follow" in run.misused("trace", "a@b", "--follow", "--json")


def test_what_may_not_be_read_is_told(run: CommandLine) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (run.dir / "trace").mkdir(parents=True)
    (run.dir / "trace").chmod(0)
    assert "run as the user" in run.fails("trace", "a@b")
