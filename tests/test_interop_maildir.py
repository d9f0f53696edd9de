"""The maildir shared with other programs: they read what we deliver, we read what they deliver."""

from __future__ import annotations

import mailbox
import os
import poplib
import re
import shutil
import smtplib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from tests.daemons import OWNER, Dovecot, Postfix, gid, own, uid
from tests.messages import CORPUS, RAW, large, long_line
from tests.service import Dialogue, Service, below_trace, difference, fetch, login, submit
from tests.terminal import Terminal

ACCOUNTS = tuple(f"u{number:02}@example.org" for number in range(20))
MESSAGES = {**CORPUS, **RAW, "long-line": long_line(10_000), "large": large(300_000)}
del MESSAGES["nothing"]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("interop") / "data",
                 tuple(f"{account}:secret" for account in ACCOUNTS)) as running:
        yield running


@pytest.fixture(scope="module")
def unused() -> Iterator[str]:
    return iter(ACCOUNTS)


@pytest.fixture
def account(unused: Iterator[str]) -> str:
    return next(unused)


@pytest.fixture(scope="module")
def dovecot(program: Callable[[str], str]) -> Iterator[Dovecot]:
    with Dovecot(program) as running:
        yield running


@pytest.fixture
def mail(service: Service, account: str) -> list[bytes]:
    """Every message delivered to *account*, as POP3 sends them."""
    for message in MESSAGES.values():
        submit(service, message, (account,))
    delivered = fetch(service, account, delete=False)
    assert difference(map(below_trace, delivered), MESSAGES.values()) == ""
    return delivered


def lf(messages: Iterable[bytes]) -> list[bytes]:
    """With LF for CRLF; sorted, and that is by the id in Received, by age."""
    return sorted(message.replace(b"\r\n", b"\n") for message in messages)


def identifiers(service: Service, account: str) -> list[bytes]:
    """The unique-ids of the maildrop, by number."""
    with login(service, account) as pop3:
        pop3.ask(b"UIDL")
        found = [line.split()[1] for line in pop3.multiline()]
        pop3.ask(b"QUIT")
    return found


# ---- they read what we wrote --------------------------------------------------------------------


def test_the_file_is_the_message(service: Service, account: str, mail: list[bytes]) -> None:
    maildir = service.maildir(account)
    files = sorted((maildir / "new").iterdir())
    assert difference([path.read_bytes() for path in files], mail) == ""
    for path, message in zip(files, mail, strict=True):
        assert f",S={len(message)},W={len(message)}" in path.name
        assert path.stat().st_mode & 0o077 == 0, "mail is its owner's alone"
    assert not list((maildir / "tmp").iterdir())
    assert not list((maildir / "cur").iterdir())


def test_python_reads_our_maildir(service: Service, account: str, mail: list[bytes]) -> None:
    box = mailbox.Maildir(service.maildir(account), create=False)
    assert difference(sorted(map(box.get_bytes, box.iterkeys())), sorted(mail)) == ""
    subjects = {str(message["subject"]) for message in box if message["subject"]}
    assert {"plain", "only dots", "8-bit"} <= subjects


def test_mutt_reads_our_maildir(service: Service, account: str, mail: list[bytes], tmp_path: Path,
                                program: Callable[[str], str]) -> None:
    """mutt opens it, and pipes each message as it is to a program."""
    shutil.copytree(service.maildir(account), tmp_path / "box")
    piped = tmp_path / "piped"
    piped.mkdir()
    agent = tmp_path / "agent"
    agent.write_text(f'#!/bin/sh\nexec cat >"$(mktemp {piped}/XXXXXXXX)"\n')
    agent.chmod(0o700)
    configuration = tmp_path / "muttrc"
    configuration.write_text(f'set folder="{tmp_path}" spoolfile="{tmp_path}/box" quit=yes\n'
                             "set pipe_decode=no pipe_split=yes pipe_sep='' wait_key=no\n"
                             "set header_cache='' mark_old=no\n")
    with Terminal(program("mutt"), "-n", "-R", "-F", str(configuration), "-f",
                  str(tmp_path / "box"), "-e",
                  f"push <tag-pattern>.<enter><tag-prefix><pipe-message>{agent}<enter><quit>",
                  home=tmp_path) as terminal:
        terminal.wait()
    got = lf(path.read_bytes() for path in piped.iterdir())
    assert len(got) == len(mail)
    # It puts an empty line where it thinks that the header should have ended.
    ordinary = [message for message in mail if b"\r\nSubject: " in message.partition(b"\r\n\r\n")[0]
                and b"\r\n\r\n" in message]
    assert len(ordinary) >= len(CORPUS)
    assert difference([message for message in lf(ordinary) if message not in got], []) == ""


