"""Maildirs filled before a measurement, and read back after one.

Filling is quick and not durable; names carry ``,S=`` and ``,W=`` as the servers' own deliveries
write them.  Reading back (:class:`Audit`) accounts for every file: what was acknowledged must lie
in its maildir exactly once and unaltered, and nothing else may.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.messages import AlteredMessage, Template


@dataclass(frozen=True)
class Owner:
    """Who a server's maildirs belong to; a server that runs as we do has None instead."""

    uid: int
    gid: int


def make(maildir: Path, owner: Owner | None = None) -> None:
    """Make an empty maildir, its parents included, belonging to *owner*."""
    for part in ("tmp", "new", "cur"):
        (maildir / part).mkdir(parents=True, exist_ok=True)
    if owner is not None:
        for path in (maildir, maildir / "tmp", maildir / "new", maildir / "cur"):
            os.chown(path, owner.uid, owner.gid)


def fill(maildir: Path, idents: Iterable[bytes], template: Template, owner: Owner | None = None,
         part: str = "new") -> None:
    """Put a message per ident into *part* (``new`` or ``cur``) of an existing maildir."""
    flags = ":2," if part == "cur" else ""
    target = maildir / part
    for number, ident in enumerate(idents):
        name = (f"{1_700_000_000 + number}.M{number:06}P1.bench,S={template.size},"
                f"W={template.size}{flags}")
        path = target / name
        with path.open("wb", buffering=0) as file:
            file.write(template.plain(ident))
            if owner is not None:
                os.fchown(file.fileno(), owner.uid, owner.gid)


def clone(source: Path, target: Path, owner: Owner | None, most: int) -> None:
    """Make *target* a maildir of hard links to the *most* oldest messages of *source*."""
    make(target, owner)
    names = sorted((name, part) for part in ("new", "cur") for name in os.listdir(source / part))
    for name, part in names[:most]:
        os.link(source / part / name, target / part / name)


def count(maildirs: Iterable[Path]) -> int:
    """How many messages lie in all of them."""
    return sum(len(os.listdir(maildir / part)) for maildir in maildirs for part in ("new", "cur"))


@dataclass
class Verdict:
    """What reading back found; :attr:`complaint` is empty when all is as it should be."""

    expected: int = 0
    found: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def object_to(self, problem: str, example: str) -> None:
        """Count a *problem*, and keep the first *example* of its kind."""
        self.problems[problem] += 1
        self.examples.setdefault(problem, example)

    @property
    def complaint(self) -> str:
        """One line: what is wrong, how often, and an example; or nothing."""
        return "; ".join(f"{times} {problem} (such as {self.examples[problem]})"
                         for problem, times in self.problems.items())


class Audit:
    """The maildirs of one server, read back after each measurement: only the files new since."""

    def __init__(self) -> None:
        self._seen: dict[Path, set[str]] = {}

    def arrived(self, maildirs: Iterable[Path]) -> int:
        """How many messages came into *maildirs* since they were last read back."""
        maildirs = list(maildirs)
        return count(maildirs) - sum(len(self._seen.get(maildir, ())) for maildir in maildirs)

    def read_back(self, expected: Mapping[Path, Collection[bytes]], template: Template) -> Verdict:
        """Compare what arrived since the last call with the idents *expected* in each maildir."""
        verdict = Verdict(expected=sum(len(idents) for idents in expected.values()))
        known: dict[int, bytes] = {}  # inode -> ident: a hard-linked message is read once
        for maildir, idents in expected.items():
            wanted = set(idents)
            seen = self._seen.setdefault(maildir, set())
            arrived: set[bytes] = set()
            for part in ("new", "cur"):
                for entry in os.scandir(maildir / part):
                    # The flags behind the colon may change; the name before it may not.
                    name = entry.name.partition(":")[0]
                    if name in seen:
                        continue
                    seen.add(name)
                    verdict.found += 1
                    try:
                        ident = known.get(entry.inode())
                        if ident is None:
                            ident = known[entry.inode()] = template.identify(
                                Path(entry.path).read_bytes())
                    except AlteredMessage as altered:
                        verdict.object_to("altered", f"{entry.name}: {altered}")
                        continue
                    if ident in arrived:
                        verdict.object_to("delivered twice", f"{ident.decode()} in {maildir.name}")
                    elif ident not in wanted:
                        verdict.object_to("never acknowledged or not meant for this maildir",
                                          f"{ident.decode()} in {maildir.name}")
                    arrived.add(ident)
            for ident in wanted - arrived:
                verdict.object_to("acknowledged and not there",
                                  f"{ident.decode()} in {maildir.name}")
        return verdict
