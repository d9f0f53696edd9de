"""``mailsvc dev`` as a child process, for tests that talk to a whole service over loopback."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

from tests.readable import readable

#: How long a service may take to bind its listeners, to stop, and to answer, seconds.  It needs
#: about one.
PATIENCE = 30.0

_LISTENER = re.compile(r"^(\w+)\b.*?([0-9]+(?:\.[0-9]+){3}):(\d+)", re.MULTILINE)


class Service:
    """A running service with its data in *directory*; stopped when the ``with`` block ends.

    :param accounts: ``name@domain:password`` lines.
    :param options: further arguments of ``mailsvc dev``.
    :param descriptors: the limit on open files it starts with; the machine's hard limit without.
    :param prefix: a command that ends by executing the one behind it, to start it by.
    :ivar smtp: where the SMTP listener is bound, ``(host, port)``.
    :ivar pop3: where the POP3 listener is.
    :ivar listeners: where each listener is, by its name.
    """

    def __init__(self, directory: Path, accounts: tuple[str, ...] = (),
                 options: tuple[str, ...] = (), descriptors: int | None = None,
                 prefix: tuple[str, ...] = ()) -> None:
        self.directory = directory
        self.log = directory.parent / (directory.name + ".log")
        self.passwords = dict(account.split(":", 1) for account in accounts)
        command = [sys.executable, "-c", "from mailsvc.cli import main; main()", "dev",
                   "--dir", str(directory), "--hostname", "mx.example.org",
                   "--smtp", "127.0.0.1:0", "--pop3", "127.0.0.1:0"]
        for account in accounts:
            command += ["--account", account]
        if descriptors is None:
            descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        # `ulimit` through a shell that replaces itself keeps fork() free of Python code.
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["/bin/sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh", *prefix,
                 *command, *options],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
                start_new_session=True, env=environment)
        try:
            self.greeting = self._until_ready()
        except BaseException:
            self.kill()
            raise
        self.listeners = listeners = {name.lower(): (host, int(port))
                     for name, host, port in _LISTENER.findall(self.greeting)}
        self.smtp = listeners["smtp"]
        self.pop3 = listeners["pop3"]

    def __enter__(self) -> Service:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self.process.pid

    def maildir(self, account: str) -> Path:
        """Where the mail of ``local-part@domain`` lies."""
        local_part, domain = account.rsplit("@", 1)
        return self.directory / "mail" / domain / local_part

    def pids(self) -> list[int]:
        """Every process of the service: they are one process group."""
        return [int(entry) for entry in os.listdir("/proc")
                if entry.isdigit() and _group(int(entry)) == self.pid]

    def resident(self) -> int:
        """Octets of memory that its processes hold resident, summed.

        Pages that they share count in each: compare with the same service's, not with another's.
        """
        return sum(_resident(pid) for pid in self.pids())

    def stop(self) -> int:
        """Stop it gracefully; its exit status.  May be called again."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(PATIENCE)
            finally:
                self.kill()
        self._close()
        return self.process.returncode

    def kill(self) -> None:
        """kill -9 all its processes at once.  May be called again."""
        if self.process.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.process.wait(PATIENCE)
        self._close()

    def _close(self) -> None:
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _until_ready(self) -> str:
        """What it printed up to the line ``ready``; raises when that does not come."""
        assert self.process.stdout is not None
        printed = b""
        deadline = time.monotonic() + PATIENCE
        while not re.search(rb"^ready$", printed, re.MULTILINE):
            more = readable(self.process.stdout, deadline - time.monotonic())
            block = os.read(self.process.stdout.fileno(), 65536) if more else b""
            if not block:
                raise RuntimeError(
                    f"mailsvc dev {'ended' if more else 'did not get ready'}; it printed:\n"
                    + printed.decode() + self.log.read_text()[-4000:])
            printed += block
        return printed.decode()


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def _resident(pid: int) -> int:
    """Resident set size in octets; 0 when the process has just ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return pages * resource.getpagesize()


class Dialogue:
    """A connection on which a test says exact bytes and reads whole replies."""

    def __init__(self, address: tuple[str, int], timeout: float = PATIENCE) -> None:
        self.socket = socket.create_connection(address, timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb")

    def __enter__(self) -> Dialogue:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def line(self) -> bytes:
        """The next line without its CRLF; fails when the peer has closed."""
        line = self.file.readline()
        assert line.endswith(b"\r\n"), f"the connection ended after {line!r}"
        return line[:-2]

    def reply(self) -> bytes:
        """The last line of the next SMTP reply, whose code and text it holds."""
        while True:
            line = self.line()
            if line[3:4] != b"-":
                return line

    def say(self, line: bytes) -> bytes:
        """Send one command; the last line of its SMTP reply."""
        self.send(line + b"\r\n")
        return self.reply()

    def ask(self, line: bytes) -> bytes:
        """Send one POP3 command; its status line, which must be ``+OK``."""
        self.send(line + b"\r\n")
        answer = self.line()
        assert answer.startswith(b"+OK"), (line, answer)
        return answer

    def multiline(self) -> Iterator[bytes]:
        """The lines of a POP3 multi-line response, unstuffed, without CRLF, up to the dot."""
        while (line := self.line()) != b".":
            yield line.removeprefix(b".")

    def close(self) -> None:
        self.file.close()
        self.socket.close()


def login(service: Service, account: str) -> Dialogue:
    """A POP3 session in the transaction state."""
    pop3 = Dialogue(service.pop3)
    assert pop3.line().startswith(b"+OK")
    pop3.ask(b"USER " + account.encode())
    pop3.ask(b"PASS " + service.passwords[account].encode())
    return pop3


def fetch(service: Service, account: str, *, delete: bool = True) -> list[bytes]:
    """All messages of *account* by POP3, octet by octet, and their sizes held against LIST."""
    with login(service, account) as pop3:
        pop3.ask(b"LIST")
        sizes = [int(line.split()[1]) for line in pop3.multiline()]
        messages = []
        for number, size in enumerate(sizes, 1):
            pop3.ask(b"RETR %d" % number)
            message = b"".join(line + b"\r\n" for line in pop3.multiline())
            assert len(message) == size, f"LIST said {size}, RETR sent {len(message)} octets"
            messages.append(message)
            if delete:
                pop3.ask(b"DELE %d" % number)
        pop3.ask(b"QUIT")
    return messages


def submit(service: Service, message: bytes, recipients: tuple[str, ...],
           reverse_path: str = "sender@example.net") -> bytes:
    """Send *message* (CRLF, not stuffed) by plain SMTP; the 250 that took it."""
    with Dialogue(service.smtp) as smtp:
        assert smtp.reply().startswith(b"220")
        assert smtp.say(b"EHLO client.example.net").startswith(b"250")
        assert smtp.say(b"MAIL FROM:<%s>" % reverse_path.encode()).startswith(b"250")
        for recipient in recipients:
            assert smtp.say(b"RCPT TO:<%s>" % recipient.encode()).startswith(b"250")
        assert smtp.say(b"DATA").startswith(b"354")
        smtp.send(stuffed(message))
        answer = smtp.reply()
        smtp.send(b"QUIT\r\n")
        assert answer.startswith(b"250"), answer
        return answer


def stuffed(message: bytes) -> bytes:
    """*message* as DATA sends it: dots doubled line by line, the terminator behind."""
    if message and not message.endswith(b"\r\n"):
        message += b"\r\n"
    lines = message.split(b"\r\n")[:-1]
    return b"".join((b"." if line.startswith(b".") else b"") + line + b"\r\n"
                    for line in lines) + b".\r\n"


_TRACE = re.compile(rb"\AReturn-Path: <([^>\r\n]*)>\r\n"
                    rb"(Received: [^\r\n]*\r\n(?:[ \t][^\r\n]*\r\n)*)")


def below_trace(message: bytes) -> bytes:
    """*message* without the Return-Path and the Received that our service put on top."""
    match = _TRACE.match(message)
    assert match, f"no trace header on {message[:200]!r}"
    assert b"by mx.example.org" in match[2]
    return message[match.end():]


def difference(got: Iterable[bytes], expected: Iterable[bytes]) -> str:
    """In one line where two lists of messages part; empty when they are the same.

    pytest would explain a difference of megabytes for hours.
    """
    found, wanted = list(got), list(expected)
    for number, (ours, theirs) in enumerate(zip(found, wanted, strict=False)):
        if ours != theirs:
            at = next((place for place, pair in enumerate(zip(ours, theirs, strict=False))
                       if pair[0] != pair[1]), min(len(ours), len(theirs)))
            around = slice(max(0, at - 30), at + 30)
            return f"message {number}, octet {at}: {ours[around]!r}, expected {theirs[around]!r}"
    return "" if len(found) == len(wanted) else f"{len(found)} messages, expected {len(wanted)}"
