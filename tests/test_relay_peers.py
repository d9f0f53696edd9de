"""Other mail servers as the next host: what they deliver is what was submitted.

They are those of the benchmark.  Exim and OpenSMTPD cannot be installed beside Postfix; ``make
peers`` unpacks them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted

from mailsvc.client import Client
from tests.bench.exim import Exim
from tests.bench.fetch import UNPACKED
from tests.bench.opensmtpd import OpenSmtpd
from tests.bench.peers import DOMAIN, Peer, Server, Site
from tests.bench.postfix import Postfix
from tests.conftest import absent
from tests.relay import PATIENCE, mail, queued, relaying, submit, until

PLACE = Path(os.environ.get("BENCH_PEERS", UNPACKED)).expanduser()
HEADER = (b"Date: Thu, 26 Nov 2026 10:00:00 +0000\r\nFrom: <alice@a.example>\r\n"
          b"Message-ID: <%d@a.example>\r\n\r\n")
#: Dots, an empty body, a long line, no last line end, and enough to come in several chunks.
BODIES = (b".\r\n..two\r\n.a dot\r\n\r\nlast\r\n", b"", b"x" * 900 + b"\r\n", b"no end",
          b"0123456789 abcdef\r\n" * 30_000)


@pytest.fixture(params=[Postfix, Exim, OpenSmtpd], ids=lambda kind: kind.name)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    if why := request.param(unpacked=PLACE).missing():
        absent(f"{request.param.name}: {why}; see `make peers`")
    # Daemons of other users go through it, and start their programs from there.
    with tempfile.TemporaryDirectory(prefix="mailsvc-test-") as name:
        place = Path(name)
        place.chmod(0o755)
        if (PLACE / "usr").is_dir():
            shutil.copytree(PLACE / "usr", place / "unpacked" / "usr", symlinks=True)
        (place / "site").mkdir()
        peer: Peer = request.param(unpacked=place / "unpacked")
        running = peer.start(Site(place / "site", ("bob", "carol")))
        try:
            yield running
        finally:
            running.process.stop()


@pytest.mark.slow
def test_what_the_next_host_delivers(tmp_path: Path, server: Server) -> None:
    assert server.smtp is not None
    with relaying(tmp_path / "a", "relay.smarthost={}:{}".format(*server.smtp)) as here:
        for number, body in enumerate(BODIES):
            submit(here, [f"bob@{DOMAIN}", f"carol@{DOMAIN}"], HEADER % number + body)
        until(lambda: not queued(here), here)
        assert mail(here) == []
    _check(server)


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", [False, True])
@pytest_twisted.ensureDeferred
async def test_what_the_client_sends(server: Server, pipeline: bool) -> None:
    """By itself, in chunks where the server takes them."""
    assert server.smtp is not None
    client = await Client.dial(*server.smtp, hello="client.example")
    await client.hello()
    client.pipeline = pipeline
    for number, body in enumerate(BODIES):
        outcomes = await client.send(
            "alice@a.example", [f"bob@{DOMAIN}", f"carol@{DOMAIN}"], HEADER % number + body,
            chunk="CHUNKING" in client.extensions)
        assert all(each.accepted for each in outcomes), outcomes
    await client.quit()
    _check(server)


def _check(server: Server) -> None:
    """Both have got all bodies."""
    for name in "bob", "carol":
        new, deadline = server.maildir(name) / "new", time.monotonic() + PATIENCE
        while len(list(new.iterdir())) < len(BODIES):
            assert time.monotonic() < deadline, _log(server)
            time.sleep(0.05)
        got = {}
        for path in new.iterdir():
            header, _, body = path.read_bytes().replace(b"\r\n", b"\n").partition(b"\n\n")
            got[int(header.split(b"Message-ID: <")[1].split(b"@")[0])] = body
        for number, body in enumerate(BODIES):
            ended = body if body.endswith(b"\r\n") or not body else body + b"\r\n"
            assert got[number].rstrip(b"\n") == ended.replace(b"\r\n", b"\n").rstrip(b"\n"), number


def _log(server: Server) -> str:
    places = (*server.site.directory.glob("logs/*"), *server.site.directory.glob("*log"))
    return "".join(path.read_text(errors="replace") for path in places)
