"""Guessing at the service: ``python -m tests.attack [--addresses N] [--guesses N]``.

Ten thousand wrong passwords from two hundred addresses in as many networks, over POP3 and
submission.  Each address is as far away as real ones are: what it sends arrives a round trip after
what it answers to.
Meanwhile somebody who knows the password logs in again and again, and the attack is interrupted
every other second, so that both are measured on the same machine in the same minute.  Printed are
how long a login takes with the attack and without, what became of the guesses, and how much memory
the service grew by.  Passwords are hashed in earnest.

The attackers are one process and whoever logs in is another.  It is a measurement: read it on an
otherwise idle machine, and mind that attackers, client and service share its cores.
"""

from __future__ import annotations

import argparse
import base64
import collections
import contextlib
import heapq
import itertools
import multiprocessing
import selectors
import socket
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from mailsvc.passwords import PasswordSettings
from tests.service import Service

USER, PASSWORD = "alice@example.org", "secret"
#: Somebody who has logged in from here before.
KNOWN = "127.9.9.9"
#: How long the attack goes on and is interrupted for, in seconds; and what of that is not measured,
#: because what had begun before goes on in it.
PHASE, SETTLING = 1.0, 0.3


class Guesser:
    """One address that guesses, one connection after another, until it has had its guesses."""

    def __init__(self, source: str, target: tuple[str, int], guesses: int) -> None:
        self._source = source
        self._target = target
        self.left = guesses
        self.answers: collections.Counter[str] = collections.Counter()
        self.socket: socket.socket | None = None

    def connect(self) -> None:
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.bind((self._source, 0))
        self.socket.connect_ex(self._target)

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
        self.socket = None

    def send(self, data: bytes) -> None:
        if self.socket is not None:
            with contextlib.suppress(OSError):
                self.socket.send(data)

    def hear(self) -> bytes | None:
        """Read what came: what to send next, perhaps nothing; None when to come again."""
        assert self.socket is not None
        try:
            data = self.socket.recv(4096)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        answer: bytes | None = b"" if data else None
        for line in data.splitlines():
            if line.startswith(b"+OK Send"):
                answer = b"PASS wrong\r\n"
            elif line.startswith(b"+OK"):
                answer = f"USER {USER}\r\n".encode()
            elif line.startswith(b"220"):
                answer = b"EHLO x\r\n"
            elif line.startswith(b"250 "):
                answer = self._plain()
            elif line.startswith((b"-ERR", b"4", b"5")):
                self.left -= 1
                self.answers[line.decode("ascii", "replace")[:40]] += 1
                if line.startswith(b"-ERR [AUTH]"):
                    answer = f"USER {USER}\r\n".encode()
                else:
                    answer = self._plain() if line.startswith(b"535") else None
        return answer

    def _plain(self) -> bytes:
        return b"AUTH PLAIN " + base64.b64encode(f"\0{USER}\0wrong".encode()) + b"\r\n"


def attack(guessers: list[Guesser], round_trip: float, until: float, going: Any,
           results: Any) -> None:
    """Guess while *going* is set; put into *results* what became of the guesses."""
    watch, order = selectors.DefaultSelector(), itertools.count()
    # What each does next, and when.
    due: list[tuple[float, int, Guesser, bytes | None]] = []

    def later(guesser: Guesser, data: bytes | None) -> None:
        heapq.heappush(due, (time.monotonic() + round_trip, next(order), guesser, data))

    for number, guesser in enumerate(guessers):
        heapq.heappush(due, (time.monotonic() + round_trip * number / len(guessers), next(order),
                             guesser, None))
    while (due or watch.get_map()) and time.monotonic() < until:
        going.wait()
        while due and due[0][0] <= time.monotonic():
            *_, guesser, data = heapq.heappop(due)
            if data is None:
                guesser.connect()
                watch.register(guesser.socket, selectors.EVENT_READ, guesser)
            else:
                guesser.send(data)
        for key, _ in watch.select(min(0.005, round_trip)):
            guesser = key.data
            answer = guesser.hear()
            if answer is None or guesser.left <= 0:
                watch.unregister(guesser.socket)
                guesser.close()
                if guesser.left > 0:
                    later(guesser, None)
            elif answer:
                later(guesser, answer)
    answers: collections.Counter[str] = collections.Counter()
    for guesser in guessers:
        answers.update(guesser.answers)
    results.put(answers)


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


def measure(service: Service, guessers: list[Guesser], round_trip: float,
            seconds: float) -> tuple[list[float], list[float], collections.Counter[str], float]:
    """Logins with the attack and without, what became of the guesses, and how long that took."""
    fork = multiprocessing.get_context("fork")
    going, results = fork.Event(), fork.Queue()
    times: dict[bool, list[float]] = {True: [], False: []}
    began = time.monotonic()
    attackers = fork.Process(
        target=attack, args=(guessers, round_trip, began + seconds, going, results))
    attackers.start()
    try:
        for attacked in itertools.cycle((False, True)):
            phase = time.monotonic()
            (going.set if attacked else going.clear)()
            while time.monotonic() < phase + PHASE:
                elapsed = log_in(service.pop3)
                if attackers.is_alive() and time.monotonic() > phase + SETTLING:
                    times[attacked].append(elapsed)
                time.sleep(0.01)
            if not attackers.is_alive():
                break
        answers = results.get(timeout=5)
    finally:
        attackers.kill()
        attackers.join()
    return times[True], times[False], answers, time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--addresses", type=int, default=200)
    parser.add_argument("--guesses", type=int, default=10_000)
    parser.add_argument("--round-trip", type=float, default=0.05, help="in seconds")
    parser.add_argument("--seconds", type=float, default=300, help="the longest it may take")
    parser.add_argument("--set", action="append", default=[], help="a setting of the service")
    chosen = parser.parse_args()
    earnest = PasswordSettings()
    options = ["--submission", "127.0.0.1:0", "--set", "smtp.allow_cleartext_auth=yes",
               "--set", f"passwords.memory_kib={earnest.memory_kib}",
               "--set", f"passwords.passes={earnest.passes}",
               "--set", f"passwords.scram_iterations={earnest.scram_iterations}"]
    for setting in chosen.set:
        options += ["--set", setting]
    with tempfile.TemporaryDirectory() as directory, \
            Service(Path(directory) / "data", (f"{USER}:{PASSWORD}",), tuple(options)) as service:
        for _ in range(200):
            log_in(service.pop3)
        before = service.resident()
        each = chosen.guesses // chosen.addresses
        guessers = [
            Guesser(f"127.{number // 250 + 1}.{number % 250}.1",
                    service.pop3 if number % 2 else service.listeners["submission"], each)
            for number in range(chosen.addresses)]
        attacked, idle, answers, seconds = measure(
            service, guessers, chosen.round_trip, chosen.seconds)
        print("idle:   ", described(idle))
        print("attack: ", described(attacked))
        for answer, count in answers.most_common():
            print(f"{count:8}  {answer}")
        print(f"{sum(answers.values())} answers in {seconds:.0f} s; memory grew by "
              f"{(service.resident() - before) / 2 ** 20:.1f} MiB; ratio of medians "
              f"{statistics.median(attacked) / statistics.median(idle):.2f}")


if __name__ == "__main__":
    main()
