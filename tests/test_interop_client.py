"""Our client with other servers: Postfix, aiosmtpd; and other clients' order of calls with ours."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest_twisted

from mailsvc.client import Client
from mailsvc.fetching import Fetcher
from tests.aiosmtpd_server import listening
from tests.daemons import Dovecot, Postfix

MESSAGE = b"Subject: interop\r\n\r\n.a\r\n..\r\nlast\r\n"


@pytest_twisted.ensureDeferred
async def test_postfix(program: Callable[[str], str]) -> None:
    parameters = {"mydestination": "example.org", "smtpd_recipient_restrictions":
                  "reject_unauth_destination", "defer_transports": "local"}
    with Postfix(program, **parameters) as postfix:
        client = await Client.dial(*postfix.address, hello="client.example")
        await client.hello()
        assert {"PIPELINING", "SIZE", "8BITMIME", "ENHANCEDSTATUSCODES", "DSN"} <= set(
            client.extensions)
        for chunk in (False, True):
            outcomes = await client.send(
                "a@example.net", ["b@example.org", "c@elsewhere.example"], MESSAGE, chunk=chunk,
                envid="x+y", ret="HDRS")
            assert [each.accepted for each in outcomes] == [True, False]
            assert str(outcomes[1].status) == "5.7.1"
        large = b"Subject: large\r\n\r\n" + (b"x" * 70 + b"\r\n") * 20_000
        for chunk in (False, True):
            outcome, = await client.send("a@example.net", ["b@example.org"], large, chunk=chunk)
            assert outcome.accepted, outcome
        assert client.transactions == 4
        assert (await client.verify("b@example.org")).code in (250, 252)
        await client.reset()
        reply = await client.quit()
        assert reply is not None and reply.code == 221


@pytest_twisted.ensureDeferred
async def test_dovecot_by_lmtp_and_back_by_pop3(program: Callable[[str], str]) -> None:
    with Dovecot(program) as dovecot:
        client = await Client.dial(*dovecot.lmtp, hello="client.example", lmtp=True)
        accounts = ["b@example.org", "c@example.org"]
        for chunk in (False, True):
            outcomes = await client.send("a@example.net", accounts, MESSAGE, chunk=chunk)
            assert [each.accepted for each in outcomes] == [True, True], outcomes
        await client.quit()
        for way in ("", "PLAIN", "USER"):
            fetcher = await Fetcher.dial(*dovecot.pop3, tls="no")
            await fetcher.log_in("b@example.org", dovecot.password, mechanism=way)
            listed = await fetcher.unique_ids()
            sizes = await fetcher.sizes()
            got = {number: b"" for number, _ in listed}

            def keep(block: bytes, number: int) -> None:
                got[number] += block  # noqa: B023 - used up before the next turn

            # Without waiting: Dovecot pipelines.
            answers = [fetcher.retrieve(number, partial(keep, number=number)) for number in got]
            for each in answers:
                await each
            assert {number: len(text) for number, text in got.items()} == sizes
            assert len(got) == 2 and all(text.endswith(MESSAGE) for text in got.values())
            await fetcher.quit()


class Handler:
    """Keeps what comes."""

    def __init__(self) -> None:
        self.messages: list[tuple[list[str], bytes]] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.messages.append((envelope.rcpt_tos, envelope.content))
        return "250 2.0.0 kept"


@pytest_twisted.ensureDeferred
async def test_aiosmtpd() -> None:
    handler = Handler()
    with listening(handler, enable_SMTPUTF8=True) as port:
        client = await Client.dial("127.0.0.1", port, hello="client.example")
        outcomes = await client.send("ä@example.net", ["ö@example.org", "b@example.org"], MESSAGE)
        assert [each.accepted for each in outcomes] == [True, True]
        await client.quit()
    assert handler.messages == [(["ö@example.org", "b@example.org"], MESSAGE)]
