"""Mail programs log in over TLS, with the certificate verified: they submit, and they fetch.

Each submits over 587 (STARTTLS) and 465 (TLS from the first octet), and fetches over 110 (STLS) and
995, all on ports of the test's choosing.  What it submitted is what it fetches, under the header
that submission completes.
"""

from __future__ import annotations

import base64
import os
import poplib
import smtplib
import ssl
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.authority import Authority, pem
from tests.conftest import absent
from tests.service import Dialogue, Service

HERE = "localhost"
USER, PASSWORD = "alice@example.org", "se cret"
OTHER = "bob@example.org"
INTEROP = Path(__file__).parent / "interop"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a root that clients trust, with a certificate for this machine beside it."""
    folder = tmp_path_factory.mktemp("tls")
    made = Authority()
    root = folder / "root.pem"
    root.write_bytes(pem(made.root))
    made.issue(HERE).write(folder)
    return root


@pytest.fixture(scope="module")
def service(authority: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = authority.parent
    options = ("--tls-cert", str(folder / "fullchain.pem"), "--tls-key",
               str(folder / "privkey.pem"), "--submission", "0", "--submissions", "0",
               "--pop3s", "0", "--set", "pop3.allow_cleartext_auth=no")
    with Service(tmp_path_factory.mktemp("login") / "data",
                 (f"{USER}:{PASSWORD}", f"{OTHER}:{PASSWORD}"), options) as running:
        yield running


@dataclass(frozen=True)
class Run:
    """One program at work.

    :ivar kind: the listener it talks to.
    :ivar work: an empty directory, and its HOME.
    """

    service: Service
    kind: str
    root: Path
    work: Path
    program: Callable[[str], str]

    @property
    def port(self) -> str:
        return str(self.service.listeners[self.kind][1])

    @property
    def at_once(self) -> bool:
        """Whether TLS begins with the first octet."""
        return self.kind.endswith("s")

    @property
    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.root)

    def run(self, *command: str, given: bytes = b"", **environment: str) -> bytes:
        """Its standard output; it must succeed within a minute."""
        result = subprocess.run(
            command, input=given, capture_output=True, timeout=60, cwd=self.work, check=False,
            env={**os.environ, "HOME": str(self.work), "LC_ALL": "C.UTF-8", **environment})
        assert result.returncode == 0, (command, result.stdout, result.stderr)
        return result.stdout

    def configure(self, name: str, text: str) -> str:
        """Write a configuration file that only its owner can read; its path."""
        path = self.work / name
        path.write_text(text)
        path.chmod(stat.S_IRUSR | stat.S_IWUSR)
        return str(path)


# ---- submitting ----------------------------------------------------------------------------------

BODY = b"From: <alice@example.org>\r\nTo: <bob@example.org>\r\nSubject: hello\r\n\r\nIt works.\r\n"


def swaks(run: Run) -> None:
    run.run(run.program("swaks"), "--server", HERE, "--port", run.port,
            "--tlsc" if run.at_once else "--tls", "--tls-verify", "--tls-ca-path", str(run.root),
            "--auth", "PLAIN", "--auth-user", USER, "--auth-password", PASSWORD,
            "--from", USER, "--to", OTHER, "--data", BODY.decode().rstrip().replace("\r\n", "\\n"))


def curl(run: Run) -> None:
    run.run(run.program("curl"), "--silent", "--show-error", "--ssl-reqd",
            "--cacert", str(run.root), f"{'smtps' if run.at_once else 'smtp'}://{HERE}:{run.port}",
            "--user", f"{USER}:{PASSWORD}", "--mail-from", USER, "--mail-rcpt", OTHER,
            "--upload-file", "-", given=BODY)


def msmtp(run: Run) -> None:
    run.run(run.program("msmtp"), f"--host={HERE}", f"--port={run.port}", "--tls=on",
            f"--tls-starttls={'off' if run.at_once else 'on'}", f"--tls-trust-file={run.root}",
            "--auth=on", f"--user={USER}", f"--passwordeval=echo '{PASSWORD}'", f"--from={USER}",
            OTHER, given=BODY.replace(b"\r\n", b"\n"))


def smtplib_(run: Run) -> None:
    if run.at_once:
        client: smtplib.SMTP = smtplib.SMTP_SSL(HERE, int(run.port), context=run.context)
    else:
        client = smtplib.SMTP(HERE, int(run.port))
        client.starttls(context=run.context)
    with client:
        client.login(USER, PASSWORD)
        client.sendmail(USER, [OTHER], BODY)


def nodemailer(run: Run) -> None:
    modules = Path(sys.prefix, "node_modules")
    node = run.program("node")
    if not (modules / "nodemailer").is_dir():
        absent("nodemailer is not installed; make nodemailer does it")
    run.run(node, str(INTEROP / "login.js"), HERE, run.port, str(run.at_once).lower(),
            str(run.root), USER, PASSWORD, OTHER, given=BODY, NODE_PATH=str(modules))


def s_nail(run: Run) -> None:
    user, password = USER.replace("@", "%40"), PASSWORD.replace(" ", "%20")
    scheme = "smtps" if run.at_once else "submission"
    options = ("v15-compat", f"tls-ca-file={run.root}", "tls-verify=strict", "smtp-auth=plain",
               f"from={USER}", f"mta={scheme}://{user}:{password}@{HERE}:{run.port}", "sendwait",
               *(() if run.at_once else ("smtp-use-starttls",)))
    settings = [word for option in options for word in ("-S", option)]
    run.run(run.program("s-nail"), "-:/", *settings, "-s", "hello", OTHER, given=b"It works.\n")


SUBMITTERS = (swaks, curl, msmtp, smtplib_, nodemailer, s_nail)


@pytest.mark.parametrize("kind", ["submission", "submissions"])
@pytest.mark.parametrize("submit", SUBMITTERS, ids=lambda submit: submit.__name__.rstrip("_"))
def test_a_program_submits(submit: Callable[[Run], None], kind: str, service: Service,
                           authority: Path, tmp_path: Path,
                           program: Callable[[str], str]) -> None:
    submit(Run(service, kind, authority, tmp_path, program))
    (message,) = drain(service, authority)
    header, _, body = message.partition(b"\r\n\r\n")
    assert body == b"It works.\r\n"
    for name in (b"Date", b"Message-ID", b"From", b"Subject"):
        assert header.lower().count(b"\r\n" + name.lower() + b": ") == 1, name
    assert b" with ESMTPSA id " in header
    assert b"\r\n\ttls TLS_" in header


def drain(service: Service, authority: Path) -> list[bytes]:
    """Fetch and delete all that Bob has."""
    context = ssl.create_default_context(cafile=authority)
    session = poplib.POP3_SSL(HERE, service.listeners["pop3s"][1], context=context)
    session.user(OTHER)
    session.pass_(PASSWORD)
    messages = [b"\r\n".join(session.retr(number)[1]) + b"\r\n"
                for number in range(1, session.stat()[0] + 1)]
    for number in range(1, len(messages) + 1):
        session.dele(number)
    session.quit()
    return messages


# ---- fetching ------------------------------------------------------------------------------------


def fetching_curl(run: Run) -> bytes:
    return run.run(run.program("curl"), "--silent", "--show-error", "--ssl-reqd",
                   "--cacert", str(run.root), "--user", f"{USER}:{PASSWORD}",
                   f"{'pop3s' if run.at_once else 'pop3'}://{HERE}:{run.port}/1")


def fetching_poplib(run: Run) -> bytes:
    if run.at_once:
        session: poplib.POP3 = poplib.POP3_SSL(HERE, int(run.port), context=run.context)
    else:
        session = poplib.POP3(HERE, int(run.port))
        session.stls(context=run.context)
    session.user(USER)
    session.pass_(PASSWORD)
    lines = session.retr(1)[1]
    session.quit()
    return b"\r\n".join(lines) + b"\r\n"


def fetching_fetchmail(run: Run) -> bytes:
    into = run.work / "got"
    agent = Path(run.configure("agent", f"#!/bin/sh\ncat >{into}\n"))
    agent.chmod(0o700)
    secured = "ssl sslproto tls1.2+" if run.at_once else "sslproto tls1.2+"
    configuration = run.configure("fetchmailrc", f"""\
