"""Where mail is kept: the stores, each by its scheme.

A store's place is written ``scheme:argument``:

* ``maildir:DIR`` keeps it in DIR/<domain>/<local-part>/{tmp,new,cur};
* ``memory:`` keeps it in memory, for trying things out.

Whatever passes ``tests/test_store_contract.py`` and ``test_maildrop_contract.py`` can be added to
:data:`STORES`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from twisted.internet.interfaces import IReactorFromThreads

from mailsvc.store.maildir import MaildirSettings, MaildirStore
from mailsvc.store.memory import MemoryStore
from mailsvc.store.tree import problem_with

Store = MaildirStore | MemoryStore
Factory = Callable[[str, MaildirSettings, str, IReactorFromThreads], Store]


class StoreUnusable(Exception):
    """A store cannot be opened; the text says why, and what to do about it."""


def _maildir(
    argument: str, settings: MaildirSettings, hostname: str, reactor: IReactorFromThreads
) -> MaildirStore:
    if not argument:
        raise StoreUnusable("maildir: needs a directory, as in maildir:/var/lib/mailsvc/mail")
    root = Path(argument).absolute()
    problem = problem_with(root)
    if problem is not None:
        raise StoreUnusable(problem)
    return MaildirStore(root, settings, hostname, reactor)


def _memory(
    argument: str, settings: MaildirSettings, hostname: str, reactor: IReactorFromThreads
) -> MemoryStore:
    if argument:
        raise StoreUnusable(f"memory: takes nothing behind the colon, found {argument!r}")
    return MemoryStore()


#: scheme -> what makes the store.
STORES: dict[str, Factory] = {"maildir": _maildir, "memory": _memory}


def open_store(
    uri: str, settings: MaildirSettings, hostname: str, reactor: IReactorFromThreads
) -> Store:
    """The store that *uri* (``scheme:argument``) names; ``start()`` it before use.

    *hostname* becomes part of file names.

    :raises StoreUnusable: when there is no such scheme, or the place will not do.
    """
    scheme, colon, argument = uri.partition(":")
    if not colon or scheme not in STORES:
        known = ", ".join(f"{name}:" for name in STORES)
        raise StoreUnusable(f"{uri!r} names no store; begin it with one of {known}")
    return STORES[scheme](argument, settings, hostname, reactor)
