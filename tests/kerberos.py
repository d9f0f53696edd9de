"""MIT's KDC on loopback, for the realm EXAMPLE.ORG, with a database of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from types import TracebackType

from tests.daemons import PATIENCE, Daemon, free_port, wait_for

REALM = "EXAMPLE.ORG"


class Kerberos(Daemon):
    """A KDC that knows *principals*, whose passwords are "s3cret"; those with a slash are in the
    keytab.

    :ivar environment: what makes the libraries of a process find it.
    :ivar keytab: where the keys of services are.
    """

    def __init__(self, program: Callable[[str], str], *principals: str) -> None:
        super().__init__()
        self._program = program
        self._principals = principals
        self._process: subprocess.Popen[bytes] | None = None
        self.keytab = self.directory / "keytab"
        self.environment = {
            "KRB5_CONFIG": str(self.directory / "krb5.conf"),
            "KRB5_KDC_PROFILE": str(self.directory / "kdc.conf"),
            "KRB5RCACHENAME": f"file2:{self.directory}/replay",
        }

    def __enter__(self) -> Kerberos:
        try:
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(PATIENCE)
        self._stack.close()

    def _start(self) -> None:
        port = free_port()
        for name, content in (("krb5.conf", _CLIENT), ("kdc.conf", _SERVER)):
            (self.directory / name).write_text(
                content.replace("PORT", str(port)).replace("DIRECTORY", str(self.directory)))
        self._run("kdb5_util", "create", "-s", "-r", REALM, "-P", "master")
        for principal in self._principals:
            if "/" in principal:
                self._run("kadmin.local", "-q", f"addprinc -randkey {principal}")
                self._run("kadmin.local", "-q", f"ktadd -k {self.keytab} {principal}")
            else:
                self._run("kadmin.local", "-q", f"addprinc -pw s3cret {principal}")
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program("krb5kdc"), "-n"], stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, env={**os.environ, **self.environment})
        wait_for(("127.0.0.1", port))

    def log_in(self, principal: str) -> str:
        """The path of a cache with tickets of *principal*."""
        cache = self.directory / f"cache-{principal.replace('/', '-')}"
        self._run("kinit", "-c", str(cache), principal, typed="s3cret\n")
        return str(cache)

    def _run(self, name: str, *arguments: str, typed: str = "") -> None:
        subprocess.run([self._program(name), *arguments], check=True, timeout=PATIENCE,
                       capture_output=True, input=typed.encode(),
                       env={**os.environ, **self.environment})


_CLIENT = f"""\
[libdefaults]
    default_realm = {REALM}
    dns_lookup_kdc = false
    dns_lookup_realm = false
    dns_canonicalize_hostname = false
    rdns = false
    udp_preference_limit = 1
[realms]
    {REALM} = {{
        kdc = 127.0.0.1:PORT
    }}
"""
_SERVER = f"""\
[kdcdefaults]
    kdc_listen = 127.0.0.1:PORT
    kdc_tcp_listen = 127.0.0.1:PORT
[realms]
    {REALM} = {{
        database_name = DIRECTORY/principal
        key_stash_file = DIRECTORY/stash
        acl_file = DIRECTORY/acl
    }}
[logging]
    kdc = FILE:DIRECTORY/kdc.log
"""
