"""LMTP: a message whose recipients do not all get it (RFC 2033 §4.2)."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from twisted.internet.defer import fail
from twisted.logger import LogLevel, capturedLogs, formatEvent

from mailsvc.errors import MailboxFull, MailFailure, PermanentFailure, StorageFull
from mailsvc.mail import Account
from mailsvc.smtp.mode import LMTP, TRANSPORT
from tests.postoffice import Answers, Line
from tests.service import Dialogue, Service

BODY = b"Subject: hello\r\n\r\n..hello\r\n" + b"x" * 100 + b"\r\n"


def broken(line: Line, names: Collection[str], failure: MailFailure) -> None:
    """Let every commit fail that has one of *names* among its accounts."""
    begin = line.store.begin

    def begin_broken(accounts: tuple[Account, ...], *rest: Any) -> Any:
        delivery = begin(accounts, *rest)
        if any(account.local_part in names for account in accounts):
            delivery.outcome = "broken"
            delivery.write = lambda block: None  # type: ignore[method-assign]
            delivery.commit = lambda: fail(failure)  # type: ignore[method-assign]
        return delivery

    line.store.begin = begin_broken  # type: ignore[method-assign]


FULL = StorageFull("The disk is full; try again later")


def session(*recipients: str, failing: Collection[str] = (), failure: MailFailure = FULL,
            answers: Answers | None = None, mode: Any = LMTP) -> Line:
    """A client that may send its message now."""
    one = Line(answers, mode=mode)
    broken(one, failing, failure)
    verb = b"LHLO" if mode.lmtp else b"EHLO"
    one.say(verb + b" x\r\nMAIL FROM:<>\r\n" + b"".join(
        f"RCPT TO:<{name}@example.org>\r\n".encode() for name in recipients) + b"DATA\r\n")
    one.news()
    return one


def stored(one: Line) -> list[list[str]]:
    return [[account.local_part for account in delivery.accounts] for delivery in one.store.mail]


def test_one_maildrop_that_fails_keeps_nobody_else_from_the_mail() -> None:
    one = session("alice", "bob", "carol", failing={"bob"})
    with capturedLogs() as caught:
        one.say(BODY + b".\r\n")
    assert one.heard().split(b"\r\n")[:3] == [
        b"250 2.0.0 <alice@example.org> Message accepted as " + one.store.deliveries[0].id.encode(),
        b"452 4.3.1 <bob@example.org> The disk is full; try again later",
        b"250 2.0.0 <carol@example.org> Message accepted as " + one.store.deliveries[0].id.encode()]
    assert stored(one) == [["alice"], ["carol"]]
    first, second = one.store.mail
    assert first.message == second.message
    assert first.message.endswith(b"\r\n\r\n.hello\r\n" + b"x" * 100 + b"\r\n")
    assert len({first.id, second.id, one.store.deliveries[0].id}) == 3
    lines = [formatEvent(event).split(" connection=")[0].split(" ", 1)[1] for event in caught]
    assert [line.split(" size=")[0] for line in lines] == [
        "accepted sender= recipients=['alice@example.org']",
        "not stored: The disk is full; try again later sender= recipients=['bob@example.org']",
        "accepted sender= recipients=['carol@example.org']"]
    one.say(b"NOOP\r\n")
    assert one.codes()[-1] == "250 2.0.0"
    one.hang_up()


def test_one_mailbox_that_is_full_is_no_fault_here() -> None:
    one = session("alice", "bob", failing={"bob"}, failure=MailboxFull("No room"))
    with capturedLogs() as caught:
        one.say(BODY + b".\r\n")
    assert one.codes() == ["250 2.0.0", "452 4.2.2"]
    accepted, dropped = caught
    assert "accepted" in formatEvent(accepted)
    assert " dropped sender= recipients=['bob@example.org'] " in formatEvent(dropped)
    assert dropped["log_level"] is LogLevel.info
    one.hang_up()


def test_what_works_for_all_is_delivered_once_to_all() -> None:
    one = session("alice", "bob")
    one.say(BODY + b".\r\n")
    assert one.codes() == ["250 2.0.0"] * 2
    assert stored(one) == [["alice", "bob"]]
    one.hang_up()


def test_what_fails_for_everybody_is_one_error() -> None:
    one = session("alice", "bob", failing={"alice", "bob"},
                  failure=PermanentFailure("The maildrop cannot be written"))
    one.say(BODY + b".\r\n")
    assert one.codes() == ["554 5.3.0"] * 2
    assert stored(one) == []
    assert one.protocol.session.errors == 1
    one.hang_up()


def test_the_only_recipient_is_not_tried_twice() -> None:
    one = session("alice", failing={"alice"})
    one.say(BODY + b".\r\n")
    assert one.codes() == ["452 4.3.1"]
    assert len(one.store.deliveries) == 1
    one.hang_up()


def test_a_list_of_several_accounts_is_one_recipient() -> None:
    one = session("friends", "carol", failing={"bob"})
    one.say(BODY + b".\r\n")
    assert one.codes() == ["452 4.3.1", "250 2.0.0"]
    assert stored(one) == [["carol"]]
    one.hang_up()


def test_a_large_message_and_a_store_that_asks_for_pauses() -> None:
    answers = Answers()
    one = session("alice", "bob", answers=answers, failing={"bob"})
    large = b"Subject: large\r\n\r\n" + (b"y" * 998 + b"\r\n") * 600
    answers.late = {"write", "commit"}
    one.say(large + b".\r\n")
    for _ in range(1000):
        if not answers.held:
            break
        one.release()
    assert one.codes() == ["250 2.0.0", "452 4.3.1"]
    assert one.store.mail[0].message.endswith(large)
    one.hang_up()


def test_a_message_that_is_given_up_is_forgotten() -> None:
    one = session("alice", "bob")
    one.say(BODY)
    one.hang_up()
    assert [delivery.outcome for delivery in one.store.deliveries] == ["aborted"]


def test_smtp_has_one_outcome() -> None:
    one = session("alice", "bob", mode=TRANSPORT, failing={"bob"})
    one.say(BODY + b".\r\n")
    assert one.codes() == ["452 4.3.1"]
    assert stored(one) == []
    one.hang_up()


def test_a_maildir_that_is_none(tmp_path: Path) -> None:
    """Over a socket, with a maildir that a file stands in the way of."""
    names = ("alice@example.org", "bob@example.org", "carol@example.org")
    with Service(tmp_path / "data", tuple(f"{name}:x" for name in names),
                 ("--lmtp", "127.0.0.1:0")) as service:
        bob = service.maildir("bob@example.org")
        bob.parent.mkdir(parents=True, exist_ok=True)
        bob.write_bytes(b"in the way")
        with Dialogue(service.listeners["lmtp"]) as client:
            client.reply()
            client.say(b"LHLO x")
            client.say(b"MAIL FROM:<>")
            for name in names:
                assert client.say(f"RCPT TO:<{name}>".encode()).startswith(b"250 ")
            client.say(b"DATA")
            client.send(BODY + b".\r\n")
            assert [client.reply()[:4] for _ in names] == [b"250 ", b"451 ", b"250 "]
        for name in (names[0], names[2]):
            (path,) = (service.maildir(name) / "new").iterdir()
            assert path.read_bytes().endswith(b"\r\n.hello\r\n" + b"x" * 100 + b"\r\n")
