"""``mailsvc send``, ``mailsvc fetch`` and blocking code, each in a process of its own."""

from __future__ import annotations

import email
import inspect
import json
import mailbox
import pydoc
import subprocess
import sys
from collections.abc import Iterator
from email.policy import default
from pathlib import Path
from typing import Any, cast

import pytest

from mailsvc import blocking, client
from tests.service import Service

BOB, SECRET = "bob@example.org", "s3cret"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("service") / "data"
    with Service(directory, (f"{BOB}:{SECRET}", "carol@example.org:x1"),
                 ("--submission", "127.0.0.1:0", "--submissions", "127.0.0.1:0",
                  "--pop3s", "127.0.0.1:0", "--lmtp", "127.0.0.1:0")) as running:
        yield running


def ca(service: Service) -> str:
    return str(service.directory / "tls" / "self-signed.pem")


def run(*arguments: str, stdin: str = "", status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", "from mailsvc.cli import main; main()", *arguments], input=stdin,
        capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done


def at(service: Service, name: str = "smtp") -> str:
    host, port = service.listeners[name]
    return f"{host}:{port}"


def send(service: Service, *arguments: str, name: str = "smtp", status: int = 0,
         stdin: str = "") -> subprocess.CompletedProcess[str]:
    return run("send", "--server", at(service, name), "--from", "a@example.com", *arguments,
               status=status, stdin=stdin)


def newest(service: Service, account: str = BOB) -> Any:
    files = sorted((service.maildir(account) / "new").iterdir(), key=lambda path: path.name)
    return email.message_from_bytes(files[-1].read_bytes(), policy=default)


@pytest.mark.parametrize("host", ["old..example", f"{'x' * 64}.example", "xn--zz", "."],
                         ids=["empty", "long", "A-label", "dot"])
def test_a_name_that_no_host_has(host: str) -> None:
    for command in (("send", "--to", BOB, "-q"), ("fetch", "--user", BOB, "--password-stdin")):
        done = run(*command, "--server", host, stdin=SECRET, status=68)
        assert "is not a host" in done.stderr and done.stderr.count("\n") == 1


def test_the_dialogue_is_shown(service: Service) -> None:
    shown = send(service, "--to", BOB, "--subject", "Grüße", "--body", "Hallo, Jörg").stdout
    assert " -> EHLO " in shown and "<-  220 mx.example.org" in shown
    assert " -> RCPT TO:<bob@example.org>" in shown and "<-  221 " in shown
    message = newest(service)
    assert message["subject"] == "Grüße" and message.get_content() == "Hallo, Jörg\r\n"


def test_a_port_that_does_not_greet(service: Service) -> None:
    """It waits for TLS."""
    hint = "; if this port speaks TLS from the first octet, add --tls implicit\n"
    said = send(service, "--to", BOB, "--body", "x", "--timeout", "0.5", name="submissions",
                status=75).stderr
    assert said.startswith("*** greeting: ") and said.endswith(hint)
    said = run("fetch", "--server", at(service, "pop3s"), "--user", BOB, "--timeout", "0.5",
               "--password-stdin", "--into", "-", stdin=SECRET, status=75).stderr
    assert said.startswith("*** ") and said.endswith(hint)


def test_when_and_how_urgently(service: Service) -> None:
    options = ("--to", BOB, "--by", "60;nt", "--priority", "-3")
    shown = send(service, *options).stdout
    assert " BY=60;NT MT-PRIORITY=-3" in shown
    # On the listener for other hosts nothing is held, and it is not sent at once instead.
    refused = send(service, *options, "--hold-for", "60", status=69)
    assert "FUTURERELEASE" in refused.stderr
    for wrong in ("0;R", "5", "x;N"):
        assert "--by" in send(service, "--to", BOB, "--by", wrong, status=2).stderr


def test_parts(service: Service, tmp_path: Path) -> None:
    (tmp_path / "Übersicht \"1\".pdf").write_bytes(b"%PDF\r\n\0\xff")
    (tmp_path / "dot.png").write_bytes(b"\x89PNG")
    send(service, "--to", BOB, "--attach", str(tmp_path / "Übersicht \"1\".pdf"),
         "--inline", str(tmp_path / "dot.png"), "--header", "X-Test: yes")
    message = newest(service)
    assert message["x-test"] == "yes" and not message.defects
    attached, = message.iter_attachments()
    assert attached.get_filename() == "Übersicht \"1\".pdf"
    assert attached.get_content() == b"%PDF\r\n\0\xff"
    html = message.get_body(("related",))
    assert html is not None
    assert "cid:dot.png" in message.get_body(("html",)).get_content()
    images = [part for part in message.walk() if part.get_content_type() == "image/png"]
    assert [part["content-id"] for part in images] == ["<dot.png>"]


def test_a_message_as_it_is(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "message"
    path.write_bytes(b"Subject: as it is\n\n.\n..\nx\r\n")
    for extra in ([], ["--no-pipeline"], ["--no-chunk"], ["--no-chunk", "--no-pipeline"]):
        send(service, "--to", BOB, "--data", str(path), *extra)
        assert newest(service).get_payload() == ".\r\n..\r\nx\r\n"
    send(service, "--to", BOB, "--data", "-", stdin="Subject: piped\n\nyes\n")
    assert newest(service)["subject"] == "piped"


@pytest.mark.parametrize(("arguments", "status"), [
    (["--to", "nobody@example.org"], 67), (["--to", BOB, "--to", "nobody@example.org"], 67),
    (["--to", "x@elsewhere.example"], 77), (["--to", "a@b\r\nDATA"], 2), ([], 2),
    (["--to", BOB, "--subject", "x\nBcc: y@z"], 2), (["--to", BOB, "--header", "X: a\rb"], 2),
    (["--to", BOB, "--header", "no colon"], 2), (["--to", BOB, "--attach", "/nonexistent"], 2),
    (["--to", BOB, "--tls", "starttls"], 77), (["--to", BOB, "--quit-after", "nowhere"], 2),
])
def test_status(service: Service, arguments: list[str], status: int) -> None:
    assert "Traceback" not in send(service, *arguments, status=status).stderr


def test_nobody_there() -> None:
    assert "refused" in run("send", "--server", "127.0.0.1:1", "--to", BOB, status=75).stderr


@pytest.mark.parametrize(("stage", "last"), [
    ("banner", "QUIT"), ("helo", "EHLO"), ("mail", "MAIL"), ("rcpt", "RCPT")])
def test_stopping(service: Service, stage: str, last: str) -> None:
    shown = send(service, "--to", BOB, "--quit-after", stage).stdout
    said = [line.split()[1] for line in shown.splitlines() if line.startswith(" ->")]
    assert said[-1] == "QUIT" and (last == "QUIT" or said[-2] == last)


@pytest.mark.parametrize("mechanism", ["", "PLAIN", "LOGIN", "SCRAM-SHA-256",
                                       "SCRAM-SHA-256-PLUS"])
@pytest.mark.parametrize(("name", "tls"), [("submission", "starttls"),
                                           ("submissions", "implicit")])
def test_login_over_verified_tls(service: Service, name: str, tls: str, mechanism: str,
                                 tmp_path: Path) -> None:
    (tmp_path / "password").write_text(SECRET + "\n")
    arguments = ["--from", BOB, "--to", BOB, "--tls", tls, "--user", BOB, "--password-file",
                 str(tmp_path / "password"), *(["--auth", mechanism] if mechanism else [])]
    refused = send(service, *arguments, name=name, status=77)
    assert "self-signed" in refused.stderr
    done = send(service, *arguments, "--ca", ca(service), "--json", name=name)
    result = json.loads(done.stdout)
    assert result["outcomes"][0]["accepted"]
    assert result["tls"]["version"] == "TLSv1.3" and result["tls"]["verified"]
    said = [each["line"] for each in result["dialogue"] if each["from"] == "client"]
    assert any(line.startswith(f"AUTH {mechanism or 'SCRAM-SHA-256-PLUS'}") for line in said)
    assert SECRET not in done.stdout
    assert all(each["tls"] for each in result["dialogue"] if each["line"].startswith("AUTH"))


def test_a_wrong_password(service: Service) -> None:
    done = send(service, "--to", BOB, "--user", BOB, "--password-file", "-", "--no-verify",
                name="submission", stdin="wrong\n", status=77)
    assert "535 5.7.8" in done.stderr


def test_lmtp(service: Service) -> None:
    shown = send(service, "--lmtp", "--to", BOB, "--to", "carol@example.org", name="lmtp").stdout
    assert " -> LHLO " in shown and shown.count(" Message accepted as ") == 2


# ---- blocking ------------------------------------------------------------------------------------


def test_blocking_code(service: Service) -> None:
    host, port = service.smtp
    program = f"""
from mailsvc.blocking import dial, send_mail
outcomes = send_mail({host!r}, "a@example.com", [{BOB!r}], b"Subject: one call\\r\\n\\r\\nx",
                     port={port})
assert [each.accepted for each in outcomes] == [True]
with dial({host!r}, {port}) as client:
    assert client.extension("PIPELINING") is None
    client.mail("a@example.com")
    client.rcpt({BOB!r})
    assert client.data(b"Subject: steps\\r\\n\\r\\nx").code == 250
    assert client.secured is None and client.closed is None
    client.pipeline = False
    assert client._client.pipeline is False
try:
    send_mail({host!r}, "a@example.com", ["nobody@example.org"], b"x", port={port})
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                          timeout=60, check=False)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("NotSent nobody@example.org: 550 5.1.1")
    assert newest(service)["subject"] == "steps"


def test_what_help_shows_of_blocking_code() -> None:
    for ours, theirs, result in ((blocking.send_mail, client.send_mail, "tuple[Outcome, ...]"),
                                 (blocking.dial, client.Client.dial, "Client"),
                                 (blocking.Client.auth, client.Client.auth, "Reply")):
        mine, other = inspect.signature(ours), inspect.signature(theirs)
        assert list(mine.parameters.values()) == list(other.parameters.values())
        assert mine.return_annotation == result
        text = pydoc.plain(pydoc.render_doc(ours))
        assert "in module mailsvc.blocking" in text
        assert (inspect.getdoc(theirs) or "").split("\n")[0] in text
        assert "Deferred" not in text
    assert "dial" in blocking.dial.__qualname__


def test_blocking_code_has_all_that_there_is() -> None:
    # These make a client: the one is a function there, the other is for those who have a reactor.
    making = {"dial", "over"}
    there = {name for name in vars(client.Client) if not name.startswith("_")} - making
    assert there <= set(dir(blocking.Client(cast(Any, None))))
    for name, each in vars(client.Client).items():
        if name in there and not isinstance(each, property):
            assert list(inspect.signature(getattr(blocking.Client, name)).parameters) == list(
                inspect.signature(each).parameters), name
    assert not hasattr(blocking.Client(cast(Any, None)), "no_such_method")


def test_a_certificate_for_another(service: Service) -> None:
    host, port = service.listeners["submission"]
    program = f"""
from mailsvc.blocking import dial
from mailsvc.client import Trust
from mailsvc.smtp.failures import TLSFailed
for names in (("other.example.org",), ("192.0.2.1",), ("mx.example.org",)):
    try:
        with dial({host!r}, {port}, tls="starttls",
                  trust=Trust(names=names, authorities={ca(service)!r})) as client:
            print(client.secured.verified)
    except TLSFailed as failure:
        print(failure.reason)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                          timeout=60, check=False)
    assert done.stdout.split() == ["certificate-host-mismatch"] * 2 + ["True"], done.stderr


# ---- fetch ---------------------------------------------------------------------------------------


def fetch(service: Service, *arguments: str, account: str = "carol@example.org:x1",
          status: int = 0) -> subprocess.CompletedProcess[str]:
    user, _, password = account.partition(":")
    return run("fetch", "--server", at(service, "pop3"), "--tls", "no", "--user", user,
               "--password-file", "-", *arguments, stdin=password + "\n", status=status)


def test_fetching(service: Service, tmp_path: Path) -> None:
    for number in (1, 2):
        send(service, "--to", "carol@example.org", "--data", "-",
             stdin=f"Subject: {number}\n\nFrom here\n>From there\n.\nend")
    stored = sorted(path.read_bytes()
                    for path in (service.maildir("carol@example.org") / "new").iterdir())
    into = f"maildir:{tmp_path}/in"
    seen = ["--uidl-file", str(tmp_path / "seen")]
    found = json.loads(fetch(service, "--into", into, *seen, "--json").stdout)
    assert len(found["messages"]) == len(stored) >= 2 and found["error"] is None
    got = sorted(path.read_bytes() for path in (tmp_path / "in" / "new").iterdir())
    assert got == stored and not list((tmp_path / "in" / "tmp").iterdir())
    # Nothing twice.
    found = json.loads(fetch(service, "--into", into, *seen, "--json").stdout)
    assert found["messages"] == [] and found["skipped"] == len(stored)
    # Each mechanism; into an mbox, which Python reads.
    for number, way in enumerate(("USER", "PLAIN", "LOGIN", "SCRAM-SHA-256")):
        fetch(service, "--into", f"mbox:{tmp_path}/box", "--auth", way)
        box = mailbox.mbox(tmp_path / "box")
        assert len(box) == (number + 1) * len(stored)
        assert ">From here" in str(box[len(box) - 1])
        box.close()
    assert b"Subject: 1" in fetch(service).stdout.encode()
    # Over TLS that cannot be verified, nothing.
    refused = run("fetch", "--server", at(service, "pop3s"), "--tls", "implicit", "--user", "x",
                  "--password-file", "-", stdin="y\n", status=77)
    assert ("cannot be trusted: self-signed certificate; --ca FILE trusts the authority, or the "
            "self-signed certificate, in FILE; --no-verify takes any certificate") in refused.stderr
    refused = send(service, "--to", BOB, "--tls", "implicit", name="submissions", status=77)
    assert "self-signed certificate; --ca FILE trusts" in refused.stderr
    # Deleted when stored.
    fetch(service, "--into", f"mbox:{tmp_path}/last", "--delete")
    assert json.loads(fetch(service, "--into", into, "--json").stdout)["messages"] == []


def test_what_cannot_be_stored_is_not_deleted(service: Service, tmp_path: Path) -> None:
    send(service, "--to", "carol@example.org", "--subject", "stays")
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    done = fetch(service, "--into", f"mbox:{full}", "--delete", status=73)
    assert "***" in done.stderr
    assert b"stays" in fetch(service).stdout.encode()


@pytest.mark.parametrize(("arguments", "status"), [
    (["--into", "nowhere:x"], 2), (["--delete"], 2), (["--json"], 2)])
def test_fetch_misused(service: Service, arguments: list[str], status: int) -> None:
    assert "Error:" in fetch(service, *arguments, status=status).stderr


@pytest.mark.parametrize("arguments", [["fetch", "--server", "127.0.0.1:9", "--user", "x"],
                                       ["send", "--server", "127.0.0.1:9", "--user", "x", "--to",
                                        BOB]])
def test_no_terminal_to_ask_for_a_password(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from mailsvc.cli import main; main()", *arguments],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
        start_new_session=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "Error: no password, and no terminal to ask for one; pipe it in and add --password-stdin")


def test_fetch_with_a_wrong_password(service: Service) -> None:
    assert "login refused" in fetch(service, account=f"{BOB}:wrong", status=77).stderr


def test_a_password_behind_a_byte_order_mark(service: Service, tmp_path: Path) -> None:
    place = tmp_path / "password"
    place.write_text(SECRET + "\n", "utf-8-sig")
    login = ("--to", BOB, "--user", BOB, "--tls", "starttls", "--ca", ca(service), "--no-verify",
             "--quit-after", "auth")
    send(service, *login, "--password-file", str(place), name="submission")
    send(service, *login, "--password-stdin", name="submission", stdin=f"\ufeff{SECRET}\n")


@pytest.mark.parametrize("command", [
    ("send", "--to", BOB), ("fetch", "--user", BOB, "--password-stdin", "--into", "-")],
    ids=["send", "fetch"])
def test_two_ports(command: tuple[str, ...]) -> None:
    done = run(*command, "--server", "127.0.0.1:9", "--port", "10", status=2)
    assert done.stderr.splitlines()[-1] == (
        "Error: --server 127.0.0.1:9 names one port, and --port 10 another; leave one of them out")


def test_a_port_of_its_own(service: Service) -> None:
    host, port = service.smtp
    for server in f"{host}:{port}", host:
        run("send", "--server", server, "--port", str(port), "--to", BOB, "--quit-after", "rcpt")