def test_dovecot_reads_our_maildir(service: Service, account: str, mail: list[bytes],
                                   dovecot: Dovecot) -> None:
    """The same messages and sizes over its POP3; it finds nothing to complain of."""
    copied = dovecot.maildir(account)
    copied.parent.mkdir(exist_ok=True)
    shutil.copytree(service.maildir(account), copied)
    own(dovecot.mail)
    with Dialogue(dovecot.pop3) as pop3:
        pop3.line()
        pop3.ask(b"USER " + account.encode())
        pop3.ask(b"PASS " + dovecot.password.encode())
        pop3.ask(b"LIST")
        sizes = [int(line.split()[1]) for line in pop3.multiline()]
        theirs = []
        for number in range(1, len(sizes) + 1):
            pop3.ask(b"RETR %d" % number)
            theirs.append(b"".join(line + b"\r\n" for line in pop3.multiline()))
        pop3.ask(b"QUIT")
    assert sizes == [len(message) for message in theirs]
    assert difference(sorted(theirs), sorted(mail)) == ""
    table = dovecot.doveadm("-f", "tab", "fetch", "-u", account, "size.physical size.virtual",
                            "ALL").splitlines()[1:]
    assert sorted(int(line.split()[0]) for line in table) == sorted(map(len, mail))
    assert all(line.split()[0] == line.split()[1] for line in table)
    assert dovecot.complaints() == []


# ---- we read what they wrote --------------------------------------------------------------------


def adopt(service: Service, account: str, maildir: Path) -> None:
    """Put a copy of *maildir*, written by another program, where *account*'s is."""
    target = service.maildir(account)
    if target.exists():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(maildir, target)


def check_against_files(service: Service, account: str) -> dict[bytes, bytes]:
    """POP3 gives each file of the maildir, CRLF for LF, with its size; messages by unique-id."""
    maildir = service.maildir(account)
    files = [path.read_bytes() for name in ("new", "cur") for path in (maildir / name).iterdir()]
    expected = [re.sub(rb"\r?\n", b"\r\n", octets) for octets in files]
    messages = fetch(service, account, delete=False)
    assert difference(sorted(messages), sorted(expected)) == ""
    unique = identifiers(service, account)
    assert len(set(unique)) == len(unique) == len(messages)
    assert all(re.fullmatch(rb"[\x21-\x7e]{1,70}", one) for one in unique)
    with login(service, account) as pop3:
        assert pop3.ask(b"STAT").split()[1:3] == [b"%d" % len(messages),
                                                  b"%d" % sum(map(len, messages))]
        pop3.ask(b"QUIT")
    return dict(zip(unique, messages, strict=True))


