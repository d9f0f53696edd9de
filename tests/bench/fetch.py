"""Peers that cannot be installed beside each other, unpacked into a directory.

Debian's mail transport agents conflict as packages.  Exim and OpenSMTPD are downloaded with
``apt-get download`` and unpacked, not installed; aiosmtpd is installed by pip into a directory of
its own.  Postfix and Dovecot are taken as the system has them: ``apt-get install postfix
dovecot-pop3d dovecot-lmtpd``.

``make peers`` runs this module.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

#: Where they are, unless BENCH_PEERS says otherwise.
UNPACKED = Path("~/.cache/mailsvc-bench")

_PACKAGES = ("exim4-base", "exim4-daemon-light", "opensmtpd")


def fetch(unpacked: Path) -> list[str]:
    """Fill the directory *unpacked*: what could not be had, a line each."""
    archives = unpacked / "archives"
    archives.mkdir(parents=True, exist_ok=True)
    problems = []
    for command in (["apt-get", "download", *_PACKAGES],
                    [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--target",
                     str(unpacked / "python"), "aiosmtpd"]):
        done = subprocess.run(command, cwd=archives, check=False)
        if done.returncode:
            problems.append(f"{' '.join(command[:3])} failed with status {done.returncode}")
    for archive in sorted(archives.glob("*.deb")):
        done = subprocess.run(["dpkg", "-x", str(archive), str(unpacked)], check=False)
        if done.returncode:
            problems.append(f"dpkg could not unpack {archive.name}")
    return problems


if __name__ == "__main__":
    told = fetch(Path(os.environ.get("BENCH_PEERS", UNPACKED)).expanduser().absolute())
    sys.exit("\n".join(told) or 0)
