"""fetchmail fetches by ODMR, and hands what comes to a mail server behind it."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mailsvc.directory import SqliteDirectory
from mailsvc.names import parse_address
from tests.exchanger import Exchanger
from tests.messages import CORPUS
from tests.relay import MESSAGE, queued, until
from tests.service import Service, below_trace, difference, fetch, submit
from tests.test_odmr import kept, listed, providing, send

#: What the one who kept a message put on top of it.
RECEIVED = re.compile(rb"\AReceived: [^\r\n]*\r\n(?:[ \t][^\r\n]*\r\n)*")
#: What fetchmail can log in by, for which a password has to be kept readable.
MECHANISMS = 'auth.mechanisms=["SCRAM-SHA-256", "PLAIN", "CRAM-MD5"]'


def fetchmail(work: Path, program: Callable[[str], str], port: int, behind: tuple[str, int],
              how: str = "", domains: str = "far.example branch.example") -> tuple[int, str]:
    """Run it once; its status and what it said."""
    configuration = work / "fetchmailrc"
    configuration.write_text(f"""\
set no syslog
set idfile {work}/ids
poll 127.0.0.1 service {port} protocol ODMR no dns {how}
  user "carol@a.example" password "secret" is root here sslproto ""
  fetchdomains {domains}
  smtphost {behind[0]}/{behind[1]}
""")
    configuration.chmod(stat.S_IRUSR | stat.S_IWUSR)
    done = subprocess.run(
        [program("fetchmail"), "--fetchmailrc", configuration, "--nodetach", "--invisible",
         "--pidfile", work / "pid"], capture_output=True, timeout=60, check=False,
        env={**os.environ, "HOME": str(work), "LC_ALL": "C.UTF-8"})
    return done.returncode, (done.stdout + done.stderr).decode("utf-8", "replace")


def readable_password(service: Service) -> None:
    """Keep carol's password so that it serves for CRAM-MD5 too."""
    with SqliteDirectory(str(service.directory / "accounts.sqlite")) as directory:
        directory.set_password(parse_address("carol@a.example"), None, secret="secret")


@pytest.mark.parametrize("way", ["clear", "tls"])
def test_fetchmail(tmp_path: Path, program: Callable[[str], str], way: str) -> None:
    with providing(tmp_path / "a", MECHANISMS, workers=2,
                   options=("--submissions", "127.0.0.1:0")) as here, Service(
            tmp_path / "b", ("bob@far.example:secret", "eve@branch.example:secret")) as behind:
        readable_password(here)
        for message in CORPUS.values():
            submit(here, message, ("bob@far.example",))
        send(here, "eve@branch.example", "bob@far.example")
        kept(here, len(CORPUS) + 1)
        # Its own TLS loses sight of what has come behind the line that it reads.
        port, how = (here.listeners["odmr"][1], "") if way == "clear" else (
            here.listeners["submissions"][1],
            f"plugin \"{program('openssl')} s_client -quiet -connect %h:%p\"")
        status, said = fetchmail(tmp_path, program, port, behind.smtp, how)
        assert status == 0, said
        until(lambda: not queued(here), here)
        got = [RECEIVED.sub(b"", below_trace(message), count=1)
               for message in fetch(behind, "bob@far.example")]
        assert difference(got, [*CORPUS.values(), MESSAGE]) == ""
        assert len(fetch(behind, "eve@branch.example")) == 1
        status, said = fetchmail(tmp_path, program, port, behind.smtp, how)
        assert "no mail" in said


def test_fetchmail_before_a_server_that_refuses(tmp_path: Path, program: Callable[[str], str]
                                                ) -> None:
    behaviour = "rcpt=450_4.2.1_later", "rcpt=550_5.1.1_nobody"
    with providing(tmp_path / "a", MECHANISMS) as here, \
            Exchanger("127.0.0.1", 0, *behaviour) as behind:
        readable_password(here)
        send(here, "bob@far.example")
        kept(here)

        def once(replies: list[str]) -> None:
            fetchmail(tmp_path, program, here.listeners["odmr"][1], ("127.0.0.1", behind.port))
            until(lambda: replies == [
                each["reply"] for message in listed(here) for each in message["recipients"]], here)

        once(["450 4.2.1 later"])
        once([])
        assert not queued(here)
