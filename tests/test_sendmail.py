"""mailsvc sendmail: against a service, called by other programs, and in pieces."""

from __future__ import annotations

import getpass
import io
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from email.header import decode_header, make_header
from email.parser import BytesParser
from email.policy import default
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailsvc import sendmail
from mailsvc.mail import Address
from mailsvc.names import parse_address
from mailsvc.sendmail import Failed, from_field, parse, read_message
from tests.conftest import absent
from tests.service import PATIENCE, Service, below_trace, fetch

ROOT = Path(__file__).parent.parent
ME = getpass.getuser() if os.geteuid() else "root"
COMMAND = [sys.executable, "-c", "from mailsvc.sendmail import main; main()"]
ACCOUNTS = ("alice@example.org:secret", "bob@example.org:secret", "root@mx.example.org:secret")
at = parse_address


@pytest.fixture(scope="module")
def post(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    # Not below pytest's own directory: other users shall get there, and such paths may be too long.
    with tempfile.TemporaryDirectory(prefix="ms-") as place:
        os.chmod(place, 0o755)
        path = f"{place}/submission.sock"
        with Service(tmp_path_factory.mktemp("sendmail") / "data", ACCOUNTS, (
                "--submission", f"unix:{path}",
                "--set", 'submission.local_senders.nobody="shop@example.org ann@example.net"',
                "--set", 'submission.trusted_networks=["127.0.0.2/32"]')) as service:
            assert f"submission {path}\n" in service.greeting
            service.socket = path  # type: ignore[attr-defined]
            yield service


def run(post: Any, *arguments: str, stdin: bytes = b"Subject: hello\n\nHello.\n",
        command: list[str] = COMMAND) -> tuple[int, str]:
    """Status and standard error of ``sendmail``; it prints nothing."""
    done = subprocess.run(
        [*command, *arguments], input=stdin, capture_output=True, timeout=PATIENCE, check=False,
        env={**os.environ, "MAILSVC_SOCKET": post.socket, "PYTHONPATH": str(ROOT)})
    assert done.stdout == b""
    assert b"Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr.decode()


def sent(post: Any, *arguments: str, to: str = "alice@example.org", **how: Any) -> bytes:
    """The one message that *to* gets of it, below the trace."""
    assert run(post, *arguments, **how) == (0, "")
    (message,) = fetch(post, to)
    return below_trace(message)


# ---- the program, against a service -------------------------------------------------------------


def test_a_message_to_arguments(post: Any) -> None:
    assert run(post, "alice@example.org", "bob@example.org") == (0, "")
    for name in "alice@example.org", "bob@example.org":
        (message,) = fetch(post, name)
        assert message.startswith(b"Return-Path: <%s@mx.example.org>\r\n" % ME.encode())
        assert b"Received: from localhost (user %s)\r\n\tby mx.example.org with ESMTP id" % (
            ME.encode()) in message
        parsed = BytesParser(policy=default).parsebytes(message)
        assert parsed["From"] == f"{ME}@mx.example.org" or parsed["From"] == (
            f"<{ME}@mx.example.org>")
        assert parsed["Date"].datetime.tzinfo is not None
        assert parsed["Message-ID"].endswith("@mx.example.org>")
        assert message.endswith(b"Subject: hello\r\n\r\nHello.\r\n")
    log = post.log.read_text()
    assert f"user=local:{ME} accounts=['alice@example.org', 'bob@example.org']" in log


def test_the_header_names_the_recipients(post: Any) -> None:
    text = (b"To: Alice <alice@example.org>,\n  undisclosed: root;\nCC: (me) nobody@mx.example.org"
            b"\nBcc: bob@example.org\nSubject: x\n\nTo: eve@example.org\n")
    status, said = run(post, "-t", "-i", stdin=text)
    assert status == os.EX_NOUSER
    assert said.startswith("sendmail: nobody@mx.example.org: 550 5.1.1 ")
    for name in "alice@example.org", "root@mx.example.org", "bob@example.org":
        (message,) = fetch(post, name)
        assert b"bcc" not in message.lower() and b"CC: (me)" in message


def test_those_of_the_command_line_are_added(post: Any) -> None:
    assert run(post, "-t", "bob@example.org", stdin=b"To: alice@example.org\n\nx\n") == (0, "")
    assert len(fetch(post, "alice@example.org")) == len(fetch(post, "bob@example.org")) == 1


def test_a_message_sent_on(post: Any) -> None:
    text = b"Resent-To: alice@example.org\nResent-From: root\n\t@mx.example.org\nTo: x@y.example\n"
    assert b"To: x@y.example" in sent(post, "-t", stdin=text + b"From: x@y.example\n\nx\n")


@pytest.mark.parametrize(("options", "stdin", "body"), [
    ((), b"S: x\n\na\n.\nlost\n", b"a\r\n"),
    ((), b"S: x\n\na\r\n.\r\nlost\n", b"a\r\n"),
    ((), b"S: x\n\na\n.", b"a\r\n"),
    ((), b"S: x\n\na\n..\n.b\n", b"a\r\n..\r\n.b\r\n"),
    (("-i",), b"S: x\n\na\n.\nkept\n", b"a\r\n.\r\nkept\r\n"),
    (("-oi",), b".\n", b".\r\n"),
    (("-oi",), b"S: x\n\nno end", b"no end\r\n"),
    (("-i",), "S: x\n\ngrüße\n".encode(), "grüße\r\n".encode()),
    ((), b"From root Sat Nov 21 05:13:05 2026\nS: x\n\nFrom here\n", b"From here\r\n"),
    ((), b"", b""),
    ((), b"only text\n", b"only text\r\n"),
])
def test_the_text(post: Any, options: tuple[str, ...], stdin: bytes, body: bytes) -> None:
    message = sent(post, *options, "alice@example.org", stdin=stdin)
    header, _, found = message.partition(b"\r\n\r\n")
    assert found == body
    assert b"From root" not in header and b"\nFrom here" not in header


@pytest.mark.parametrize("bad", [b"a\rb\n", b"a\r\r\n", b"\r.\r\n"])
def test_a_stray_cr_never_becomes_a_line_end(post: Any, bad: bytes) -> None:
    """PITFALLS, SMTP row 2."""
    status, said = run(post, "-i", "alice@example.org", stdin=b"S: x\n\n" + bad)
    assert (status, said[:20]) == (os.EX_DATAERR, "sendmail: 550 5.6.11")
    assert fetch(post, "alice@example.org") == []


@pytest.mark.parametrize("option", ["-f", "-t", "-F", "--socket", "recipient"])
@pytest.mark.parametrize("evil", [
    "a@example.org\r\nRCPT TO:<bob@example.org>", "a@example.org\nBcc: bob@example.org",
    "a@example.org\r"])
def test_no_argument_brings_a_command_or_field(post: Any, option: str, evil: str) -> None:
    """PITFALLS, SMTP row 13."""
    given = [evil] if option == "recipient" else [option, evil, "alice@example.org"]
    status, said = run(post, *given)
    assert status == os.EX_USAGE
    assert "holds a line end or NUL" in said and "\r" not in said
    assert fetch(post, "alice@example.org") == fetch(post, "bob@example.org") == []


@pytest.mark.parametrize("address", [
    "a@b> SIZE=1 <c@example.org", "a b@example.org", "@example.org", "a@", "<a@example.org",
    "a@example.org, b c", "\udcff@example.org", "a@[x", ""])
def test_no_address(post: Any, address: str) -> None:
    status, said = run(post, "-f", "bob@example.org", "--", "alice@example.org", address)
    if address:
        assert status == os.EX_USAGE and "is not an address" in said
        assert fetch(post, "alice@example.org") == []
    else:
        assert (status, len(fetch(post, "alice@example.org"))) == (0, 1)


@pytest.mark.parametrize(("arguments", "path", "field"), [
    (("-f", "bob@example.org"), "bob@example.org", "<bob@example.org>"),
    (("-fbob@example.org",), "bob@example.org", "<bob@example.org>"),
    (("-r", "root"), "root@mx.example.org", "<root@mx.example.org>"),
    (("-f", "Bob <bob@example.org>"), "bob@example.org", "<bob@example.org>"),
    (("-f", "<>"), "", f"<{ME}@mx.example.org>"),
    (("-f", ""), "", f"<{ME}@mx.example.org>"),
    (("-f", "bob@example.org", "-F", "Bob B."), "bob@example.org", '"Bob B." <bob@example.org>'),
    (("-F", 'a"\\b', "-f", "<>"), "", f'"a\\"\\\\b" <{ME}@mx.example.org>'),
])
def test_the_sender(post: Any, arguments: tuple[str, ...], path: str, field: str) -> None:
    assert run(post, *arguments, "alice@example.org") == (0, "")
    (message,) = fetch(post, "alice@example.org")
    assert message.startswith(b"Return-Path: <%s>\r\n" % path.encode())
    assert f"\r\nFrom: {field}\r\n".encode() in message


def test_a_from_field_stays(post: Any) -> None:
    own = b"From: Real <bob@example.org>\n\nx\n"
    message = sent(post, "-F", "Other", "alice@example.org", stdin=own)
    assert b"Real" in message and b"Other" not in message


def test_what_others_have_is_accepted(post: Any) -> None:
    sent(post, "-oem", "-em", "-odb", "-N", "never", "-R", "hdrs", "-v", "-B8BITMIME", "-bm", "-G",
         "-oee", "-O", "Timeout=1", "-h", "3", "-d0.1", "-Am", "-ti", "alice@example.org")


def test_an_internationalized_recipient(post: Any) -> None:
    status, said = run(post, "müller@example.org")
    assert (status, said[:34]) == (os.EX_NOUSER, "sendmail: müller@example.org: 550 ")


@pytest.mark.parametrize(("arguments", "stdin", "status", "text"), [
    ((), b"", os.EX_USAGE, "no recipients"),
    (("-t",), b"Subject: x\n\nTo: a@example.org\n", os.EX_USAGE, "no recipients"),
    (("-t",), b"To: a b\n\n", os.EX_DATAERR, "To field cannot be understood"),
    (("-y", "x"), b"", os.EX_USAGE, "-y: no such option"),
    (("--verbose",), b"", os.EX_USAGE, "--verbose: no such option"),
    (("-f",), b"", os.EX_USAGE, "-f needs an argument"),
    (("-bd",), b"", os.EX_USAGE, "-bd: not done here"),
    (("a@example.org", "-oQ/tmp"), b"", os.EX_USAGE, "-oQ/tmp: not an address"),
    (("--", "-t"), b"", os.EX_USAGE, "-t: not an address"),
    (("-f", "a@b, c@d", "x"), b"", os.EX_USAGE, "is not one address"),
    (("nobody@example.org",), b"", os.EX_NOUSER, "nobody@example.org: 550 5.1.1"),
    (("alice@example.org",), b"X: " + b"y" * 300_000, os.EX_DATAERR, "554 5.6.0"),
    (("--socket", "/nonexistent/s", "x"), b"", os.EX_TEMPFAIL, "is mailsvc running"),
    (("--socket=/nonexistent/s", "x"), b"", os.EX_TEMPFAIL, "/nonexistent/s: No such file"),
    (("-bs", "--socket=/nonexistent/s"), b"", os.EX_TEMPFAIL, "/nonexistent/s: No such file"),
])
def test_statuses(post: Any, arguments: tuple[str, ...], stdin: bytes, status: int,
                  text: str) -> None:
    found, said = run(post, *arguments, stdin=stdin)
    assert found == status, said
    assert text in said and said.startswith("sendmail: ")


def test_a_service_that_breaks_off(tmp_path: Path, capfd: pytest.CaptureFixture[str],
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    def serve(server: socket.socket, answers: bytes) -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(answers)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65_536):
                pass

    for answers, status, text in (
            (b"", os.EX_TEMPFAIL, "the service broke off"),
            (b"HTTP/1.1 200\r\n", os.EX_TEMPFAIL, "the service broke off"),
            (b"421 4.3.2 Going \x1bdown\r\n", os.EX_TEMPFAIL, "421 4.3.2 Going ?down"),
            (b"220 mx\r\n250 mx\r\n250 ok\r\n452 4.2.2 Full\r\n", os.EX_TEMPFAIL, "a@b: 452"),
            (b"220 mx\r\n250 mx\r\n250 ok\r\n250 ok\r\n354 go\r\n554 5.3.0 No\r\n",
             os.EX_UNAVAILABLE, "554 5.3.0 No"),
            (b"220 mx\r\n250 mx\r\n250 ok\r\n250 ok\r\n354 go\r\n", os.EX_TEMPFAIL, "broke off")):
        path = str(tmp_path / "s")
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            server.listen(1)
            thread = threading.Thread(target=serve, args=(server, answers))
            thread.start()
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"x\n")))
            assert sendmail.run(["--socket", path, "a@b"]) == status
            thread.join(PATIENCE)
        os.unlink(path)
        assert text in capfd.readouterr().err