#: As a file with LF, or as it came.
@pytest.mark.parametrize("crlf", ["no", "yes"])
def test_we_read_what_dovecot_delivered(service: Service, account: str,
                                        program: Callable[[str], str], crlf: str) -> None:
    with Dovecot(program, mail_save_crlf=crlf) as dovecot:
        for message in MESSAGES.values():
            with smtplib.LMTP(*dovecot.lmtp) as client:
                client.sendmail("sender@example.net", [account], message)
        adopt(service, account, dovecot.maildir(account))
        before = check_against_files(service, account)
        assert len(before) == len(MESSAGES)
        for message in MESSAGES.values():
            assert any(found.endswith(message) for found in before.values())
        # Dovecot's POP3 moves what it saw to cur/ with flags, and leaves index files beside.
        reader = poplib.POP3(*dovecot.pop3)
        reader.user(account)
        reader.pass_(dovecot.password)
        for number in range(1, reader.stat()[0], 2):
            reader.top(number, 0)
        reader.quit()
        dovecot.doveadm("flags", "add", "-u", account, r"\Seen \Flagged", "1:3")
        assert any(path.name.endswith(":2,FS") for path in (dovecot.maildir(account) /
                                                            "cur").iterdir())
        adopt(service, account, dovecot.maildir(account))
        after = check_against_files(service, account)
        assert after.keys() == before.keys()
        assert difference([after[one] for one in before], before.values()) == ""


def test_we_read_what_postfix_delivered(service: Service, account: str,
                                        program: Callable[[str], str]) -> None:
    """virtual(8) writes LF, and no size into the name."""
    with Postfix(program, virtual_mailbox_domains="example.org",
                 virtual_mailbox_maps="static:box/", virtual_minimum_uid="1",
                 virtual_uid_maps=f"static:{uid()}", virtual_gid_maps=f"static:{gid()}",
                 virtual_mailbox_base="{directory}/mail") as postfix:
        base = postfix.directory / "mail"
        base.mkdir()
        own(base)
        for message in CORPUS.values():
            postfix.sendmail(message.replace(b"\r\n", b"\n"), [account])
        postfix.until_sent(len(CORPUS))
        assert {path.owner() for path in (base / "box" / "new").iterdir()} == {OWNER}
        assert not any(",S=" in path.name for path in (base / "box" / "new").iterdir())
        adopt(service, account, base / "box")
    found = check_against_files(service, account)
    assert len(found) == len(CORPUS)
    for message in CORPUS.values():
        body = message.partition(b"\r\n\r\n")[2]
        assert any(text.partition(b"\r\n\r\n")[2] == body for text in found.values())
    assert all(text.startswith(b"Return-Path: <sender@example.net>\r\n")
               for text in found.values())


def test_python_and_we_take_turns(service: Service, account: str) -> None:
    """mailbox.Maildir adds, flags and removes while the service runs; both see it all."""
    submit(service, CORPUS["plain"], (account,))
    [ours] = fetch(service, account, delete=False)
    [identifier] = identifiers(service, account)
    box = mailbox.Maildir(service.maildir(account), create=False)
    [key] = box.iterkeys()
    message = box[key]
    assert isinstance(message, mailbox.MaildirMessage)
    message.set_subdir("cur")
    message.set_flags("SR")
    box[key] = message
    theirs = box.add(b"Subject: added by Python\n\n.dots\nand\n")
    box.flush()
    assert fetch(service, account, delete=False) == [
        ours, b"Subject: added by Python\r\n\r\n.dots\r\nand\r\n"]
    assert identifiers(service, account)[0] == identifier
    box.remove(theirs)
    assert fetch(service, account) == [ours]
    assert list(mailbox.Maildir(service.maildir(account), create=False).keys()) == []


def test_a_message_moved_to_cur_amid_a_session_is_still_there(service: Service,
                                                              account: str) -> None:
    submit(service, CORPUS["plain"], (account,))
    maildir = service.maildir(account)
    with login(service, account) as pop3:
        [path] = (maildir / "new").iterdir()
        os.rename(path, maildir / "cur" / (path.name + ":2,S"))
        pop3.ask(b"RETR 1")
        message = b"".join(line + b"\r\n" for line in pop3.multiline())
        assert below_trace(message) == CORPUS["plain"]
        pop3.ask(b"DELE 1")
        pop3.ask(b"QUIT")
    assert not list((maildir / "cur").iterdir())
