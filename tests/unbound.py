"""Unbound as a validating resolver of signed zones, private and on loopback."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import dns.dnssec
import dns.name
import dns.rdatatype
import dns.rdtypes.ANY.DNSKEY
import dns.zone
from cryptography.hazmat.primitives.asymmetric import ec

from tests.daemons import PATIENCE, free_port


class Unbound:
    """Knows *zones* and nothing else; use as a context manager.

    :param zones: name -> lines of a zone file.
    :param signed: those that are signed with a key that it trusts; *forged*: with another.
    :param port: where on loopback it is; by default any.
    :ivar address: where it is, ``host:port``.
    """

    def __init__(self, program: Callable[[str], str], directory: Path,
                 zones: Mapping[str, Sequence[str]], signed: Sequence[str] = (),
                 forged: Sequence[str] = (), port: int = 0) -> None:
        directory.mkdir()
        port = port or free_port()
        self.address = f"127.0.0.1:{port}"
        self._program = program("unbound")
        self._config = directory / "unbound.conf"
        self._log = directory / "log"
        anchors, places = [], []
        for name, lines in zones.items():
            text = "\n".join([f"$ORIGIN {name}.", "$TTL 60",
                              "@ SOA ns hostmaster 1 3600 600 86400 60", "@ NS ns",
                              "ns A 127.0.0.1", *lines, ""])
            zone = dns.zone.from_text(text, origin=name, relativize=False)
            if name in signed or name in forged:
                key, public = _key()
                dns.dnssec.sign_zone(zone, keys=[(key, public)], add_dnskey=True, lifetime=86_400)
                trusted = _key()[1] if name in forged else public
                anchors.append(f'trust-anchor: "{name}. DNSKEY {trusted.to_text()}"')
            place = directory / f"{name}.zone"
            zone.to_file(str(place), relativize=False)
            places.append(f'auth-zone:\n  name: "{name}."\n  zonefile: "{place}"\n'
                          "  for-downstream: no\n  for-upstream: yes\n  fallback-enabled: no\n")
        self._config.write_text("\n".join([
            "server:", '  module-config: "validator iterator"', "  interface: 127.0.0.1",
            f"  port: {port}", '  chroot: ""', '  username: ""', '  pidfile: ""',
            f'  directory: "{directory}"', f'  logfile: "{self._log}"', "  use-syslog: no",
            "  do-daemonize: no", "  do-ip6: no", "  num-threads: 1",
            *(f"  {anchor}" for anchor in anchors),
            # What it has no zone for it may not ask anybody about.
            "  do-not-query-address: 0.0.0.0/0", *places,
            "remote-control:\n  control-enable: no", ""]))

    def __enter__(self) -> Unbound:
        self._process = subprocess.Popen([self._program, "-d", "-c", str(self._config)],
                                         stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + PATIENCE
        host, port = self.address.split(":")
        while True:
            try:
                socket.create_connection((host, int(port)), 1).close()
                return self
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.__exit__(None, None, None)
                    log = self._log.read_text() if self._log.exists() else ""
                    raise AssertionError(f"unbound did not start:\n{log}") from None
                time.sleep(0.05)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE)


def _key() -> tuple[ec.EllipticCurvePrivateKey, dns.rdtypes.ANY.DNSKEY.DNSKEY]:
    key = ec.generate_private_key(ec.SECP256R1())
    # 257: a zone's key that signs its keys.
    return key, dns.dnssec.make_dnskey(key.public_key(), "ECDSAP256SHA256", flags=257)
