"""PostgreSQL on loopback, with a cluster of its own, run by the user postgres (it refuses root)."""

from __future__ import annotations

import os
import pwd
import subprocess
import time
from pathlib import Path
from types import TracebackType

from tests.conftest import absent
from tests.daemons import PATIENCE, Daemon, free_port, wait_for

USER = "postgres"


class Postgres(Daemon):
    """A server with the tables that *sql* makes, in the database postgres.

    Everybody on loopback is whom they say.

    :ivar conninfo: how its superuser connects.
    """

    def __init__(self, sql: str) -> None:
        self._programs = _programs()  # before there is a directory, which nobody would remove
        super().__init__()
        self._sql = sql
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self.conninfo = f"host=127.0.0.1 port={self.port} user={USER} dbname=postgres"

    def __enter__(self) -> Postgres:
        try:
            data = self.directory / "data"
            data.mkdir(0o700)
            self._own(data)
            self._run("initdb", "-D", str(data), "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8",
                      "--no-sync")
            self.start()
            self.execute(self._sql)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.stop()
        self._stack.close()

    def start(self) -> None:
        """Listen, again if it was stopped."""
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._programs / "postgres"), "-D", str(self.directory / "data"), "-p",
                 str(self.port), "-c", "listen_addresses=127.0.0.1", "-c",
                 "unix_socket_directories=", "-c", "fsync=off", "-c", "log_statement=all"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, **_AS_USER)
        wait_for(("127.0.0.1", self.port))
        # It accepts connections before it accepts them as a database, and says so meanwhile.
        deadline = time.monotonic() + PATIENCE
        while subprocess.run([str(self._programs / "pg_isready"), "-q", "-d", self.conninfo],
                             check=False, timeout=PATIENCE).returncode:
            assert time.monotonic() < deadline, (self.directory / "log").read_text()[-2000:]
            time.sleep(0.05)

    def stop(self) -> None:
        """End it, and with it all connections."""
        if self._process is not None:
            self._process.send_signal(2)  # SIGINT is its fast shutdown
            self._process.wait(PATIENCE)
            self._process = None

    def execute(self, sql: str) -> None:
        """Run *sql* as the superuser."""
        self._run("psql", "-q", "-v", "ON_ERROR_STOP=1", "-d", self.conninfo, "-c", sql)

    def _run(self, name: str, *arguments: str) -> None:
        subprocess.run([str(self._programs / name), *arguments], check=True, timeout=PATIENCE,
                       capture_output=True, cwd="/", **_AS_USER)

    @staticmethod
    def _own(path: Path) -> None:
        if os.geteuid() == 0:
            os.chown(path, pwd.getpwnam(USER).pw_uid, pwd.getpwnam(USER).pw_gid)


_AS_USER: dict[str, str] = {"user": USER, "group": USER} if os.geteuid() == 0 else {}


def _programs() -> Path:
    """Where the newest server's programs are; Debian's are on nobody's PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"),
                   key=lambda path: int(path.parts[4]))
    if not found:
        absent("postgresql is not installed; .ci/run names the package")
    return found[-1].parent
