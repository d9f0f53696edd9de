"""schemathesis against the API: what it makes up from the description, right and wrong, is answered
as the description says; and the description is one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.api import Api, serving
from tests.console import ALICE, BOB, PASSWORD
from tests.service import PATIENCE, submit

#: How many examples of each operation; beside those that cover each bound of each value.
EXAMPLES = 2
#: It takes half a minute on two processors.
MOST_SECONDS = 240

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_schemathesis_finds_no_failure(tmp_path: Path) -> None:
    with serving(tmp_path, "--set", "relay.smarthost=\"127.0.0.1:9\"", workers=1) as service:
        # Something of each kind, for it to come upon.
        local = Api(service, local=True)
        assert local.ask("PUT", "/aliases/sales@example.org", {"targets": [BOB]}).status == 201
        assert local.ask("PUT", "/bans/198.51.100.0%2F24", {}).status == 201
        for number in range(3):
            submit(service, b"Subject: %d\r\n\r\nHello.\r\n" % number, (ALICE, BOB))
        gone = local.get(f"/accounts/{ALICE}/messages")["items"][0]["id"]
        assert local.ask("DELETE", f"/accounts/{ALICE}/messages/{gone}").status == 204
        sent = local.ask("POST", f"/accounts/{ALICE}/submissions", {"to": ["x@elsewhere.example"]})
        assert sent.value["recipients"][0]["accepted"]
        host, port = service.listeners["console"]
        ran = subprocess.run(
            [sys.executable, "-m", "schemathesis.cli", "run",
             f"http://{host}:{port}/api/v1/openapi.json", "--auth", f"{ALICE}:{PASSWORD}",
             "--checks", "all", "--phases", "coverage,fuzzing,stateful", "--seed", "1",
             "--max-examples", str(EXAMPLES), "--generation-database", "none",
             "--request-timeout", str(PATIENCE), "--no-color"],
            cwd=tmp_path, capture_output=True, text=True, timeout=MOST_SECONDS, check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT), "SCHEMATHESIS_HOOKS": "tests.api_hooks"})
        log = service.log.read_text()
    assert ran.returncode == 0, ran.stdout[-20_000:] + ran.stderr[-2000:]
    generated = re.search(r"(\d+) generated, (\d+) passed", ran.stdout)
    assert generated, ran.stdout
    assert int(generated[2]) > 300
    assert "network banned network=192.0.2.7/32 " in log, "examples in paths are taken"
    assert "Traceback" not in log
    assert "Unhandled" not in log
