"""Fixtures that tests of several subjects share."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import hypothesis
import pytest
import pytest_twisted
from twisted.logger import globalLogPublisher

from mailsvc.store.maildir import MaildirStore
from tests.stores import maildir_store
from tests.system_calls import SystemCalls

# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("mailsvc", deadline=None)
hypothesis.settings.load_profile("mailsvc")

# A shell lets what it starts in the background ignore SIGINT, and that is inherited; services under
# test must hear it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

#: Daemons lie where an ordinary user's PATH does not look.
SEARCHED = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin",
                            "/sbin"])


@pytest.fixture(scope="session")
def program() -> Callable[[str], str]:
    """``program("swaks")``: the path of a program that the test drives.

    Where it is not installed the test is left out and says so; with CI=true it fails instead, so
    that nothing goes untested there unseen.  .ci/run installs them all.
    """
    def find(name: str) -> str:
        path = shutil.which(name, path=SEARCHED)
        if path is None:
            absent(f"{name} is not installed; .ci/run names the package")
        return path

    return find


@pytest.fixture(autouse=True, scope="module")
def _collected() -> Iterator[None]:
    """Let each module leave nothing behind: Python would let gigabytes gather before it looks."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    # Some sockets are closed by and by.
    assert len(os.listdir("/proc/self/fd")) < before + 300, "the module leaves descriptors open"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> SystemCalls:
    """The store's system calls, without those of the journal."""
    return SystemCalls(monkeypatch)


def absent(what: str) -> NoReturn:
    """Fail under CI, else leave the test out, because *what*."""
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)


@pytest_twisted.async_yield_fixture
async def store(tmp_path: Path) -> AsyncIterator[MaildirStore]:
    """A store of maildirs under tmp_path."""
    it = maildir_store(tmp_path)
    it.start()
    yield it
    await it.stop()


@pytest.fixture
def logged() -> Iterator[list[dict[str, Any]]]:
    """What is logged meanwhile."""
    events: list[dict[str, Any]] = []
    globalLogPublisher.addObserver(events.append)
    yield events
    globalLogPublisher.removeObserver(events.append)
