"""Pebble, a real ACME authority for tests (Debian's ``pebble``), on loopback."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from urllib.request import urlopen

from tests.authority import Authority, pem
from tests.daemons import free_port, wait_for


class Pebble:
    """A running authority; a context manager.

    :param port: the one that it looks for answers on, by either challenge.
    :param nameserver: whom it asks where names lead to.
    :ivar url: of its directory.
    :ivar root: the file with the certificate that vouches for its own web server.
    """

    def __init__(self, program: Callable[[str], str], folder: Path, port: int,
                 nameserver: str) -> None:
        own, self._management = free_port(), free_port()
        authority = Authority()
        authority.issue("localhost").write(folder)
        self.root = folder / "root.pem"
        self.root.write_bytes(pem(authority.root))
        self.url = f"https://localhost:{own}/dir"
        self._address = ("127.0.0.1", own)
        configuration = folder / "pebble.json"
        configuration.write_text(json.dumps({"pebble": {
            "listenAddress": f"127.0.0.1:{own}",
            "managementListenAddress": f"127.0.0.1:{self._management}",
            "certificate": str(folder / "fullchain.pem"), "privateKey": str(folder / "privkey.pem"),
            "httpPort": port, "tlsPort": port, "ocspResponderURL": "",
            "externalAccountBindingRequired": False}}))
        self._command = [program("pebble"), "-config", str(configuration), "-dnsserver", nameserver]
        self._log = folder / "pebble.log"

    @property
    def log(self) -> str:
        return self._log.read_text()

    def issuer(self) -> bytes:
        """The certificate, PEM, that vouches for those that it issues."""
        context = ssl.create_default_context(cafile=self.root)
        with urlopen(f"https://localhost:{self._management}/roots/0", context=context,
                     timeout=20) as answer:
            certificate: bytes = answer.read()
        return certificate

    def __enter__(self) -> Pebble:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=subprocess.STDOUT,
                # It would dawdle, and refuse more good nonces, to try clients out; and look for
                # some answers only.
                env={**os.environ, "PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "3",
                     "PEBBLE_AUTHZREUSE": "0"})
        wait_for(self._address)
        wait_for(("127.0.0.1", self._management))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait(10)
