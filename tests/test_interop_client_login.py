"""Our client logs in over STARTTLS at other servers: Dovecot's submission service, aiosmtpd."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from aiosmtpd.smtp import AuthResult, LoginPassword

from mailsvc.client import Client
from mailsvc.smtp.failures import CannotLogIn, LoginRefused
from mailsvc.trust import Trust
from tests.aiosmtpd_server import listening
from tests.authority import Authority, pem
from tests.daemons import Dovecot, free_port, own, wait_for
from tests.exchanger import Exchanger

MESSAGE = b"Subject: interop\r\n\r\n.a\r\n..\r\nlast\r\n"
USER, PASSWORD = "alice@example.org", "secret"

_SUBMISSION = """\
protocols = pop3 lmtp submission
ssl = required
disable_plaintext_auth = yes
ssl_cert = <{directory}/fullchain.pem
ssl_key = <{directory}/privkey.pem
auth_mechanisms = plain login cram-md5 scram-sha-1 scram-sha-256
submission_relay_host = 127.0.0.1
submission_relay_port = {relay}
submission_relay_ssl = no
hostname = localhost
service submission-login {{
  chroot =
  inet_listener submission {{
    port = {port}
  }}
}}
"""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a certificate for localhost, its key, and ``root.pem``."""
    directory = tmp_path_factory.mktemp("authority")
    root = Authority()
    root.issue("localhost").write(directory)
    (directory / "root.pem").write_bytes(pem(root.root))
    directory.chmod(0o755)
    own(directory)
    return directory


async def logged_in(port: int, authority: Path, mechanism: str, password: str = PASSWORD) -> Client:
    client = await Client.dial("127.0.0.1", port, hello="client.example")
    await client.hello()
    await client.start_tls(Trust(names=("localhost",), authorities=str(authority / "root.pem")))
    assert client.tls_active
    await client.auth(USER, password, mechanism=mechanism)
    return client


@pytest.fixture(scope="module")
def submission(program: Callable[[str], str], authority: Path) -> Iterator[tuple[int, Exchanger]]:
    """Where Dovecot listens, and who gets what it took."""
    program("/usr/lib/dovecot/submission")
    port = free_port()
    with Exchanger("127.0.0.1", 0) as there, Dovecot(program, _SUBMISSION.format(
            directory=authority, relay=there.port, port=port)):
        wait_for(("127.0.0.1", port))
        yield port, there


@pytest.mark.parametrize("mechanism", ["", "PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-256"])
@pytest_twisted.ensureDeferred
async def test_dovecot(submission: tuple[int, Exchanger], authority: Path, mechanism: str) -> None:
    port, there = submission
    there.messages.clear()
    client = await logged_in(port, authority, mechanism)
    for chunk in (False, True):
        outcome, = await client.send(USER, ["b@far.example"], MESSAGE, chunk=chunk)
        assert outcome.accepted, outcome
    await client.quit()
    assert [text.endswith(MESSAGE) for _, _, text, _ in there.messages] == [True, True]


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-256"])
@pytest_twisted.ensureDeferred
async def test_dovecot_refuses(
        submission: tuple[int, Exchanger], authority: Path, mechanism: str) -> None:
    with pytest.raises(LoginRefused):
        await logged_in(submission[0], authority, mechanism, "wrong")


class Handler:
    """Keeps what comes."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        assert session.authenticated and session.ssl is not None
        self.messages.append(envelope.content)
        return "250 2.0.0 kept"


def known(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
    # By default it takes a refusal for one that was told already.
    return AuthResult(success=data == LoginPassword(USER.encode(), PASSWORD.encode()),
                      handled=False)


@contextmanager
def aiosmtpd(authority: Path) -> Iterator[tuple[int, Handler]]:
    """It listens, and wants TLS and a login."""
    handler = Handler()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "fullchain.pem", authority / "privkey.pem")
    with listening(handler, tls_context=context, require_starttls=True, auth_required=True,
                   authenticator=known) as port:
        yield port, handler


@pytest.mark.parametrize("mechanism", ["", "PLAIN", "LOGIN"])
@pytest_twisted.ensureDeferred
async def test_aiosmtpd(authority: Path, mechanism: str) -> None:
    with aiosmtpd(authority) as (port, handler):
        client = await logged_in(port, authority, mechanism)
        outcome, = await client.send(USER, ["b@far.example"], MESSAGE)
        assert outcome.accepted
        await client.quit()
        assert handler.messages == [MESSAGE]
        with pytest.raises(LoginRefused):
            await logged_in(port, authority, mechanism, "wrong")
        with pytest.raises(CannotLogIn):
            await logged_in(port, authority, "SCRAM-SHA-256")