set no syslog
set idfile {run.work}/ids
poll {HERE} service {run.port} protocol pop3 no dns
  user "{USER}" password "{PASSWORD}" is root here
  {secured} sslcertck sslcertfile "{run.root}"
  fetchall keep no rewrite no mimedecode no forcecr no stripcr
  mda "{agent}"
""")
    run.run(run.program("fetchmail"), "--fetchmailrc", configuration, "--nodetach", "--invisible",
            "--pidfile", str(run.work / "pid"))
    return into.read_bytes()


def fetching_mpop(run: Run) -> bytes:
    into = run.work / "got"
    for name in ("tmp", "new", "cur"):
        (into / name).mkdir(parents=True)
    run.run(run.program("mpop"), f"--host={HERE}", f"--port={run.port}", "--auth=plain",
            f"--user={USER}", f"--passwordeval=echo '{PASSWORD}'", "--tls=on",
            f"--tls-starttls={'off' if run.at_once else 'on'}", f"--tls-trust-file={run.root}",
            "--keep=on", "--received-header=off", f"--uidls-file={run.work}/uidls",
            f"--delivery=maildir,{into}")
    (path,) = (into / "new").iterdir()
    return path.read_bytes()


def fetching_getmail(run: Run) -> bytes:
    into = run.work / "got"
    agent = Path(run.configure("agent", f"#!/bin/sh\ncat >{into}\nsleep 0.2\n"))
    agent.chmod(0o700)
    configuration = run.configure("getmailrc", f"""\
