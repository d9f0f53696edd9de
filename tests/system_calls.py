"""The system calls that mailsvc's store makes: recorded, and made to fail."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

NAMES = ("open", "read", "write", "fsync", "close", "link", "unlink", "rename", "mkdir", "stat",
         "lstat", "scandir", "preadv")


class Call(NamedTuple):
    """One call: of what, on which path (that of the descriptor, if it has one), in which thread."""

    name: str
    path: str
    thread: int


class SystemCalls:
    """Patches ``os``; only calls from modules of ``mailsvc.store`` are seen.

    :ivar calls: those made so far.
    :ivar fault: asked for each call, with its index; the errno it is to fail with, or None.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[Call] = []
        self.fault: Callable[[int, Call], int | None] = lambda index, call: None
        self._lock = threading.Lock()
        for name in NAMES:
            monkeypatch.setattr(os, name, self._wrapped(name, getattr(os, name)))

    def of(self, name: str) -> list[str]:
        """The paths that *name* was called on."""
        return [call.path for call in self.calls if call.name == name]

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **keywords: Any) -> Any:
            if not sys._getframe(1).f_globals["__name__"].startswith("mailsvc.store"):
                return real(*args, **keywords)
            target = args[-1] if name in ("link", "rename") else args[0]
            path = (os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int)
                    else os.fsdecode(target))
            call = Call(name, path, threading.get_ident())
            with self._lock:
                self.calls.append(call)
                error = self.fault(len(self.calls) - 1, call)
            if error is None:
                return real(*args, **keywords)
            if name == "close":
                real(*args)  # Linux closes the descriptor whatever close(2) answers
            raise OSError(error, os.strerror(error), None if isinstance(target, int) else target)

        return called
