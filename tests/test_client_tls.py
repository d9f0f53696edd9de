"""The SMTP client's TLS and logins, against servers that behave, and that misbehave in each way."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted
import trustme
from twisted.internet.ssl import DefaultOpenSSLContextFactory

from mailsvc.client import SendingFailure, Trust
from mailsvc.smtp.failures import CannotLogIn, Refused, TLSFailed
from tests.peer import Listening, Peer, polite


@pytest_twisted.ensureDeferred
async def test_tls_that_is_not_offered() -> None:
    async with Listening(polite()) as server:
        with pytest.raises(TLSFailed) as caught:
            await server.dial(tls="starttls")
        assert caught.value.reason == "starttls-not-supported"
        client = await server.dial(tls="opportunistic")
        assert client.secured is None and client.tls_failure is None
        client.close()


@pytest_twisted.ensureDeferred
async def test_a_handshake_that_breaks_falls_back_where_that_is_allowed() -> None:
    def answer(peer: Peer, line: bytes) -> bytes | None:
        if line == b"STARTTLS":
            peer.transport.write(b"220 go\r\n")
            peer.transport.loseConnection()
            return b""
        return polite("STARTTLS")(peer, line)

    async with Listening(answer) as server:
        with pytest.raises(TLSFailed):
            await server.dial(tls="starttls")
        client = await server.dial(tls="opportunistic")
        assert client.secured is None and isinstance(client.tls_failure, TLSFailed)
        client.close()


@pytest_twisted.ensureDeferred
async def test_starttls_that_is_refused() -> None:
    async with Listening(polite("STARTTLS", starttls=b"454 4.7.0 not now\r\n")) as server:
        with pytest.raises(TLSFailed) as caught:
            await server.dial(tls="starttls")
        assert caught.value.reason == "starttls-not-supported"
        assert caught.value.reply is not None and caught.value.reply.code == 454
        # Where it need not be, the same connection goes on.
        client = await server.dial(tls="opportunistic")
        assert client.secured is None and client.tls_failure is not None
        assert (await client.noop()).code == 250
        assert len(server.peers) == 2
        client.close()
    async with Listening(polite("STARTTLS", starttls=b"421 4.3.2 going down\r\n")) as server:
        with pytest.raises(Refused) as refused:
            await server.dial(tls="starttls")
        assert refused.value.reply is not None and refused.value.reply.code == 421


@pytest_twisted.ensureDeferred
async def test_ehlo_is_said_again_within_tls(tmp_path: Path) -> None:
    """What the server offered in the clear counts for nothing (RFC 3207 §4.2)."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "root.pem")
    pem = tmp_path / "server.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(pem)
    certificate = DefaultOpenSSLContextFactory(str(pem), str(pem))
    secured: list[Peer] = []

    def answer(peer: Peer, line: bytes) -> bytes | None:
        if line == b"STARTTLS":
            peer.transport.write(b"220 go\r\n")
            peer.transport.startTLS(certificate)
            secured.append(peer)
            return b""
        offered = ("AUTH PLAIN",) if peer in secured else ("STARTTLS", "SIZE 10")
        return polite(*offered)(peer, line)

    async with Listening(answer) as server:
        trust = Trust(authorities=str(tmp_path / "root.pem"))
        client = await server.dial(tls="starttls", trust=trust)
        assert client.secured is not None and client.secured.verified
        assert client.extensions == {"AUTH": "PLAIN", "HELP": ""}
        client.close()
        # The system's authorities know nothing of ours.
        with pytest.raises(TLSFailed) as caught:
            await server.dial(tls="starttls")
        assert caught.value.reason == "certificate-not-trusted"


@pytest_twisted.ensureDeferred
async def test_text_behind_the_answer_to_starttls_is_an_error() -> None:
    async with Listening(polite("STARTTLS", starttls=b"220 go\r\n250-AUTH PLAIN\r\n")) as server:
        with pytest.raises(SendingFailure) as caught:
            await server.dial(tls="starttls")
        assert "in the clear" in caught.value.text


@pytest_twisted.ensureDeferred
async def test_success_that_scram_has_not_proven_is_not_believed() -> None:
    async with Listening(polite("AUTH SCRAM-SHA-256 PLAIN", auth=b"235 fine\r\n")) as server:
        client = await server.dial()
        with pytest.raises(CannotLogIn):
            await client.auth("bob", "secret")
        assert client.closed is not None


@pytest_twisted.ensureDeferred
async def test_no_mechanism_and_no_secret_said() -> None:
    async with Listening(polite("AUTH GSSAPI NTLM")) as server:
        client = await server.dial()
        with pytest.raises(CannotLogIn):
            await client.auth("bob", "secret")
        assert b"secret" not in b"".join(server.peers[0].lines)
        client.close()
