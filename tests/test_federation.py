"""Two mailsvc, Postfix, Exim and OpenSMTPD send to each other, with TLS verified where they can."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.bench.exim import Exim
from tests.bench.opensmtpd import OpenSmtpd
from tests.conftest import absent
from tests.federated import PEERS
from tests.federation import KINDS, SITES

ROOT = Path(__file__).parent.parent
PROGRAMS = ("unshare", "ip", "unbound", "postfix", "mta-sts-daemon", "dovecot", "msmtp", "mpop",
            "cc")

#: By sender and kind of domain: whether a message arrives, always over TLS, and the exchanger has
#: proven who it is; or else why not.
OURS = {
    "dane": "verified", "sts": "verified",
    "wrong-dane": "no certificate of the server matches its TLSA records; TLS is required by",
    "wrong-mx": "is not among the exchangers that the MTA-STS policy of",
    "wrong-name": "the certificate is not for mx."}
ENDS = {
    "first": OURS, "second": OURS,
    "postfix": {"dane": "verified", "sts": "verified",
                "wrong-dane": "Server certificate not verified",
                "wrong-mx": "Server certificate not verified",
                "wrong-name": "Server certificate not verified"},
    # It does not know of MTA-STS.
    "exim": {"dane": "verified", "sts": "unverified",
             "wrong-dane": "(certificate verification failed)", "wrong-mx": "unverified",
             "wrong-name": "unverified"},
    # Nor does this one, and nothing of DANE.
    "opensmtpd": dict.fromkeys(KINDS, "unverified")}


@pytest.mark.slow
def test_each_to_each(program: Callable[[str], str]) -> None:
    for name in PROGRAMS:
        program(name)
    if os.geteuid() != 0:
        absent("root, who may make networks")
    for kind in Exim, OpenSmtpd:
        if why := kind(unpacked=PEERS).missing():
            absent(f"{kind.name}: {why}; see `make peers`")
    done = subprocess.run([sys.executable, "-m", "tests.federation"], cwd=ROOT, text=True,
                          capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {(row["from"], row["to"], row["kind"]): row
            for row in map(json.loads, done.stdout.splitlines())}
    assert rows.keys() == {(sender, to, kind) for sender in SITES for to in SITES if to != sender
                           for kind in KINDS}
    wrong = [row for row in rows.values() if not as_expected(row)]
    assert not wrong, "\n".join([*map(str, wrong), done.stderr])


def as_expected(row: dict[str, Any]) -> bool:
    expected = ENDS[row["from"]][row["kind"]]
    if expected in ("verified", "unverified"):
        return (row["copies"], row["tls"], row["verified"], row["reason"]) == (
            1, True, expected == "verified", "")
    return row["copies"] == 0 and expected in row["reason"]
