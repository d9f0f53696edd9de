"""``mailsvc explain``: what would be answered, by which rule and setting, without consequences."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mailsvc.cli import main
from mailsvc.mail import Account
from mailsvc.state import State
from mailsvc.submission.limits import SubmissionSettings
from mailsvc.submission.rates import Ledger
from tests.command_line import CommandLine, fresh_command_line
from tests.service import Dialogue, Service

CONFIGURATION = """\
[service]
data = "{data}"
hostname = "mx.example.org"
[routing]
relay_domains = ["backup.example"]
[submission]
trusted_networks = ["198.51.100.0/24"]
messages_per_minute = 3
[smtp]
message_octets = 1000000
[relay]
smarthost = "smtp+starttls://name:secret@smart.example.net"
[relay.routes]
"mx.example" = "mx"
"from:carol@example.org" = "lmtp://inside.example.net:24"
[routing.atrn_domains]
"alice@example.org" = "fetched.example"
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration, of a service with some accounts that has not run."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        run = fresh_command_line(tmp_path_factory.mktemp("explain"), monkeypatch)
        run("domain", "add", "example.org")
        for name in ("alice", "bob", "carol", "full", "small"):
            run("account", "add", f"{name}@example.org", "--password-stdin", stdin="secret-secret")
        run("account", "role", "carol@example.org", "send")
        run("account", "role", "bob@example.org", "receive")
        run("account", "quota", "full@example.org", "--messages", "1")
        run("account", "quota", "small@example.org", "--octets", "1k")
        run("alias", "add", "sales@example.org", "alice@example.org", "bob@example.org")
        run("alias", "add", "away@example.org", "alice@far.example")
        run("alias", "add", "gone@example.org", "alice@far.example", "--moved")
        run("ban", "add", "203.0.113.0/24", "--for", "1d")
    new = run.dir / "mail" / "example.org" / "full" / "new"
    new.mkdir(parents=True)
    (new / "1.x.y,S=3,W=3").write_bytes(b"abc")
    with closing(State(run.dir / "state.sqlite")) as state:
        ledger = Ledger(state, SubmissionSettings())
        for _ in range(3):
            ledger.count(Account("carol", "example.org"), 1)
    configuration = run.dir.parent / "mailsvc.toml"
    configuration.write_text(CONFIGURATION.format(data=run.dir))
    return configuration