def test_smtp_on_standard_input(post: Any) -> None:
    words = (b"EHLO here\r\nMAIL FROM:<%s@mx.example.org>\r\nRCPT TO:<alice@example.org>\r\nDATA"
             b"\r\nSubject: y\r\n\r\ny\r\n.\r\n" % ME.encode()) + b"NOOP\r\n" * 900 + b"QUIT\r\n"
    for end in words, words.removesuffix(b"QUIT\r\n"):  # the end of input is an end, too
        done = subprocess.run(
            [*COMMAND, "-bs", "--socket", post.socket], input=end, capture_output=True,
            timeout=PATIENCE, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.startswith(b"220 mx.example.org ESMTP")
        assert done.stdout.count(b"\r\n250 2.0.0") == 901
        assert len(fetch(post, "alice@example.org")) == 1


def test_as_a_command_of_mailsvc(post: Any) -> None:
    command = [sys.executable, "-c", "from mailsvc.cli import main; main()", "sendmail"]
    assert b"-h is kept" in sent(post, "-h", "3", "--", "alice@example.org", command=command,
                                 stdin=b"Subject: -h is kept\n\n")
    assert run(post, "-y", command=command)[0] == os.EX_USAGE
    for arguments in ([*command, "--help"], [*COMMAND, "--help"]):
        text = subprocess.run(arguments, capture_output=True, text=True, check=True,
                              env={**os.environ, "PYTHONPATH": str(ROOT)}).stdout
        assert "--socket PATH" in text and "| mailsvc sendmail -t" in text and "\b" not in text


def test_it_starts_fast() -> None:
    """What takes its time to import is not imported."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *COMMAND[1:], "--help"], capture_output=True,
        text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    names = {line.rpartition("|")[2].strip().partition(".")[0]
             for line in done.stderr.splitlines()}
    assert "mailsvc" in names
    assert not names & {"twisted", "rich", "click", "argon2", "sqlite3", "email", "ssl", "smtplib",
                        "zope", "asyncio", "logging"}


# ---- other programs -----------------------------------------------------------------------------


@pytest.fixture
def script(post: Any, tmp_path: Path) -> str:
    """A program that stands where /usr/sbin/sendmail would."""
    path = tmp_path / "sendmail"
    path.write_text(f"#!/bin/sh\nMAILSVC_SOCKET='{post.socket}' PYTHONPATH='{ROOT}' exec "
                    f"'{sys.executable}' -c 'from mailsvc.sendmail import main; main()' \"$@\"\n")
    path.chmod(0o755)
    return str(path)


def by(post: Any, tmp_path: Path, *command: str, stdin: bytes = b"") -> Any:
    """The message that alice gets when *command* has run."""
    done = subprocess.run(
        command, input=stdin, capture_output=True, timeout=PATIENCE, check=False, cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path), "LC_ALL": "C.UTF-8"})
    assert done.returncode == 0, done
    deadline = time.monotonic() + PATIENCE
    while not (found := fetch(post, "alice@example.org")):  # some send in the background
        assert time.monotonic() < deadline, done
        time.sleep(0.1)
    (message,) = found
    return BytesParser(policy=default).parsebytes(message.replace(b"\r\n", b"\n"))


def test_a_shell(post: Any, script: str, tmp_path: Path) -> None:
    """As cron and scripts do."""
    found = by(post, tmp_path, "/bin/sh", "-c", "printf 'To: alice@example.org\\nFrom: root (Cron "
               f"Daemon)\\nSubject: Cron\\n\\nout\\n' | {script} -FCronDaemon -i -B8BITMIME -oem -t"
               .replace("root (", f"{ME}@mx.example.org ("))
    assert (found["Subject"], found.get_content()) == ("Cron", "out\n")


def test_mutt(post: Any, script: str, tmp_path: Path, program: Callable[[str], str]) -> None:
    found = by(post, tmp_path, program("mutt"), "-n", "-e", f'set sendmail="{script} -oem -oi"',
               "-e", "set copy=no", "-e", "set from=bob@example.org", "-s", "grüße", "--",
               "alice@example.org", stdin=b"from mutt\n.\nend\n")
    assert (found["Subject"], found["From"].addresses[0].addr_spec) == ("grüße", "bob@example.org")
    assert found.get_content() == "from mutt\n.\nend\n"


def test_s_nail(post: Any, script: str, tmp_path: Path, program: Callable[[str], str]) -> None:
    found = by(post, tmp_path, program("s-nail"), "-n", "-S", "v15-compat", "-S",
               f"mta=file://{script}", "-S", "sendwait", "-S", "from=bob@example.org", "-s",
               "hello", "alice@example.org", stdin=b"from s-nail\n")
    assert (found["Subject"], found.get_content()) == ("hello", "from s-nail\n")


def test_php(post: Any, script: str, tmp_path: Path, program: Callable[[str], str]) -> None:
    found = by(post, tmp_path, program("php"), "-d", f"sendmail_path={script} -t -i", "-r",
               r'exit(mail("alice@example.org", "hello", "a\n.\nb\n", "From: bob@example.org\r\n'
               r'X-A: b", "-fbob@example.org") ? 0 : 1);')
    assert (found["Subject"], found["X-A"], found.get_content()) == ("hello", "b", "a\n.\nb\n\n")
    assert found["Return-Path"] == "<bob@example.org>"


def test_git(post: Any, script: str, tmp_path: Path, program: Callable[[str], str]) -> None:
    git = program("git")
    where = subprocess.run([git, "--exec-path"], capture_output=True, text=True, check=True)
    if not Path(where.stdout.strip(), "git-send-email").exists():
        absent("git-email is not installed")
    # Debian only recommends it.
    if subprocess.run([program("perl"), "-MMail::Address", "-e1"], stderr=subprocess.DEVNULL,
                      check=False).returncode:
        absent("git send-email needs Perl's Mail::Address (libmailtools-perl)")
    (tmp_path / "0001.patch").write_text(
        "From 1234567890123456789012345678901234567890 Mon Sep 17 00:00:00 2001\n"
        "From: Bob <bob@example.org>\nDate: Sat, 21 Nov 2026 05:13:05 +0000\n"
        "Subject: [PATCH] Fix it\n\nSo.\n---\n a | 1 +\n")
    found = by(post, tmp_path, git, "-c", "user.name=Bob", "-c", "user.email=bob@example.org",
               "send-email", f"--sendmail-cmd={script}", "--from=bob@example.org", "--quiet",
               "--to=alice@example.org", "--confirm=never", "--suppress-cc=all", "0001.patch")
    assert found["Subject"] == "[PATCH] Fix it"


# ---- pieces -------------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"])))
def test_a_full_name_says_what_was_given(name: str) -> None:
    field = from_field(name, Address("a", "b.example"))
    assert all(len(line) <= 998 for line in field.split(b"\r\n"))
    assert field.endswith(b"<a@b.example>\r\n")
    lines = field.removesuffix(b"\r\n").split(b"\r\n")
    assert all(line.startswith(b" ") for line in lines[1:])
    text = field.decode("ascii").removeprefix("From: ").removesuffix(" <a@b.example>\r\n")
    if text.startswith('"'):
        assert re.sub(r"\\(.)", r"\1", text[1:-1]) == name and "=?" not in name
    else:
        assert str(make_header(decode_header(text.rstrip()))) == name


def test_a_name_that_hides_a_field_stays_a_name() -> None:
    """PITFALLS, SMTP row 13: also after RFC 2047 decoding."""
    field = from_field("=?utf-8?q?a=0D=0ABcc:_b?=", Address("a", "b"))
    assert b"=?utf-8?q?" not in field
    assert str(make_header(decode_header(field.decode().splitlines()[0][6:]))).startswith("=?utf-8")


@given(st.lists(st.sampled_from([b"\n", b"\r\n", b".", b"a", b"From ", b"\0"]), max_size=12))
def test_what_is_read(pieces: list[bytes]) -> None:
    text = b"".join(pieces)
    expected = []
    for line in re.findall(rb"[^\n]*\n|[^\n]+\Z", text):
        if line.rstrip(b"\r\n") == b".":
            break
        expected.append(line.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    if expected and expected[0].startswith(b"From "):
        del expected[0]
    assert read_message(io.BytesIO(text), dot_ends=True) == b"".join(expected)


def test_endless_input_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """PITFALLS, SMTP row 6."""
    monkeypatch.setattr(sendmail, "MOST_OCTETS", 1_000_000)
    with open("/dev/zero", "rb") as zeros, pytest.raises(Failed, match="longer than 1000000"):
        read_message(zeros, dot_ends=True)


def test_where_the_socket_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAILSVC_SOCKET", raising=False)
    assert parse([]).socket == "/run/mailsvc/submission.sock"
    monkeypatch.setenv("MAILSVC_SOCKET", "/a")
    assert parse([]).socket == "/a"
    assert parse(["--socket", "/b"]).socket == "/b"
