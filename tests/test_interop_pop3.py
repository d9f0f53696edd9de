"""Mail programs fetch from the service; each must get what was sent, and leave what it should.

What a program writes is compared with LF for CRLF, since most keep mail so, and without the lines
that it puts on top.
"""

from __future__ import annotations

import mailbox
import os
import poplib
import re
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.messages import CORPUS, RAW, long_line
from tests.service import Dialogue, Service, below_trace, difference, fetch, login, submit
from tests.terminal import Terminal

#: One for each test, so that no test sees what another left.
ACCOUNTS = tuple(f"u{number:02}@example.org" for number in range(40))
PASSWORD = "se cret"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("interop") / "data",
                 tuple(f"{account}:{PASSWORD}" for account in ACCOUNTS)) as running:
        yield running


@pytest.fixture(scope="module")
def unused() -> Iterator[str]:
    return iter(ACCOUNTS)


@pytest.fixture
def account(unused: Iterator[str]) -> str:
    return next(unused)


@pytest.fixture
def mail(service: Service, account: str) -> list[bytes]:
    """The corpus delivered: each message as POP3 sends it, in the order of the maildrop."""
    for message in CORPUS.values():
        submit(service, message, (account,))
    delivered = fetch(service, account, delete=False)
    assert difference(map(below_trace, delivered), CORPUS.values()) == ""
    return delivered


@dataclass(frozen=True)
class Fetching:
    """One run of a program that fetches; *work* is an empty directory and its HOME."""

    service: Service
    account: str
    work: Path
    program: Callable[[str], str]

    @property
    def host(self) -> str:
        return self.service.pop3[0]

    @property
    def port(self) -> str:
        return str(self.service.pop3[1])

    def run(self, *command: str, given: bytes = b"", statuses: tuple[int, ...] = (0,)) -> bytes:
        """Its standard output; it must end within a minute with one of *statuses*."""
        result = subprocess.run(
            command, input=given, capture_output=True, timeout=60, cwd=self.work, check=False,
            env={**os.environ, "HOME": str(self.work), "LC_ALL": "C.UTF-8"})
        assert result.returncode in statuses, (command, result.stdout, result.stderr)
        return result.stdout

    def configure(self, name: str, text: str) -> str:
        """Write a configuration file that only its owner can read; its path."""
        path = self.work / name
        path.write_text(text)
        path.chmod(stat.S_IRUSR | stat.S_IWUSR)
        return str(path)

    def maildir(self) -> Path:
        directory = self.work / "got"
        mailbox.Maildir(directory)
        return directory

    def agent(self, then: str = "") -> tuple[str, Path]:
        """A delivery agent and the directory into which it puts each message.

        :param then: a shell command to follow.
        """
        directory = self.work / "got"
        directory.mkdir()
        script = self.configure("agent", "#!/bin/sh\n"
                                f'cat >"$(mktemp {directory}/XXXXXXXX)"\n{then}\n')
        Path(script).chmod(0o700)
        return script, directory


def lf(messages: list[bytes]) -> list[bytes]:
    """With LF for CRLF; sorted, and that is by the id in Received, by age."""
    return sorted(message.replace(b"\r\n", b"\n") for message in messages)


def in_maildir(directory: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((directory / "new").iterdir())]


def fetchmail(fetching: Fetching) -> list[bytes]:
    agent, into = fetching.agent()
    configuration = fetching.configure("fetchmailrc", f"""\
set no syslog
set idfile {fetching.work}/ids
poll {fetching.host} service {fetching.port} protocol pop3 no dns
  user "{fetching.account}" password "{PASSWORD}" is root here
  sslproto "" fetchall no keep no rewrite no mimedecode no forcecr no stripcr
  mda "{agent}"
""")
    fetching.run(fetching.program("fetchmail"), "--fetchmailrc", configuration, "--nodetach",
                 "--invisible", "--pidfile", str(fetching.work / "pid"))
    return [path.read_bytes() for path in into.iterdir()]


