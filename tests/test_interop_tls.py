"""What those say who judge TLS from outside: nmap's ssl-enum-ciphers and testssl.sh."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.authority import Authority, pem, rsa_key
from tests.service import Service

HERE = "localhost"
#: The listeners, and the protocol of testssl's that TLS is begun in.
LISTENERS = {"submissions": "", "submission": "smtp", "pop3s": "", "pop3": "pop3"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a root to trust; beside it certificates of both kinds for this machine."""
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority()
    authority.issue(HERE).write(folder / "ecdsa")
    authority.issue(HERE, key=rsa_key(2048)).write(folder / "rsa")
    (folder / "root.pem").write_bytes(pem(authority.root))
    return folder / "root.pem"


@pytest.fixture(scope="module")
def service(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    certificates = [str(root.parent / kind) for kind in ("ecdsa", "rsa")]
    options = ("--submission", "0", "--submissions", "0", "--pop3s", "0",
               "--set", f"tls.certificates={json.dumps(certificates)}",
               "--set", "smtp.starttls=true", "--set", "pop3.stls=true")
    with Service(tmp_path_factory.mktemp("judged") / "data", ("alice@example.org:x",),
                 options) as running:
        yield running


@pytest.mark.slow
def test_nmap_gives_every_cipher_an_a(service: Service, program: Callable[[str], str]) -> None:
    ports = [service.listeners[kind][1] for kind in LISTENERS]
    done = subprocess.run(
        [program("nmap"), "-n", "-Pn", "-sT", "-sV", "--version-light",
         "-p", ",".join(map(str, ports)), "--script", "+ssl-enum-ciphers", "127.0.0.1"],
        capture_output=True, text=True, timeout=180, check=True)
    assert re.findall(r"least strength: (\w)", done.stdout) == ["A"] * len(ports), done.stdout
    assert set(re.findall(r" - ([A-F])$", done.stdout, re.MULTILINE)) == {"A"}
    assert set(re.findall(r"\|   (TLSv\S+|SSLv\S+):", done.stdout)) == {"TLSv1.2", "TLSv1.3"}
    assert "warnings" not in done.stdout


@pytest.mark.slow
def test_testssl_finds_nothing(service: Service, root: Path, tmp_path: Path,
                               program: Callable[[str], str]) -> None:
    """Protocols, ciphers, preferences, certificates and vulnerabilities."""
    testssl = program("testssl")

    def begin(kind: str) -> subprocess.Popen[str]:
        starttls = ["--starttls", LISTENERS[kind]] if LISTENERS[kind] else []
        return subprocess.Popen(
            [testssl, "--quiet", "--color", "0", "--nodns", "none", "--warnings", "batch",
             "--add-ca", str(root), "--jsonfile", str(tmp_path / kind), "-p", "-s", "-P", "-S",
             "-U", *starttls, f"{HERE}:{service.listeners[kind][1]}"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    for kind, running in [(kind, begin(kind)) for kind in ("submissions", "pop3")]:
        with running:
            said, _ = running.communicate(timeout=300)
        findings = {each["id"]: each for each in json.loads((tmp_path / kind).read_text())}
        assert findings["TLS1_3"]["severity"] == "OK", said
        assert findings["cipher_order"]["severity"] == "OK", said
        wrong = {name: each["finding"] for name, each in findings.items()
                 if each["severity"] in ("LOW", "MEDIUM", "HIGH", "CRITICAL", "FATAL")}
        # The tests' authority publishes no lists of what it revoked.
        assert {name for name in wrong if not name.startswith("cert_revocation")} == set(), wrong
