"""Our client with other servers: Postfix, aiosmtpd; and other clients' order of calls with ours."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest_twisted
from aiosmtpd.smtp import SMTP

from mailsvc.client import Client
from mailsvc.fetching import Fetcher
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
    handler, ready = Handler(), threading.Event()
    loop = asyncio.new_event_loop()
    ports: list[int] = []

    async def serve() -> None:
        server = await loop.create_server(
            lambda: SMTP(handler, loop=loop, enable_SMTPUTF8=True), "127.0.0.1", 0)
        ports.append(server.sockets[0].getsockname()[1])
        ready.set()

    def run() -> None:
        loop.run_until_complete(serve())
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        client = await Client.dial("127.0.0.1", ports[0], hello="client.example")
        outcomes = await client.send("ä@example.net", ["ö@example.org", "b@example.org"], MESSAGE)
        assert [each.accepted for each in outcomes] == [True, True]
        await client.quit()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
    assert handler.messages == [(["ö@example.org", "b@example.org"], MESSAGE)]