def getmail(fetching: Fetching) -> list[bytes]:
    # Its Maildir destination refuses root; its external agent can be told not to.  getmail begins
    # to watch for the agent when that runs already, and waits in vain for one too fast.
    agent, into = fetching.agent(then="sleep 0.2")
    configuration = fetching.configure("getmailrc", f"""\
[retriever]
type = SimplePOP3Retriever
server = {fetching.host}
port = {fetching.port}
username = {fetching.account}
password = {PASSWORD}
[destination]
type = MDA_external
path = {agent}
allow_root_commands = true
unixfrom = false
[options]
read_all = true
delete = true
delivered_to = false
received = false
""")
    fetching.run(fetching.program("getmail"), "--getmaildir", str(fetching.work),
                 "--rcfile", configuration)
    return [path.read_bytes() for path in into.iterdir()]


def mpop(fetching: Fetching, *options: str) -> list[bytes]:
    into = fetching.maildir()
    fetching.run(fetching.program("mpop"), f"--host={fetching.host}", f"--port={fetching.port}",
                 "--auth=user", f"--user={fetching.account}", f"--passwordeval=echo '{PASSWORD}'",
                 "--tls=off", "--keep=off", "--received-header=off",
                 f"--uidls-file={fetching.work}/uidls", f"--delivery=maildir,{into}", *options)
    return in_maildir(into)


def mpop_pipelining(fetching: Fetching) -> list[bytes]:
    return mpop(fetching, "--pipelining=on")


def s_nail(fetching: Fetching) -> list[bytes]:
    into = fetching.work / "got"
    user, password = fetching.account.replace("@", "%40"), PASSWORD.replace(" ", "%20")
    fetching.run(fetching.program("s-nail"), "-:/", "-S", "v15-compat", "-S", "pop3-auth=plain",
                 "-S", "pop3-bulk-load", "-S", "newfolders=maildir",
                 "-#", "-f", f"pop3://{user}:{password}@{fetching.host}:{fetching.port}",
                 given=f"copy * {into}\ndelete *\nquit\n".encode())
    return [path.read_bytes() for path in into.rglob("new/*")]


def mutt(fetching: Fetching) -> list[bytes]:
    into = fetching.maildir()
    configuration = fetching.configure("muttrc", f"""\
set pop_user="{fetching.account}" pop_pass="{PASSWORD}" pop_delete=yes pop_last=no
set ssl_starttls=no ssl_force_tls=no mbox_type=Maildir wait_key=no quit=yes delete=yes
set spoolfile="{into}" folder="{fetching.work}" header_cache="" message_cachedir=""
set pop_host="pop://{fetching.host}:{fetching.port}"
""")
    with Terminal(fetching.program("mutt"), "-n", "-F", configuration, "-f", str(into),
                  "-e", "push <fetch-mail><quit>", home=fetching.work) as terminal:
        terminal.wait()
    return [path.read_bytes() for path in into.rglob("???/*") if path.is_file()]


FETCHERS = (fetchmail, getmail, mpop, mpop_pipelining, mutt)


@pytest.mark.parametrize("fetcher", FETCHERS, ids=lambda fetcher: fetcher.__name__)
def test_a_program_fetches_everything_unchanged(
        fetcher: Callable[[Fetching], list[bytes]], service: Service, account: str,
        mail: list[bytes], tmp_path: Path, program: Callable[[str], str]) -> None:
    got = fetcher(Fetching(service, account, tmp_path, program))
    assert difference(lf(got), lf(mail)) == ""
    assert fetch(service, account) == [], "it deleted what it fetched"


def test_s_nail_fetches_everything(service: Service, account: str, mail: list[bytes],
                                   tmp_path: Path, program: Callable[[str], str]) -> None:
    """It copies in the manner of mbox: From is quoted, and an empty line ends each message."""
    got = s_nail(Fetching(service, account, tmp_path, program))
    quoted = [re.sub(rb"(?m)^From ", b">From ", message) for message in lf(mail)]
    assert difference(sorted(got), [message if message.endswith(b"\n\n") else message + b"\n"
                                    for message in quoted]) == ""
    assert fetch(service, account) == []