[retriever]
type = SimplePOP3SSLRetriever
server = {HERE}
port = {run.port}
username = {USER}
password = {PASSWORD}
ca_certs = {run.root}
[destination]
type = MDA_external
path = {agent}
allow_root_commands = true
unixfrom = false
[options]
read_all = true
delete = false
delivered_to = false
received = false
""")
    run.run(run.program("getmail"), "--getmaildir", str(run.work), "--rcfile", configuration)
    return into.read_bytes()


FETCHERS = (fetching_curl, fetching_poplib, fetching_fetchmail, fetching_mpop)
WAYS = [*((fetch, kind) for fetch in FETCHERS for kind in ("pop3", "pop3s")),
        (fetching_getmail, "pop3s")]


@pytest.mark.parametrize(("fetcher", "kind"), WAYS,
                         ids=lambda value: getattr(value, "__name__", value))
def test_a_program_fetches(fetcher: Callable[[Run], bytes], kind: str, fetched: bytes,
                           service: Service, authority: Path, tmp_path: Path,
                           program: Callable[[str], str]) -> None:
    got = fetcher(Run(service, kind, authority, tmp_path, program))
    assert got.replace(b"\r\n", b"\n") == fetched.replace(b"\r\n", b"\n")


@pytest.fixture(scope="module")
def fetched(service: Service, authority: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The one message that Alice has, as it is fetched."""
    with smtplib.SMTP(*service.smtp) as client:
        client.sendmail("carol@example.net", [USER], BODY)
    (path,) = (service.maildir(USER) / "new").iterdir()
    return path.read_bytes()


# ---- by hand -------------------------------------------------------------------------------------


def test_what_is_refused_in_the_clear(service: Service) -> None:
    plain = base64.b64encode(f"\0{USER}\0{PASSWORD}".encode())
    with Dialogue(service.listeners["submission"]) as client:
        client.reply()
        client.send(b"EHLO client.example.net\r\n")
        offered = [client.line()]
        while offered[-1][3:4] == b"-":
            offered.append(client.line())
        assert b"250-STARTTLS" in offered
        assert not [line for line in offered if b"AUTH" in line]
        assert client.say(b"AUTH PLAIN " + plain).startswith(b"538 5.7.11 ")
        assert client.say(f"MAIL FROM:<{USER}>".encode()).startswith(b"530 5.7.0 ")
    session = poplib.POP3(*service.pop3)
    assert not {"USER", "SASL"} & set(session.capa())
    with pytest.raises(poplib.error_proto, match="STLS"):
        session.user(USER)
    session.close()


