"""rspamd, by which many receive, verifies our signatures."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Callable, Iterator

import pytest

from mailsvc.dkim import Keys, Signer
from tests.daemons import free_port, wait_for
from tests.nameserver import NameServer

MESSAGE = (b"Date: Thu, 26 Nov 2026 10:00:00 +0000\r\nFrom: Alice <alice@example.org>\r\n"
           b"To: bob@example.net\r\nSubject: a  long\r\n\tsubject\r\n\r\n"
           b"body  \r\n\r\n.\r\nlast\r\n")

#: It compiles its patterns when it starts, which takes its time.
PATIENCE = 60.0

_CONFIGURATION = """\
options {{
  pidfile = "{place}/pid";
  tempdir = "{place}";
  hs_cache_dir = "{place}";
  filters = "dkim";
  dns {{ nameserver = ["{nameserver}"]; timeout = 1s; }}
}}
logging {{ type = "file"; filename = "{place}/log"; level = "info"; }}
worker "normal" {{ bind_socket = "127.0.0.1:{port}"; count = 1; }}
dkim {{ }}
group "policies" {{
  symbols {{
    "R_DKIM_ALLOW" {{ weight = -1.0; }}
    "R_DKIM_REJECT" {{ weight = 1.0; }}
  }}
}}
"""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    keys = Keys(tmp_path_factory.mktemp("keys") / "dkim")
    made = [keys.add("example.org", "rsa", "r1"), keys.add("example.org", "ed25519", "e1")]
    keys.use("example.org", [key.selector for key in made])
    return keys


@pytest.fixture(scope="module")
def rspamd(program: Callable[[str], str], keys: Keys,
           tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where it is asked."""
    place, port = tmp_path_factory.mktemp("rspamd"), free_port()
    with NameServer({key.name: [f"TXT {key.record}"] for key in keys.all()}) as dns:
        configuration = place / "rspamd.conf"
        configuration.write_text(_CONFIGURATION.format(
            place=place, nameserver=dns.address, port=port))
        process = subprocess.Popen(
            [program("rspamd"), "--no-fork", "--insecure", "--config", str(configuration)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_for(("127.0.0.1", port), PATIENCE)
            yield f"http://127.0.0.1:{port}/checkv2"
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            finally:
                process.kill()


def verdict(rspamd: str, message: bytes) -> dict[str, list[str]]:
    """What it says of a message: symbols and the selectors they are about."""
    with urllib.request.urlopen(
            urllib.request.Request(rspamd, data=message), timeout=PATIENCE) as answer:
        symbols = json.load(answer)["symbols"]
    return {name: sorted(symbol["options"]) for name, symbol in symbols.items()
            if name.startswith("R_DKIM")}


@pytest.mark.slow
def test_both_signatures(rspamd: str, keys: Keys) -> None:
    signed = Signer(keys).sign(MESSAGE, "example.org") + MESSAGE
    both = ["example.org:s=e1", "example.org:s=r1"]
    assert verdict(rspamd, signed) == {"R_DKIM_ALLOW": both}
    assert verdict(rspamd, signed.replace(b"last", b"lost")) == {"R_DKIM_REJECT": both}
