"""A program of these tests that needs a host of its own: a network, and mounts that end with it.

So it has the addresses and ports that mail has, and hosts elsewhere are only those that it plays.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import SEARCHED


def found(name: str) -> str:
    """A program; ends this one when it is not installed."""
    path = shutil.which(name, path=SEARCHED)
    if path is None:
        sys.exit(f"{name} is not installed")
    return path


@contextmanager
def apart(module: str, addresses: Iterable[str], resolver: str) -> Iterator[Path]:
    """Be on such a host in the block, as root; a directory for files, which ends with it.

    The program *module*, which calls this first, begins once more there.

    :param addresses: those that the host has, beside 127.0.0.1.
    :param resolver: what stands in its resolv.conf.
    """
    if sys.argv[1:] != ["inside"]:
        os.execvp("unshare", ["unshare", "--net", "--mount", sys.executable, "-m", module,
                              "inside"])
    with tempfile.TemporaryDirectory(prefix="mailsvc-test-") as place:
        folder = Path(place)
        folder.chmod(0o755)
        (folder / "resolv.conf").write_text(resolver)
        for words in (["ip", "link", "set", "lo", "up"],
                      *(["ip", "address", "add", f"{each}/32", "dev", "lo"] for each in addresses),
                      ["mount", "--bind", str(folder / "resolv.conf"), "/etc/resolv.conf"]):
            subprocess.run(words, check=True)
        yield folder
