"""OpenLDAP's slapd on loopback, with a directory of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from types import TracebackType

from tests.daemons import PATIENCE, Daemon, free_port, wait_for

BASE = "dc=example,dc=org"
READER = f"cn=reader,{BASE}"
READER_PASSWORD = "reader's password"


class Slapd(Daemon):
    """slapd with the entries of *ldif*, and TLS by a certificate of its directory, if there is one.

    Nobody but :data:`READER` may search; everybody may bind.

    :ivar port: for LDAP and StartTLS.
    :ivar tls_port: for LDAPS.
    """

    def __init__(self, program: Callable[[str], str], ldif: str, certificate: bytes = b"") -> None:
        super().__init__()
        self._program = program
        self._ldif = ldif
        self._certificate = certificate
        self._process: subprocess.Popen[bytes] | None = None
        self.port, self.tls_port = free_port(), free_port()

    def __enter__(self) -> Slapd:
        try:
            self._prepare()
            self.start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.stop()
        super().__exit__(kind, error, trace)

    def _prepare(self) -> None:
        directory = self.directory
        (directory / "data").mkdir()
        configuration = _CONFIGURATION.format(
            directory=directory, base=BASE, reader=READER)
        if self._certificate:
            path = directory / "certificate.pem"
            path.write_bytes(self._certificate)
            configuration = f"TLSCertificateFile {path}\nTLSCertificateKeyFile {path}\n" \
                + configuration
        self._configuration = directory / "slapd.conf"
        self._configuration.write_text(_SCHEMAS + configuration)
        entries = f"""\
dn: {BASE}
objectClass: dcObject
objectClass: organization
dc: example
o: Example

dn: {READER}
objectClass: applicationProcess
objectClass: simpleSecurityObject
cn: reader
userPassword: {READER_PASSWORD}

{self._ldif}"""
        subprocess.run([self._program("slapadd"), "-f", str(self._configuration)],
                       input=entries.encode(), check=True, timeout=PATIENCE, capture_output=True)

    def start(self) -> None:
        """Listen, again if it was stopped."""
        urls = f"ldap://127.0.0.1:{self.port}/"
        if self._certificate:
            urls += f" ldaps://127.0.0.1:{self.tls_port}/"
        with (self.directory / "log").open("ab") as log:
            # -d keeps it in the foreground.
            self._process = subprocess.Popen(
                [self._program("slapd"), "-d", "stats", "-f", str(self._configuration), "-h", urls],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for(("127.0.0.1", self.port))

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(PATIENCE)
            self._process = None


_SCHEMAS = "".join(f"include /etc/ldap/schema/{name}.schema\n"
                   for name in ("core", "cosine", "inetorgperson"))
_CONFIGURATION = """\
pidfile {directory}/pid
argsfile {directory}/args
modulepath /usr/lib/ldap
moduleload back_mdb
allow bind_anon_dn
database mdb
suffix "{base}"
directory {directory}/data
access to attrs=userPassword by anonymous auth
access to * by dn.exact="{reader}" read by * auth
"""
