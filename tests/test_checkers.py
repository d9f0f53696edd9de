"""What all checkers share: arguments, help, several in turn, what is remembered."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.cred.credentials import IUsernameHashedPassword, IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.cred.portal import Portal
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.threads import deferToThread

from mailsvc.checkers import arguments
from mailsvc.checkers.arguments import BadArguments, read
from mailsvc.checkers.bounds import Threads
from mailsvc.checkers.inturn import in_turn
from mailsvc.checkers.successes import Successes
from mailsvc.credentials import IProvenName, IToken
from mailsvc.errors import TemporaryFailure
from mailsvc.service import _own
from mailsvc.settings import at_least, setting
from mailsvc.tap import Options
from tests.checkers import ask, described
from tests.twistd import TWISTD, Twistd

NAMES = ["ldap", "oauth", "pam", "postgresql"]


@dataclass(frozen=True)
class Sample:
    """Settings of each kind."""

    text: str = setting("", "Some text.")
    count: int = setting(3, "A number.", check=at_least(1))
    seconds: float = setting(1.5, "A time.")


# ---- arguments ----------------------------------------------------------------------------------


@given(st.text(min_size=1))
def test_any_value_can_be_written(value: str) -> None:
    assert read(Sample, described("x", text=value).partition(":")[2]).text == value


def test_arguments_of_a_string() -> None:
    assert read(Sample, "") == Sample()
    assert read(Sample, r"text=a\\b\:c=d:count=7:seconds=2") == Sample("a\\b:c=d", 7, 2)
    assert read(Sample, "word:count=7", first="text") == Sample("word", 7)


def test_arguments_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "sample.toml"
    path.write_text('text = "a:b"\ncount = 5\nseconds = 0.5\n')
    assert read(Sample, f"file={path}") == Sample("a:b", 5, 0.5)
    assert read(Sample, f"{path}:count=6") == Sample("a:b", 6, 0.5)
    path.write_text('text = 1\ncount = "5"\nother = [1]\n')
    with pytest.raises(BadArguments) as refused:
        read(Sample, str(path))
    assert str(refused.value) == (
        "other: no such key; expected some of file, text, count, seconds; text=1: expected a "
        "string; count=5: expected an integer")
    path.write_text("text = ")
    with pytest.raises(BadArguments, match="expected TOML"):
        read(Sample, str(path))


def test_a_package_that_is_missing() -> None:
    with pytest.raises(BadArguments, match=r"pip install 'mailsvc\[ldap\]'"):
        arguments.require("no_such_package", "ldap")


@pytest.mark.parametrize("name", NAMES)
def test_help(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.StringIO()
    monkeypatch.setattr(Options, "authOutput", output)
    with pytest.raises(SystemExit):
        Options().opt_help_auth_type(name)
    text = output.getvalue()
    assert text.isascii()
    assert f"Example: {name}:" in text
    assert "timeout: How long a login may take. [default: " in text
    assert " seconds]" in text
    assert "file: A TOML file" in text
    assert "not supported" not in text


def test_help_lists_all(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.StringIO()
    monkeypatch.setattr(Options, "authOutput", output)
    with pytest.raises(SystemExit):
        Options().opt_help_auth()
    for name in NAMES:
        assert f"\n  {name}" in output.getvalue()


@pytest.mark.parametrize(("description", "expected"), [
    ("ldap:host=x", "--auth ldap: base is missing: expected a DN"),
    ("pam:none-such", "--auth pam: service=/etc/pam.d/none-such: cannot be read"),
    ("oauth:file=/none", "--auth oauth: file=/none: cannot be read (No such file or directory): "
                         "expected a file that this user"),
    ("postgresql:x=1", "--auth postgresql: x: no such key; expected some of file, query"),
])
def test_twistd_tells_what_was_expected(description: str, expected: str) -> None:
    with Twistd([*TWISTD, "--nodaemon", "--pidfile=", "mailsvc", "--auth", description]) as process:
        assert process.wait() == 1
        assert expected in process.output
        assert "Traceback" not in process.output and "Usage" not in process.output


def test_the_plugins_are_light() -> None:
    """Every user of twistd on the host imports them."""
    script = ("import sys; import twisted.plugins.mailsvc_checkers; "
              "print(*sorted({name.partition('.')[0] for name in sys.modules}), "
              "*(name for name in sys.modules if name.startswith(('mailsvc.', 'twisted.web', "
              "'twisted.internet.reactor'))))")
    loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True,
                            text=True, timeout=60).stdout.split()
    assert not {"ldaptor", "pamela", "psycopg", "argon2", "OpenSSL", "twisted.web",
                "twisted.internet.reactor"}.intersection(loaded)
    assert {name for name in loaded if name.startswith("mailsvc.")} == {
        "mailsvc.checkers", "mailsvc.checkers.plugin", "mailsvc.credentials"}


# ---- several in turn ----------------------------------------------------------------------------


class Checker:
    """Says what it is told to."""

    def __init__(self, answer: Callable[[], Deferred[bytes]], *interfaces: Any) -> None:
        self.credentialInterfaces = interfaces or (IUsernamePassword,)
        self.answer = answer
        self.asked = 0

    def requestAvatarId(self, credentials: Any) -> Deferred[bytes]:
        self.asked += 1
        return self.answer()


def yes() -> Deferred[bytes]:
    return succeed(b"alice")


def no() -> Deferred[bytes]:
    return fail(UnauthorizedLogin("something else"))


def no_at_once() -> Deferred[bytes]:
    raise UnauthorizedLogin("something else")


def later() -> Deferred[bytes]:
    return fail(TemporaryFailure("down"))


@pytest.mark.parametrize(("answers", "expected", "asked"), [
    ([yes], "alice", 1), ([no], "no", 1), ([later], "later", 1),
    ([yes, no], "alice", 1), ([no, yes], "alice", 2), ([no_at_once, yes], "alice", 2),
    ([later, yes], "alice", 2), ([later, no], "later", 2), ([no, later, no], "later", 3),
    ([no, no], "no", 2),
])
@pytest_twisted.ensureDeferred
async def test_in_turn(
    answers: list[Callable[[], Deferred[bytes]]], expected: str, asked: int,
) -> None:
    checkers = [Checker(answer) for answer in answers]
    [checker] = in_turn(checkers)
    assert await ask(checker, "alice", "s3cret") == expected
    assert [each.asked for each in checkers] == [1] * asked + [0] * (len(checkers) - asked)


def test_in_turn_by_interface() -> None:
    both, one, token = (Checker(yes, IUsernamePassword, IUsernameHashedPassword),
                        Checker(yes), Checker(yes, IToken))
    portal = Portal(None, in_turn([both, one, token]))  # type: ignore[arg-type]
    assert portal.listCredentialsInterfaces() == [
        IUsernamePassword, IUsernameHashedPassword, IToken]


def test_what_the_directory_is_asked_beside_others() -> None:
    """A proven name always; passwords and digests only if nobody else checks either."""
    directory: Any = Checker(yes, IUsernamePassword, IUsernameHashedPassword, IProvenName)

    def asked(*others: Any) -> list[Any]:
        return _own(others, directory)

    assert asked() == [IUsernamePassword, IUsernameHashedPassword, IProvenName]
    assert asked(Checker(yes, IToken)) == asked()
    assert asked(Checker(yes, IUsernamePassword), Checker(yes, IToken)) == [IProvenName]
    assert asked(Checker(yes, IUsernameHashedPassword)) == [IProvenName]


def test_a_bug_in_a_checker_is_not_taken_for_an_answer() -> None:
    def bug() -> Deferred[bytes]:
        raise ZeroDivisionError

    [checker] = in_turn([Checker(bug), Checker(yes)])
    failures: list[Any] = []
    checker.requestAvatarId(None).addErrback(failures.append)
    assert failures[0].check(ZeroDivisionError)


def test_twistd_asks_several_in_turn(tmp_path: Path) -> None:
    """And of those with other credentials each keeps its own; the directory's are not asked."""
    from tests.test_checkers_oauth import log_in  # noqa: PLC0415
    from tests.twistd import ACCOUNT, add_account  # noqa: PLC0415

    add_account(tmp_path)
    options = []
    for number in range(2):
        path = tmp_path / f"passwords-{number}"
        path.write_text(f"{ACCOUNT}:number {number}\n")
        options += ["--auth", f"file:{path}"]
    with Twistd([*TWISTD, "--nodaemon", "--pidfile=", "mailsvc", "--set",
                 f"service.data={tmp_path}", "--set", "listeners.smtp=[]", "--pop3",
                 "tcp:0:interface=127.0.0.1", *options]) as process:
        port = process.port("pop3")
        replies = [log_in(port, "PLAIN", f"\0{ACCOUNT}\0{password}")[:5]
                   for password in ("number 0", "number 1", "secret")]
        process.stop()
    assert replies == [b"+OK 0", b"+OK 0", b"-ERR "]


# ---- bounds and memory --------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_threads_hand_over_what_goes_wrong() -> None:
    ended: list[bool] = []
    threads = Threads("test", 1, 1, 5, lambda: ended.append(True))
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 / 0)
    assert await threads.run(lambda one, two: one + two, 1, 2) == 3
    await deferToThread(threads.stop)
    threads.stop()
    assert ended == [True]


def test_successes() -> None:
    known = Successes(60, 2)
    known.add(0, b"alice", b"token")
    assert known.find(59, b"token") == b"alice"
    assert known.find(60, b"token") is None
    assert known.find(0, b"tok", b"en") is None
    assert known.find(0, b"other") is None
    known.add(1, b"bob", b"b", until=10)
    assert known.find(9, b"b") == b"bob"
    assert known.find(10, b"b") is None
    known.add(2, b"carol", b"c")
    assert known.find(3, b"token") is None, "the oldest makes room"
    assert len(known) == 2
    assert b"carol" not in repr(vars(known)["_known"].keys()).encode()
