"""``mailsvc doctor --deep``: each hole is found where there is one, and none in our own service."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import pytest_twisted
from click.testing import CliRunner
from twisted.internet import reactor

from mailsvc.cli import main
from mailsvc.cli.doctor import EXAMINED
from mailsvc.doctor import examination
from mailsvc.doctor.examination import Server, checks, judged
from mailsvc.doctor.facts import Fact, Verdict, examine
from mailsvc.doctor.probes import ENDS, PROBES, Probe
from tests.authority import Authority, pem
from tests.naive import NaiveServer
from tests.service import Service

VALUES = {"domain": "example.org", "to": "alice@example.org", "user": "alice@example.org",
          "password": "secret"}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    issued = Authority().issue("mx.example.org")
    path = tmp_path_factory.mktemp("naive") / "naive.pem"
    path.write_bytes(pem(issued.certificate, issued.key))
    return path


async def facts_of(server: Server, values: dict[str, str],
                   seconds: float = 5.0) -> dict[str, Fact]:
    """What is found, by what it is about."""
    found = await examine(checks(server, values, seconds, reactor), 20, reactor,
                          lambda _: None, at_once=4)
    return {each.what: each for each in found}


@pytest.mark.parametrize("kind", EXAMINED)
@pytest_twisted.ensureDeferred
async def test_every_hole_is_found(kind: str, certificate: Path,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "_is_here", lambda _: False)
    with NaiveServer(kind, certificate) as naive:
        facts = await facts_of(Server(kind, "127.0.0.1", naive.port), VALUES)
    assert set(facts) == {f"{kind}: {probe.what}" for probe in PROBES if kind in probe.kinds}
    missed = [str(fact) for fact in facts.values() if fact.verdict < Verdict.WARN]
    assert missed == []
    assert all("the answers were" in fact.detail and fact.remedy for fact in facts.values())


def test_every_probe_is_for_some_listener() -> None:
    assert all(probe.kinds for probe in PROBES)
    names = [(kind, probe.what) for probe in PROBES for kind in probe.kinds]
    assert len(set(names)) == len(names)
    assert len(ENDS) == sum(probe.what.startswith("smuggling ") for probe in PROBES)
    # Nothing secret in the clear.
    for probe in PROBES:
        if probe.needs("password"):
            assert probe.kinds == ("pop3s",) or probe.steps[:1] == (b"STLS\r\n",)


@pytest_twisted.ensureDeferred
async def test_what_is_not_known_is_not_looked_at(certificate: Path) -> None:
    with NaiveServer("smtp", certificate) as naive:
        facts = await facts_of(Server("smtp", "127.0.0.1", naive.port), {})
    assert facts["smtp: smuggling LF.LF"].verdict is Verdict.NOTE
    assert facts["smtp: smuggling LF.LF"].remedy == "it needs --to"
    assert facts["smtp: relay from outside"].verdict is Verdict.FAIL


@pytest_twisted.ensureDeferred
async def test_nobody_there_and_nobody_who_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        facts = await facts_of(Server("pop3", "127.0.0.1", port), VALUES, 0.4)
        assert facts["pop3: nonsense"].verdict is Verdict.WARN
        assert "(the answers were silent)" in facts["pop3: nonsense"].detail
        assert facts["pop3: STLS injection"].verdict is Verdict.NOTE
        facts = await facts_of(Server("pop3s", "127.0.0.1", port), VALUES, 0.4)
        assert "handshake" in facts["pop3s: nonsense"].detail
    facts = await facts_of(Server("pop3", "127.0.0.1", port), VALUES)
    assert {each.verdict for each in facts.values()} == {Verdict.FAIL}


PROBE = Probe("x", ("smtp",), (b"QUIT\r\n",), "220 221 end", "wrong", judged="220",
              offered=b"SIZE", never=rb"(?m)^250[ -]AUTH")


@pytest.mark.parametrize(("words", "text", "verdict"), [
    ("220 221 end", b"250 size", Verdict.OK),
    ("220 221 end", b"250 x", Verdict.NOTE),
    ("554 end", b"SIZE", Verdict.NOTE),
    ("220 250 221 end", b"SIZE", Verdict.FAIL),
    ("220 221 end", b"250-SIZE\r\n250 AUTH PLAIN\r\n", Verdict.FAIL),
], ids=["right", "not offered", "not judged", "wrong", "never"])
def test_judging(words: str, text: bytes, verdict: Verdict) -> None:
    assert judged(PROBE, "x", words.split(), text).verdict is verdict


def test_our_own_service(tmp_path: Path) -> None:
    options = (*(word for kind in ("submission", "submissions", "pop3s")
                 for word in (f"--{kind}", "127.0.0.1:0")),
               "--set", "smtp.starttls=true", "--set", "pop3.stls=true")
    with Service(tmp_path / "data", ("alice@example.org:secret",), options) as service:
        done = subprocess.run(
            [sys.executable, "-c", "from mailsvc.cli import main; main()", "--dir",
             str(service.directory), "doctor", "--offline", "--deep", "--json", "--to",
             "alice@example.org", "--login", "alice@example.org", "--password-stdin"],
            input="secret\n", capture_output=True, text=True, timeout=100, check=False)
        assert done.stderr == "" and done.returncode in (0, 1), done.stderr
        facts = [each for each in json.loads(done.stdout)["facts"]
                 if re.match(r"\w+: ", each["what"])]
        assert {each["what"].partition(":")[0] for each in facts} == set(EXAMINED)
        assert [each for each in facts if each["verdict"] != "ok"] == []
        # What it had no reason to refuse came as one message each.
        assert len(list((service.maildir("alice@example.org") / "new").iterdir())) == 2


@pytest.mark.parametrize(("arguments", "text"), [
    (("--server", "smtp=127.0.0.1:25"), "are for --deep"),
    (("--deep", "--server", "imap=127.0.0.1"), "expected KIND=HOST:PORT"),
    (("--deep", "--server", "smtp=127.0.0.1:x"), "is not a port"),
    (("--deep", "--password-stdin"), "give both"),
], ids=["not deep", "kind", "port", "password"])
def test_what_is_misused(arguments: tuple[str, ...], text: str) -> None:
    done = CliRunner().invoke(main, ["doctor", *arguments])
    assert done.exit_code == 2 and text in done.stderr


def test_another_server(certificate: Path) -> None:
    with NaiveServer("pop3", certificate) as naive:
        done = subprocess.run(
            [sys.executable, "-c", "from mailsvc.cli import main; main()", "doctor", "--deep",
             "--server", f"pop3=127.0.0.1:{naive.port}"],
            capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (2, "")
    lines = done.stdout.splitlines()
    assert all(": " in line[6:36] for line in lines[:-1])
    assert lines[-1].startswith("verdict: FAIL")