def explain(place: Path, *arguments: str) -> Any:
    result = CommandLine(place).runner.invoke(
        main, ["--config", str(place), "explain", *arguments, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


ALICE = ("--as", "alice@example.org")
CAROL = ("--as", "carol@example.org")

#: arguments, the reply, what the rule says, and the section.
CASES: list[tuple[tuple[str, ...], str, str, str]] = [
    (("b@x.example -> alice@example.org from 192.0.2.7",), "250 2.1.5",
     "account alice@example.org: there", "RFC 5321 §3.3"),
    (("b@x.example -> Alice+list@EXAMPLE.org",), "250 2.1.5",
     "account Alice@example.org: there", "RFC 5321 §3.3"),
    (("b@x.example -> sales@example.org",), "250 2.1.5",
     "mailbox here", "RFC 5321 §3.3"),
    (("<> -> postmaster@example.org",), "250 2.1.5",
     "oldest account of example.org: alice@example.org", "RFC 5321 §3.3"),
    (("b@x.example -> away@example.org",), "250 2.1.5", "forwarded", "RFC 5321 §3.9.1"),
    (("b@x.example -> a@backup.example",), "250 2.1.5", "from anybody", "RFC 5321 §3.6.2"),
    (("b@x.example -> nobody@example.org",), "550 5.1.1", "no alias, account", "RFC 5321 §3.3"),
    (("b@x.example -> gone@example.org",), "551 5.1.6", "has moved", "RFC 5321 §3.4"),
    (("b@x.example -> carol@example.org",), "550 5.2.1", "only sends", "RFC 3463 §3.3"),
    (("b@x.example -> full@example.org",), "452 4.2.2", "quota", "RFC 3463 §3.3"),
    (("b@x.example -> small@example.org", "--size", "2k"), "552 5.2.3", "even if it were empty",
     "RFC 3463 §3.3"),
    (("b@x.example -> a@far.example",), "550 5.7.1", "none of those served", "RFC 5321 §3.6.2"),
    (("b@x.example -> alice@example.org from 203.0.113.9",), "421", "banned", "RFC 5321 §7.9"),
    (("b@x.example -> alice@example.org", "--size", "1M"), "552 5.3.4", "larger", "RFC 1870 §6.1"),
    (("bob -> alice@example.org",), "553 5.1.7", "sender is no address", "RFC 5321 §4.1.2"),
    (("b@x.example -> alice",), "553 5.1.3", "recipient is no address", "RFC 5321 §4.1.2"),
    (("alice@example.org -> a@far.example", *ALICE), "250 2.1.5", "to any host", "RFC 6409 §3"),
    (("sales@example.org -> bob@example.org", *ALICE), "250 2.1.5", "mailbox", "RFC 5321 §3.3"),
    (("bob@example.org -> a@far.example", *ALICE), "550 5.7.1",
     "only as addresses whose mail comes to it", "RFC 6409 §6.1"),
    (("carol@example.org -> a@far.example", *CAROL), "450 4.7.1", "so much in so much time",
     "RFC 5321 §7.9"),
    (("bob@example.org -> a@far.example", "--as", "bob@example.org"), "535 5.7.8",
     "may submit", "RFC 4954 §6"),
    (("a@x.example -> a@far.example", "--submission"), "530 5.7.0", "logs in first",
     "RFC 6409 §4.3"),
    (("any@example.org -> a@far.example from 198.51.100.3", "--submission"), "250 2.1.5",
     "to any host", "RFC 6409 §3"),
    (("any@x.example -> a@far.example from 198.51.100.3", "--submission"), "550 5.7.1",
     "only as addresses", "RFC 6409 §6.1"),
]


@pytest.mark.parametrize(("arguments", "reply", "rule", "standard"), CASES,
                         ids=lambda value: " ".join(value) if isinstance(value, tuple) else None)
def test_the_reply_the_rule_and_the_section(
        place: Path, arguments: tuple[str, ...], reply: str, rule: str, standard: str) -> None:
    found = explain(place, *arguments)
    assert found["reply"].startswith(reply), found
    assert found["accepted"] is (reply[0] == "2")
    assert rule in found["rule"]
    assert found["standard"] == standard


@pytest.mark.parametrize(("arguments", "key", "line"), [
    (("b@x.example -> a@backup.example",), "routing.relay_domains", 5),
    (("b@x.example -> alice@example.org", "--size", "1M"), "smtp.message_octets", 10),
    (("carol@example.org -> a@far.example", *CAROL), "submission.messages_per_minute", 8),
    (("any@x.example -> a@far.example", "--submission"), "submission.trusted_networks", 7),
    (("b@x.example -> nobody@example.org",), "routing.separators", None),
], ids=str)
def test_the_line_of_the_setting(place: Path, arguments: tuple[str, ...], key: str,
                                 line: int | None) -> None:
    (setting,) = [each for each in explain(place, *arguments)["settings"] if each["key"] == key]
    assert setting["where"] == (line and f"{place}:{line}")


@pytest.mark.parametrize(("arguments", "hop", "key", "line"), [
    (("alice@example.org -> a@far.example", *ALICE), "name@smart.example.net:587",
     "relay.smarthost", 12),
    (("alice@example.org -> a@mx.example", *ALICE), "mx.example", "relay.routes.mx.example", 13),
    (("carol@example.org -> a@far.example from 198.51.100.3", "--submission"),
     "lmtp:inside.example.net:24", "relay.routes.from:carol@example.org", 13),
    (("b@x.example -> away@example.org",), "name@smart.example.net:587", "relay.smarthost", 12),
    (("b@x.example -> a@fetched.example",), "fetched.example", "routing.atrn_domains", 16),
], ids=str)
def test_where_it_goes_next(place: Path, arguments: tuple[str, ...], hop: str, key: str,
                            line: int) -> None:
    (onward,) = explain(place, *arguments)["onward"]
    assert (onward["hop"], onward["key"]) == (hop, key)
    assert onward["where"] == f"{place}:{line}"


def test_who_gets_it(place: Path) -> None:
    found = explain(place, "b@x.example -> sales@example.org")
    assert found["accounts"] == ["alice@example.org", "bob@example.org"]
    assert "alias sales@example.org: leads to alice@example.org, bob@example.org" in (
        found["looked_up"])
    assert found["onward"] == []


def test_nothing_is_changed(place: Path) -> None:
    data = place.parent / "data"

    def everything() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in sorted(data.rglob("*"))
                if path.is_file()}

    before = everything()
    for arguments, *_ in CASES:
        explain(place, *arguments)
    assert everything() == before


def test_a_service_that_never_ran_is_explained_too(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fresh_command_line(tmp_path, monkeypatch)
    assert "mailsvc domain add" in run.fails("explain", "a@b.example -> c@d.example")
    run("domain", "add", "example.org")
    assert run("explain", "a@b.example -> postmaster@example.org").startswith("451 4.3.5")
    assert not (run.dir / "state.sqlite").exists()


def test_people_get_it_in_lines(place: Path) -> None:
    result = CommandLine(place).runner.invoke(main, [
        "--config", str(place), "explain", "--sender", "b@x.example", "--recipient",
        "a@backup.example", "--from", "2001:db8::7"])
    assert result.stdout.splitlines() == [
        "250 2.1.5 Recipient OK",
        "  answers    RCPT TO:<a@backup.example>",
        "  rule       mail for this domain is taken from anybody and sent on",
        f'  settings   routing.relay_domains = ["backup.example"]  # {place}:5',
        '             routing.atrn_domains = { "alice@example.org" = "fetched.example" }'
        f"  # {place}:16",
        "  standard   RFC 5321 §3.6.2",
        "  looked up  domain backup.example: not served here",
        "  sends on   to a@backup.example: by name@smart.example.net:587  # relay.smarthost, "
        f"{place}:12"]


@pytest.mark.parametrize("arguments", [
    [], ["nonsense"], ["a@b c@d"], ["a@b -> c@d from nowhere"], ["--sender", "a@b"],
    ["a@b -> c@d", "--sender", "a@b"], ["a@b -> c@d from 192.0.2.1", "--from", "192.0.2.2"],
    ["a@b -> c@d", "--as", "nobody"],
], ids=str)
def test_what_cannot_be_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                              arguments: list[str]) -> None:
    assert fresh_command_line(tmp_path, monkeypatch).misused("explain", *arguments)


def test_it_says_what_the_service_says(tmp_path: Path) -> None:
    place = tmp_path / "data"
    with Service(place, ("alice@example.org:secret",), ("--set", "service.workers=1")) as service:
        for sender, recipient in (
                ("b@x.example", "alice@example.org"), ("b@x.example", "alice+x@example.org"),
                ("", "postmaster@example.org"), ("b@x.example", "nobody@example.org"),
                ("b@x.example", "a@far.example"), ("b", "alice@example.org"),
                ("b@x.example", "a@[127.0.0.1]"), ("b@x.example", "not an address"),
                ("b@x.example", "postmaster"), ("b@x.example", "al\u00efce@example.org")):
            with Dialogue(service.smtp) as smtp:
                smtp.reply()
                smtp.say(b"EHLO client.example")
                utf8 = b"" if recipient.isascii() else b" SMTPUTF8"
                said = smtp.say(b"MAIL FROM:<%s>%s" % (sender.encode(), utf8))
                if said.startswith(b"250"):
                    said = smtp.say(b"RCPT TO:<%s>" % recipient.encode())
            found = CommandLine(place).json("explain", "--sender", sender,
                                            "--recipient", recipient)
            assert found["reply"] == said.decode(), (sender, recipient)
