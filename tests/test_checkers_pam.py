"""``--auth pam:`` with services of its own in /etc/pam.d; so by root, or through sudo."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import pytest_twisted
from twisted.cred.strcred import makeChecker
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import capturedLogs, formatEvent

from mailsvc.checkers.arguments import BadArguments
from tests.checkers import ask
from tests.conftest import absent
from tests.daemons import PATIENCE, _as_root

ALICE = "alice@example.org"


@pytest.fixture
def service(tmp_path: Path, program: Callable[[str], str]) -> Iterator[Callable[[str], str]]:
    """``service(lines)``: the name of a new PAM service of these lines."""
    made: list[Path] = []

    def new(lines: str) -> str:
        path = Path(f"/etc/pam.d/mailsvc-test-{os.getpid()}-{len(made)}")
        made.append(path)
        written = subprocess.run([*_as_root(), "tee", str(path)], input=lines.encode(),
                                 capture_output=True, timeout=PATIENCE, check=False)
        if written.returncode != 0:
            made.remove(path)
            absent("only root can write a service into /etc/pam.d")
        return path.name

    yield new
    for path in made:
        subprocess.run([*_as_root(), "rm", str(path)], check=True, timeout=PATIENCE)


@pytest.fixture
def passwords(tmp_path: Path, program: Callable[[str], str]) -> str:
    """Lines of a service that knows alice and "ålice", and that the account of carol ended."""
    if not list(Path("/lib").glob("*/security/pam_pwdfile.so")):
        absent("pam_pwdfile is not installed; .ci/run names the package")
    file = tmp_path / "passwords"
    file.write_text("".join(
        f"{name}:{crypted(program, password)}\n" for name, password in (
            ("alice", "s3cret"), ("\N{LATIN SMALL LETTER A WITH RING ABOVE}lice", "p\xe4ss"),
            ("carol", "over"), ("blank", ""))))
    return (f"auth required pam_pwdfile.so pwdfile={file}\n"
            "account required pam_succeed_if.so quiet user != carol\n")


def crypted(program: Callable[[str], str], password: str) -> str:
    return subprocess.run([program("openssl"), "passwd", "-6", "-stdin"], check=True,
                          input=(password + "\n").encode(), capture_output=True,
                          timeout=PATIENCE).stdout.decode().strip()


@pytest_twisted.ensureDeferred
async def test_passwords(service: Callable[[str], str], passwords: str) -> None:
    checker = makeChecker(f"pam:{service(passwords)}")
    assert await ask(checker, "alice", "s3cret") == "alice"
    assert await ask(checker, "alice", "wrong") == "no"
    assert await ask(checker, "nobody", "s3cret") == "no"
    assert await ask(checker, "carol", "over") == "no", "what the account lines refuse"
    name = "\N{LATIN SMALL LETTER A WITH RING ABOVE}lice"
    assert await ask(checker, name, "p\xe4ss") == name


@pytest_twisted.ensureDeferred
async def test_what_libpam_would_cut_off(service: Callable[[str], str], passwords: str) -> None:
    checker = makeChecker(f"pam:{service(passwords)}")
    assert await ask(checker, "alice", "s3cret\0more") == "no"
    assert await ask(checker, "alice\0more", "s3cret") == "no"
    assert await ask(makeChecker(f"pam:{service(_PERMIT)}"), "alice", "") == "no"
    assert await ask(makeChecker(f"pam:{service(_PERMIT)}"), "", "s3cret") == "no"


@pytest_twisted.ensureDeferred
async def test_domain(service: Callable[[str], str], passwords: str) -> None:
    checker = makeChecker(f"pam:service={service(passwords)}:domain=Example.org")
    assert await ask(checker, ALICE, "s3cret") == ALICE
    assert await ask(checker, "alice@EXAMPLE.ORG", "s3cret") == "alice@EXAMPLE.ORG"
    assert await ask(checker, "alice", "s3cret") == "alice"
    assert await ask(checker, "alice@example.net", "s3cret") == "no"
    assert await ask(checker, "@example.org", "s3cret") == "no"


@pytest_twisted.ensureDeferred
async def test_the_client_is_told(service: Callable[[str], str], tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    script = tmp_path / "script"
    script.write_text(f'#!/bin/sh\necho "$PAM_USER $PAM_RHOST $PAM_SERVICE" > {seen}\n')
    script.chmod(0o755)
    name = service(f"auth required pam_exec.so {script}\naccount required pam_permit.so\n")
    assert await ask(makeChecker(f"pam:{name}"), "alice", "x") == "alice"
    assert seen.read_text() == f"alice 192.0.2.1 {name}\n"


@pytest_twisted.ensureDeferred
async def test_outage(service: Callable[[str], str]) -> None:
    """A module that is missing is no answer."""
    checker = makeChecker(f"pam:{service('auth required pam_that_is_missing.so')}")
    with capturedLogs() as events:
        assert await ask(checker, "alice", "s3cret") == "later"
    assert any("PAM: the service mailsvc-test-" in (formatEvent(event) or "") for event in events)


@pytest_twisted.ensureDeferred
async def test_modules_that_block(service: Callable[[str], str], tmp_path: Path) -> None:
    """Neither the reactor waits for them, nor a client for long; and so many run, so many wait."""
    runs = tmp_path / "runs"
    script = tmp_path / "script"
    script.write_text(f"#!/bin/sh\necho >> {runs}\nsleep 1\n")
    script.chmod(0o755)
    name = service(f"auth required pam_exec.so {script}\naccount required pam_permit.so\n")
    checker: Any = makeChecker(f"pam:{name}:threads=2:waiting=2:timeout=0.3")
    begun = monotonic()
    answers = [Deferred.fromCoroutine(ask(checker, "alice", "x")) for _ in range(5)]
    assert [answer.called for answer in answers] == [False] * 4 + [True]
    assert monotonic() - begun < 0.25
    assert set(await gatherResults(answers)) == {"later"}
    assert monotonic() - begun < 0.9
    # The threads are still at it, so those that waited were not begun; and they count.
    checker._threads.stop()
    assert runs.read_text() == "\n\n"


_PERMIT = "auth required pam_permit.so\naccount required pam_permit.so\n"


@pytest.mark.parametrize(("arguments", "expected"), [
    ("", "service is missing: expected the name of a file in /etc/pam.d"),
    ("../passwd", "service=../passwd: expected the name of a file in /etc/pam.d"),
    ("none-such", "service=/etc/pam.d/none-such: cannot be read"),
    ("login:threads=0", "threads=0: expected 1 or more"),
])
def test_bad_arguments(arguments: str, expected: str) -> None:
    with pytest.raises(BadArguments) as refused:
        makeChecker(f"pam:{arguments}")
    assert expected in str(refused.value)
