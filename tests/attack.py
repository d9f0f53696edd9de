"""Guessing at the service: ``python -m tests.attack [--addresses N] [--guesses N]``.

Ten thousand wrong passwords from two hundred addresses, all at once, over POP3 and submission.
Meanwhile somebody who knows the password logs in again and again.  Printed are how long that takes
before and during the attack, what became of the guesses, and how much memory the service grew by.
Passwords are hashed in earnest.  It is a measurement: read it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import base64
import collections
import contextlib
import selectors
import socket
import statistics
import tempfile
import time
from pathlib import Path

from mailsvc.passwords import PasswordSettings
from tests.service import Service

USER, PASSWORD = "alice@example.org", "secret"
#: Somebody who has logged in from here before.
KNOWN = "127.9.9.9"


class Guesser:
    """One address that guesses, one connection after another, until it has had its guesses."""

    def __init__(self, source: str, target: tuple[str, int], guesses: int) -> None:
        self.source = source
        self._target = target
        self.left = guesses
        self.answers: collections.Counter[str] = collections.Counter()
        self.socket = self._connect()

    def _connect(self) -> socket.socket:
        made = socket.socket()
        made.setblocking(False)
        made.bind((self.source, 0))
        made.connect_ex(self._target)
        return made

    def speak(self) -> bool:
        """Read what came and answer it; False when done."""
        try:
            data = self.socket.recv(4096)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        for line in data.splitlines():
            if line.startswith(b"+OK Send"):
                self._send(b"PASS wrong\r\n")
            elif line.startswith(b"+OK"):
                self._send(f"USER {USER}\r\n".encode())
            elif line.startswith((b"220", b"535")):
                self._send(b"EHLO x\r\n" if line[:3] == b"220" else b"")
            elif line.startswith(b"250 "):
                token = base64.b64encode(f"\0{USER}\0wrong".encode())
                self._send(b"AUTH PLAIN " + token + b"\r\n")
            if line.startswith((b"-ERR", b"4", b"5")):
                self.left -= 1
                self.answers[line.decode("ascii", "replace")[:40]] += 1
                if self.left > 0 and line.startswith(b"-ERR [AUTH]"):
                    self._send(f"USER {USER}\r\n".encode())
                elif self.left > 0 and line.startswith(b"535"):
                    token = base64.b64encode(f"\0{USER}\0wrong".encode())
                    self._send(b"AUTH PLAIN " + token + b"\r\n")
                else:
                    return False  # and come again
        return bool(data) and self.left > 0

    def _send(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            self.socket.send(data)

    def again(self) -> None:
        """A new connection in the place of one that has ended."""
        self.socket.close()
        self.socket = self._connect()


def log_in(target: tuple[str, int]) -> float:
    """The seconds that one right login takes, from connecting to the answer of PASS."""
    began = time.perf_counter()
    with socket.create_connection(target, 30, (KNOWN, 0)) as client, client.makefile("rb") as lines:
        lines.readline()
        client.sendall(f"USER {USER}\r\nPASS {PASSWORD}\r\n".encode())
        lines.readline()
        answer = lines.readline()
        assert answer.startswith(b"+OK"), answer
        elapsed = time.perf_counter() - began
        client.sendall(b"QUIT\r\n")
        lines.read()
    return elapsed


def described(times: list[float]) -> str:
    ordered = sorted(times)
    return (f"median {statistics.median(ordered) * 1000:.2f} ms, "
            f"95 % within {ordered[int(len(ordered) * 0.95)] * 1000:.2f} ms, "
            f"most {ordered[-1] * 1000:.2f} ms, {len(ordered)} logins")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--addresses", type=int, default=200)
    parser.add_argument("--guesses", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=60, help="the longest it may take")
    chosen = parser.parse_args()
    earnest = PasswordSettings()
    options = ("--submission", "127.0.0.1:0", "--set", "smtp.allow_cleartext_auth=yes",
               "--set", f"passwords.memory_kib={earnest.memory_kib}",
               "--set", f"passwords.passes={earnest.passes}",
               "--set", f"passwords.scram_iterations={earnest.scram_iterations}")
    with tempfile.TemporaryDirectory() as directory, \
            Service(Path(directory) / "data", (f"{USER}:{PASSWORD}",), options) as service:
        log_in(service.pop3)
        idle = [log_in(service.pop3) for _ in range(200)]
        print("idle:   ", described(idle))
        before = service.resident()
        each = chosen.guesses // chosen.addresses
        guessers = [
            Guesser(f"127.1.{number // 100}.{number % 100 + 1}",
                    service.pop3 if number % 2 else service.listeners["submission"], each)
            for number in range(chosen.addresses)]
        watch = selectors.DefaultSelector()
        for guesser in guessers:
            watch.register(guesser.socket, selectors.EVENT_READ, guesser)
        times: list[float] = []
        began, following = time.monotonic(), 0.0
        while watch.get_map() and time.monotonic() - began < chosen.seconds:
            for key, _ in watch.select(0.02):
                guesser = key.data
                if not guesser.speak():
                    watch.unregister(guesser.socket)
                    if guesser.left > 0:
                        guesser.again()
                        watch.register(guesser.socket, selectors.EVENT_READ, guesser)
            if time.monotonic() >= following:
                times.append(log_in(service.pop3))
                following = time.monotonic() + 0.05
        seconds = time.monotonic() - began
        print("attack: ", described(times))
        answers: collections.Counter[str] = collections.Counter()
        for guesser in guessers:
            answers.update(guesser.answers)
        for answer, count in answers.most_common():
            print(f"{count:8}  {answer}")
        print(f"{sum(answers.values())} answers in {seconds:.0f} s; memory grew by "
              f"{(service.resident() - before) / 2 ** 20:.1f} MiB; ratio of medians "
              f"{statistics.median(times) / statistics.median(idle):.2f}")


if __name__ == "__main__":
    main()