def test_nobody_else_relays(service: Service, authority: Path) -> None:
    """The ways that open relays were found by: each is refused to a stranger.

    Who has logged in may name other hosts, and gets by no trick where a plain address would not
    lead.
    """
    context = ssl.create_default_context(cafile=authority)
    with smtplib.SMTP(*service.smtp) as stranger, \
            smtplib.SMTP_SSL(HERE, service.listeners["submissions"][1], context=context) as user:
        user.login(USER, PASSWORD)
        for client, sender in ((stranger, "spam@example.net"), (stranger, ""), (stranger, USER),
                               (user, USER)):
            client.ehlo_or_helo_if_needed()
            for recipient in (
                    "relay@example.com", "relay%example.com@example.org",
                    "relay%example.com@[127.0.0.1]", "relay%example.com", "example.com!relay",
                    "example.com!relay@example.org", '"relay@example.com"',
                    '"relay%example.com"', '"relay@example.com"@example.org',
                    "@example.org:relay@example.com", "@[127.0.0.1]:relay@example.com",
                    "relay@[127.0.0.1]", "relay@[IPv6:::1]", "relay@example.com@example.org",
                    "relay@localhost", "relay@example.org.example.com"):
                client.docmd(f"MAIL FROM:<{sender}>")
                code, text = client.docmd(f"RCPT TO:<{recipient}>")
                plain = recipient in (
                    "relay@example.com", "@example.org:relay@example.com", "relay@localhost",
                    "relay@example.org.example.com")
                assert (code == 250 if client is user and plain else 500 <= code < 600), (
                    sender, recipient, code, text)
                client.rset()


@pytest.mark.parametrize("early", [
    b"NOOP\r\n", b"EHLO evil.example\r\n", b"MAIL FROM:<evil@example.net>", b"AUTH PLAIN",
    b"QUIT\r\n"])
def test_nothing_said_before_tls_counts_inside(early: bytes, service: Service,
                                               authority: Path) -> None:
    """CVE-2011-0411: text behind STARTTLS, whole or half, in the packet of the command."""
    context = ssl.create_default_context(cafile=authority)
    for kind, command in (("submission", b"STARTTLS\r\n"), ("pop3", b"STLS\r\n")):
        with Dialogue(service.listeners[kind]) as client:
            client.reply()
            if kind == "submission":
                client.say(b"EHLO client.example.net")
            client.send(command + early)
            assert client.reply()[:3] in (b"220", b"+OK")
            with context.wrap_socket(client.socket, server_hostname=HERE) as secured:
                secured.settimeout(30)
                secured.sendall(b"RCPT TO:<x@example.org>\r\n" if kind == "submission"
                                else b"STAT\r\n")
                answer = secured.recv(4096)
                assert answer.startswith((b"503 5.5.1 Say EHLO", b"-ERR Log in first")), answer
                assert answer.count(b"\r\n") == 1


def test_what_nmap_knows_of_open_relays(service: Service, program: Callable[[str], str]) -> None:
    """Its smtp-open-relay: sixteen forms; and that it sees mail being taken, where it is."""
    nmap = program("nmap")

    def said(kind: str, *arguments: str) -> str:
        done = subprocess.run(
            [nmap, "-n", "-Pn", "-sT", "-p", str(service.listeners[kind][1]), "--script",
             "+smtp-open-relay", "--script-args", ",".join(arguments) or "x=y", "127.0.0.1"],
            capture_output=True, text=True, timeout=60, check=True)
        (line,) = [line for line in done.stdout.splitlines() if "smtp-open-relay: " in line]
        return line.partition("smtp-open-relay: ")[2]

    assert said("smtp") == "Server doesn't seem to be an open relay, all tests failed"
    assert said("submission") == "Server isn't an open relay, authentication needed"
    assert said("smtp", "smtp-open-relay.domain=example.org", "smtp-open-relay.to=alice"
                ).startswith("Server is an open relay (")