def test_curl_lists_and_fetches(service: Service, account: str, tmp_path: Path,
                                program: Callable[[str], str]) -> None:
    # poplib and others draw the line at 2,048 octets; curl does not.
    for message in (*CORPUS.values(), *RAW.values(), long_line(10_000), long_line(1 << 20)):
        submit(service, message, (account,))
    mail = fetch(service, account, delete=False)
    fetching = Fetching(service, account, tmp_path, program)

    def curl(path: str, *options: str) -> bytes:
        return fetching.run(program("curl"), "--silent", "--show-error",
                            "--user", f"{account}:{PASSWORD}",
                            f"pop3://{fetching.host}:{fetching.port}/{path}", *options)

    listing = [line.split() for line in curl("").splitlines()]
    assert listing == [[b"%d" % number, b"%d" % len(message)]
                       for number, message in enumerate(mail, 1)]
    assert difference([curl(str(number + 1)) for number in range(len(mail))], mail) == ""
    identifiers = [line.split()[1] for line in curl("", "--request", "UIDL").splitlines()]
    assert len(set(identifiers)) == len(mail)
    top = curl("", "--request", "TOP 3 1")
    header, _, body = mail[2].partition(b"\r\n\r\n")
    assert top == header + b"\r\n\r\n" + body.split(b"\r\n")[0] + b"\r\n"
    assert difference(fetch(service, account, delete=False), mail) == ""


def test_poplib(service: Service, account: str, mail: list[bytes]) -> None:
    client = poplib.POP3(*service.pop3)
    client.user(account)
    client.pass_(PASSWORD)
    assert client.stat() == (len(mail), sum(map(len, mail)))
    assert client.list()[1] == [b"%d %d" % (n, len(m)) for n, m in enumerate(mail, 1)]
    identifiers = [line.split()[1] for line in client.uidl()[1]]
    for number, message in enumerate(mail, 1):
        _, lines, octets = client.retr(number)
        assert b"".join(line + b"\r\n" for line in lines) == message
        # poplib counts what it read, stuffed dots not included.
        assert octets == len(message)
        assert client.uidl(number).split()[2] == identifiers[number - 1]
        header = message.partition(b"\r\n\r\n")[0]
        assert b"\r\n".join(client.top(number, 0)[1]) == header + b"\r\n"
    assert "UIDL" in client.capa()
    client.dele(2)
    client.rset()
    client.dele(1)
    client.noop()
    client.quit()
    assert difference(fetch(service, account, delete=False), mail[1:]) == ""


def test_a_lost_connection_deletes_nothing(service: Service, account: str,
                                           mail: list[bytes]) -> None:
    with login(service, account) as pop3:
        pop3.ask(b"DELE 1")
    assert difference(fetch(service, account, delete=False), mail) == ""


def test_mail_left_on_the_server_is_fetched_once(
        service: Service, account: str, mail: list[bytes], tmp_path: Path,
        program: Callable[[str], str]) -> None:
    """mpop remembers unique-ids: a second run gets what is new and nothing else."""
    fetching = Fetching(service, account, tmp_path, program)
    assert len(mpop(fetching, "--keep=on")) == len(mail)
    submit(service, b"Subject: new\r\n\r\nnew\r\n", (account,))
    assert len(mpop(fetching, "--keep=on")) == len(mail) + 1
    assert len(fetch(service, account, delete=False)) == len(mail) + 1


@pytest.mark.parametrize("message", RAW.values(), ids=RAW)
def test_odd_messages_come_back_to_poplib(service: Service, account: str, message: bytes) -> None:
    submit(service, message, (account,))
    client = poplib.POP3(*service.pop3)
    client.user(account)
    client.pass_(PASSWORD)
    lines = client.retr(1)[1]
    assert below_trace(b"".join(line + b"\r\n" for line in lines)) == message
    client.dele(1)
    client.quit()


def test_a_pipelined_drain(service: Service, account: str, mail: list[bytes]) -> None:
    """Everything at once, QUIT included: the replies come in order and whole."""
    with Dialogue(service.pop3) as pop3:
        commands = [b"USER " + account.encode(), b"PASS " + PASSWORD.encode(), b"STAT"]
        for number in range(1, len(mail) + 1):
            commands += [b"RETR %d" % number, b"DELE %d" % number]
        pop3.send(b"\r\n".join([*commands, b"QUIT", b""]))
        assert [pop3.line()[:3] for _ in range(4)] == [b"+OK"] * 4
        for message in mail:
            assert pop3.line().startswith(b"+OK")
            assert b"".join(line + b"\r\n" for line in pop3.multiline()) == message
            assert pop3.line().startswith(b"+OK")
        assert pop3.line().startswith(b"+OK")
        assert pop3.file.read() == b""
    assert fetch(service, account) == []
