"""Draws where a process of the service spends its time: ``python -m tests.flame DIRECTORY``.

It takes messages of 4 KiB over 20 kept connections, and is looked at by py-spy (``pip install
py-spy``; needs root) four hundred times a second, what the kernel does for it included.  Of each
thread the time that it waits for work is left out.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

import mailsvc
from tests.bench.load import run
from tests.bench.messages import Template
from tests.bench.smtp_load import Sending
from tests.service import Service

CLIENTS, SECONDS, RATE = 20, 12, 400
_WIDTH, _STEP, _LEAST = 1200, 16, 0.002
#: What waits: the stacks that end so say nothing of work.
_WAITS = ("epoll_wait", "SimpleQueue_get")
#: Frames below these say only that there is a process, or a thread.
_ROOTS = ("ReactorBase.mainLoop", "GroupCommitter._run")
#: Ours, Python's and Twisted's, and what is not in Python.
_OURS, _OTHERS, _NATIVE = "#7fb3d5", "#c3b1e1", "#d9dee3"


@dataclass
class Frame:
    """A function, seen so often, and what it called."""

    name: str
    samples: int = 0
    called: dict[str, Frame] = field(default_factory=dict)

    def add(self, stack: list[str], samples: int) -> None:
        """Count a stack that goes on with *stack*."""
        self.samples += samples
        if stack:
            self.called.setdefault(stack[0], Frame(stack[0])).add(stack[1:], samples)

    @property
    def depth(self) -> int:
        """How many frames there are at most, this one included."""
        return 1 + max((each.depth for each in self.called.values()), default=0)


def sampled(text: str) -> Frame:
    """The tree of the stacks in *text*, a line each: frames by ";", a space, a number."""
    root = Frame("all")
    for line in text.splitlines():
        stack, _, samples = line.rpartition(" ")
        frames = stack.split(";")
        start = next((n for n, frame in enumerate(frames) if frame.startswith(_ROOTS)), None)
        if start is None or any(word in frame for word in _WAITS for frame in frames[-4:]):
            continue
        root.add([_shortened(frame) for frame in frames[start:]], int(samples))
    return root


def _shortened(frame: str) -> str:
    name, _, place = frame.partition(" (")
    return f"{name} ({place.rstrip(')').split(':')[0].removeprefix('mailsvc/')})"


@functools.cache
def _modules() -> frozenset[str]:
    """How our own modules are told in a frame."""
    top = Path(mailsvc.__file__).parent
    return frozenset(f"{path.relative_to(top)})" for path in top.rglob("*.py"))


def drawn(root: Frame) -> str:
    """The picture, in SVG: a box is as wide as its function was long on the stack."""
    height = _STEP * root.depth + 8
    boxes = "\n".join(_boxes(root, 0.0, 0, root.samples))
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
            f'width="{_WIDTH}" height="{height}" role="img">\n'
            "<style>text { font: 10px system-ui, sans-serif; fill: #222 }</style>\n"
            f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>\n{boxes}\n</svg>\n')


def _boxes(frame: Frame, left: float, level: int, total: int) -> Iterator[str]:
    width = _WIDTH * frame.samples / total
    if frame.samples < _LEAST * total:
        return
    share = f"{100 * frame.samples / total:.1f} %"
    place = frame.name.rpartition(" (")[2]
    colour = (_NATIVE if not place.endswith(".py)") else _OURS if place in _modules() else _OTHERS)
    name = escape(frame.name)
    room = int(width / 5.4)
    yield (f'<g><title>{name}, {share}</title><rect x="{left:.1f}" y="{level * _STEP + 4}" '
           f'width="{max(0.5, width - 0.5):.1f}" height="{_STEP - 1}" fill="{colour}"/>'
           + (f'<text x="{left + 3:.1f}" y="{level * _STEP + 15}">'
              f'{escape(frame.name[:room])}</text>' if room > 3 else "") + "</g>")
    for each in sorted(frame.called.values(), key=lambda each: -each.samples):
        yield from _boxes(each, left, level + 1, total)
        left += _WIDTH * each.samples / total


def main() -> None:
    (directory,) = map(Path, sys.argv[1:])
    accounts = tuple(f"u{n}@a.example:secret" for n in range(CLIENTS))
    plan = Sending("flame", tuple((f"u{n}@a.example".encode(),) for n in range(CLIENTS)),
                   Template(4096), seconds=SECONDS + 2)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place, Service(
            Path(place) / "data", accounts, ("--workers", "1")) as service:
        load = threading.Thread(target=run, args=(plan.play, CLIENTS, service.smtp))
        load.start()
        stacks = Path(place) / "stacks"
        subprocess.run(["py-spy", "record", "--native", "--function", "--format", "raw",
                        "--rate", str(RATE), "--duration", str(SECONDS), "--output", str(stacks),
                        "--pid", str(service.pid)], check=True, stdout=subprocess.DEVNULL)
        load.join()
        root = sampled(stacks.read_text())
    (directory / "flame.svg").write_text(drawn(root))
    print(f"{root.samples} samples")


if __name__ == "__main__":
    main()
