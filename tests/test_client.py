"""The SMTP client over sockets: against servers that behave, and that misbehave in each way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from mailsvc.client import (
    BadArgument,
    Client,
    NotSent,
    Outcome,
    SendingFailure,
    Stage,
    Timeouts,
    send_mail,
)
from mailsvc.smtp.failures import (
    BadMessage,
    BadReply,
    CannotConnect,
    Disconnected,
    NotOffered,
    Refused,
    TimedOut,
)
from mailsvc.smtp.source import Source
from tests.peer import Answer, Listening, Peer, polite

MESSAGE = b"Subject: hello\r\n\r\n.dots\r\n..\r\nlast"


def kinds(outcomes: tuple[Outcome, ...]) -> list[str]:
    return [type(each.failure).__name__ if each.failure else "accepted" for each in outcomes]


@pytest_twisted.ensureDeferred
async def test_step_by_step_as_in_go() -> None:
    async with Listening(polite("SIZE 1000", "8BITMIME")) as server:
        client = await server.dial()
        assert client.extension("size") is None, "EHLO is said when it is needed"
        await client.hello()
        assert client.extension("size") == "1000" and client.extension("DSN") is None
        assert (await client.mail("a@example.com")).code == 250
        await client.rcpt("b@example.org")
        assert (await client.data(MESSAGE)).status == (2, 0, 0)
        await client.verify("b")
        await client.expand("list")
        await client.noop()
        await client.reset()
        reply = await client.quit()
        assert reply is not None and reply.code == 221
        assert client.closed is not None and client.transactions == 1
        peer = server.peers[0]
        assert peer.message == b"Subject: hello\r\n\r\n..dots\r\n...\r\nlast\r\n.\r\n"
        assert peer.lines == [
            b"EHLO client.example", b"MAIL FROM:<a@example.com> BODY=8BITMIME",
            b"RCPT TO:<b@example.org>", b"DATA", b"VRFY b", b"EXPN list", b"NOOP", b"RSET", b"QUIT"]


@pytest.mark.parametrize("extensions", [(), ("PIPELINING",), ("CHUNKING",),
                                        ("PIPELINING", "CHUNKING")])
@pytest_twisted.ensureDeferred
async def test_each_recipient_has_an_outcome(extensions: tuple[str, ...]) -> None:
    def answer(peer: Peer, line: bytes) -> bytes | None:
        if line.startswith(b"RCPT TO:<n"):
            return b"550 5.1.1 nobody\r\n"
        if line.startswith(b"RCPT TO:<l"):
            return b"450 later\r\n"
        return polite(*extensions)(peer, line)

    async with Listening(answer) as server:
        client = await server.dial()
        for number in (1, 2):
            outcomes = await client.send(
                "a@example.com", ["b@x.org", "n@x.org", "l@x.org", "c@x.org"], MESSAGE)
            assert kinds(outcomes) == ["accepted", "Refused", "Refused", "accepted"]
            assert [each.temporary for each in outcomes] == [False, False, True, False]
            assert [str(each.status) for each in outcomes] == ["2.0.0", "5.1.1", "4.2.0", "2.0.0"]
            assert client.transactions == number
        # Nobody: the message is not sent, and the connection can be used on.
        outcomes = await client.send("a@example.com", ["n@x.org"], MESSAGE)
        assert kinds(outcomes) == ["Refused"]
        outcomes = await client.send("a@example.com", ["b@x.org"], MESSAGE)
        assert kinds(outcomes) == ["accepted"]
        await client.quit()


@pytest_twisted.ensureDeferred
async def test_lmtp_has_a_reply_for_each() -> None:
    async with Listening(polite("PIPELINING", end=b"250 ok\r\n452 4.2.2 full\r\n")) as server:
        client = await server.dial(lmtp=True)
        outcomes = await client.send("a@example.com", ["b@x.org", "c@x.org"], MESSAGE)
        assert kinds(outcomes) == ["accepted", "Refused"]
        assert str(outcomes[1].status) == "4.2.2"
        assert server.peers[0].lines[0] == b"LHLO client.example"
        client.close()


@pytest.mark.parametrize("full", ["452 4.5.3 too many", "552 too many", "552 5.5.3 too many"])
@pytest.mark.parametrize("limits", [(), ("LIMITS RCPTMAX=2",)])
@pytest_twisted.ensureDeferred
async def test_whom_there_was_no_room_for_gets_another_transaction(
        limits: tuple[str, ...], full: str) -> None:
    def answer(peer: Peer, line: bytes) -> bytes | None:
        since = 0
        for each in peer.lines:
            since = 0 if each.startswith(b"MAIL") else since + each.startswith(b"RCPT")
        if line.startswith(b"RCPT") and since > 2:
            return full.encode() + b"\r\n"
        return polite("PIPELINING", *limits)(peer, line)

    async with Listening(answer) as server:
        client = await server.dial()
        outcomes = await client.send("a@example.com", [f"r{n}@x.org" for n in range(5)], MESSAGE)
        assert kinds(outcomes) == ["accepted"] * 5
        assert client.transactions == 3
        client.close()


@pytest_twisted.ensureDeferred
async def test_a_local_part_may_be_empty_in_quotes() -> None:
    async with Listening(polite()) as server:
        client = await server.dial()
        outcomes = await client.send("a@example.com", ['""@x.org'], MESSAGE)
        assert kinds(outcomes) == ["accepted"]
        assert b'RCPT TO:<""@x.org>' in server.peers[0].lines
        client.close()


@pytest_twisted.ensureDeferred
async def test_no_more_transactions_than_the_server_announced() -> None:
    async with Listening(polite("PIPELINING", "LIMITS MAILMAX=2 RCPTMAX=2")) as server:
        client = await server.dial()
        outcomes = await client.send("a@example.com", [f"r{n}@x.org" for n in range(5)], MESSAGE)
        assert kinds(outcomes) == ["accepted"] * 4 + ["SendingFailure"]
        assert outcomes[4].temporary and str(outcomes[4].status) == "4.5.3"
        assert client.exhausted
        client.close()


@pytest.mark.parametrize("full", ["552 5.2.2 full", "552 full"])
@pytest_twisted.ensureDeferred
async def test_a_mailbox_that_is_full_is_no_lack_of_room_for_recipients(full: str) -> None:
    def answer(peer: Peer, line: bytes) -> bytes | None:
        if line.startswith(b"RCPT TO:<full"):
            return full.encode() + b"\r\n"
        return polite("PIPELINING")(peer, line)

    async with Listening(answer) as server:
        client = await server.dial()
        outcomes = await client.send("a@example.com", ["b@x.org", "full@x.org"], MESSAGE)
        assert kinds(outcomes) == ["accepted", "Refused"]
        assert outcomes[1].permanent
        # Without a status it is asked about once more, alone.
        asked = server.peers[0].lines.count(b"RCPT TO:<full@x.org>")
        assert asked == (1 if "5.2.2" in full else 2)
        client.close()


# ---- servers that misbehave ----------------------------------------------------------------------


async def one(answer: Answer, greeting: bytes = b"220 peer.example\r\n",
              message: Any = MESSAGE) -> Outcome:
    """What becomes of one recipient there."""
    async with Listening(answer, greeting) as server:
        client = await server.dial()
        outcome, = await client.send("a@example.com", ["b@example.org"], message)
        client.close()
        return outcome


@pytest.mark.parametrize("greeting,kind", [
    (b"", TimedOut), (b"220-a\r\n", TimedOut), (b"554 5.3.2 no\r\n", Refused),
    (b"421 4.3.2 no\r\n", Refused), (b"HTTP/1.1 400\r\n", BadReply), (b"220 a\n", BadReply),
    (b"220-a\r\n" * 1000, BadReply), (b"220-a\r\n250 b\r\n", BadReply), (b"999 x\r\n", BadReply),
    (b"\x15\x03\x01\x00\x02\x02\x0a", BadReply)])
@pytest_twisted.ensureDeferred
async def test_a_greeting_that_is_none(greeting: bytes, kind: type[SendingFailure]) -> None:
    async with Listening(polite(), greeting) as server:
        with pytest.raises(kind) as caught:
            await server.dial()
        assert caught.value.stage is Stage.GREETING and not caught.value.in_flight


@pytest_twisted.ensureDeferred
async def test_dripping_buys_no_time() -> None:
    async with Listening(polite(), b"") as server:
        dialling = server.dial()

        async def drip() -> None:
            for n in range(40):
                await deferLater(reactor, 0.05)
                if dialling.called:
                    return
                for peer in server.peers:
                    peer.transport.write(b"220 slow"[n % 8:n % 8 + 1] if n < 8 else b"x")

        dripping = Deferred.fromCoroutine(drip())
        with pytest.raises(TimedOut):
            await dialling
        await dripping


@pytest.mark.parametrize("answers,kind,stage,in_flight", [
    ({"ehlo": None}, Disconnected, Stage.HELLO, False),
    ({"ehlo": b""}, TimedOut, Stage.HELLO, False),
    ({"ehlo": b"554 no\r\n"}, Refused, Stage.HELLO, False),
    ({"mail": None}, Disconnected, Stage.RCPT, False),
    ({"mail": b"451 4.3.0 no\r\n", "data": b"503 no\r\n"}, Refused, Stage.RCPT, False),
    ({"rcpt": b"421 4.3.2 down\r\n"}, Refused, Stage.RCPT, False),
    ({"rcpt": b"354 go on\r\n"}, BadReply, Stage.RCPT, False),
    ({"data": b"451 4.3.0 no\r\n"}, Refused, Stage.DATA, False),
    ({"data": b"250 thanks\r\n"}, BadReply, Stage.DATA, False),
    ({"data": None}, Disconnected, Stage.DATA, False),
    ({"data": b""}, TimedOut, Stage.DATA, False),
    ({"end": b"550 5.7.1 spam\r\n"}, Refused, Stage.END, False),
    ({"end": b"421 4.3.2 down\r\n"}, Refused, Stage.END, False),
    ({"end": None}, Disconnected, Stage.END, True),
    ({"end": b""}, TimedOut, Stage.END, True),
    ({"end": b"250-a\r\n251 b\r\n"}, BadReply, Stage.END, True),
])
@pytest.mark.parametrize("extensions", [(), ("PIPELINING",)])
@pytest_twisted.ensureDeferred
async def test_what_goes_wrong_is_told(
        answers: dict[str, bytes | None], kind: type[SendingFailure], stage: Stage,
        in_flight: bool, extensions: tuple[str, ...]) -> None:
    outcome = await one(polite(*extensions, **answers))
    assert type(outcome.failure) is kind
    assert (outcome.failure.stage, outcome.in_flight) == (stage, in_flight)
    assert not outcome.accepted and outcome.temporary == (str(outcome.status)[0] == "4")


@pytest.mark.parametrize("tls", ["STARTTLS", "starttsl", "", True, False, None])
def test_tls_that_is_misspelt_is_not_left_out(tls: Any) -> None:
    with pytest.raises(BadArgument, match="expected one of no, starttls, opportunistic, implicit"):
        Client.dial("127.0.0.1", 1, tls=tls)


@pytest_twisted.ensureDeferred
async def test_nobody_there() -> None:
    async with Listening(polite()) as server:
        port = server.port
    with pytest.raises(CannotConnect):
        await Client.dial("127.0.0.1", port)
    with pytest.raises(CannotConnect):
        await Client.dial("no host", port)


@pytest_twisted.ensureDeferred
async def test_quit_never_fails() -> None:
    for answer in (None, b"", b"500 what\r\n"):
        async with Listening(polite(quit=answer)) as server:
            client = await server.dial()
            await client.hello()
            reply = await client.quit()
            assert (reply is None) == (answer != b"500 what\r\n")


@pytest_twisted.ensureDeferred
async def test_ehlo_is_said_once_for_all_that_needs_it() -> None:
    async with Listening(polite("PIPELINING")) as server:
        client = await server.dial()
        # None is waited for before the next is queued.
        done = [client.mail("a@example.com"), client.rcpt("b@example.org"),
                client.content(Source(MESSAGE)), client.verify("b")]
        assert [(await each).code for each in done] == [250, 250, 250, 250]
        assert [line.split()[0] for line in server.peers[0].lines] == [
            b"EHLO", b"MAIL", b"RCPT", b"DATA", b"VRFY"]
        client.close()
    async with Listening(polite(ehlo=b"550 5.7.1 not you\r\n")) as server:
        client = await server.dial()
        for each in [client.mail("a@example.com"), client.rcpt("b@example.org")]:
            with pytest.raises(Refused):
                await each
        assert [line.split()[0] for line in server.peers[0].lines] == [b"EHLO"]
        client.close()


@pytest_twisted.ensureDeferred
async def test_who_waits_for_the_end_is_told_why() -> None:
    async with Listening(polite(noop=None)) as server:
        client = await server.dial()
        waiting = [client.when_closed(), client.when_closed()]
        with pytest.raises(Disconnected):
            await client.noop()
        for each in [*waiting, client.when_closed()]:
            assert isinstance(await each, Disconnected)
        client = await server.dial()
        waiting = [client.when_closed()]
        await client.quit()
        assert (await waiting[0]).text == "we closed the connection"


@pytest_twisted.ensureDeferred
async def test_who_is_refused_as_a_sender_is_told_so_for_each_recipient() -> None:
    """Sent ahead, RCPT gets a 503, which is not what decided."""
    answer = polite("PIPELINING", mail=b"550 5.7.1 not you\r\n", rcpt=b"503 5.5.1 MAIL first\r\n",
                    data=b"503 5.5.1 MAIL first\r\n")
    async with Listening(answer) as server:
        client = await server.dial()
        outcomes = await client.send("a@example.com", ["b@x.org", "c@x.org"], MESSAGE)
        assert [str(each.status) for each in outcomes] == ["5.7.1", "5.7.1"]
        assert all(each.failure is not None and each.failure.stage is Stage.MAIL
                   for each in outcomes)
        client.close()


# ---- messages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("message", [b"a\nb\r\n", b"a\r\n.\n", b"a\rb\r\n"])
@pytest.mark.parametrize("extensions", [("PIPELINING",), ("CHUNKING",)])
@pytest_twisted.ensureDeferred
async def test_a_stray_line_end_is_refused_or_mended(message: bytes,
                                                     extensions: tuple[str, ...]) -> None:
    async with Listening(polite(*extensions)) as server:
        client = await server.dial()
        outcome, = await client.send("a@example.com", ["b@example.org"], message)
        assert isinstance(outcome.failure, BadMessage) and str(outcome.status) == "5.6.11"
        assert server.peers[0].message == b""
        outcome, = await client.send("a@example.com", ["b@example.org"], message, normalize=True)
        assert outcome.accepted
        got = server.peers[0].message
        assert got.count(b"\r\n") == got.count(b"\n") == got.count(b"\r") > 1
        client.close()


@pytest_twisted.ensureDeferred
async def test_a_stray_line_end_in_a_stream_ends_the_connection() -> None:
    async def blocks() -> AsyncIterator[bytes]:
        yield b"a\r\n"
        yield b".\n"

    outcome = await one(polite(), message=blocks())
    assert isinstance(outcome.failure, BadMessage) and not outcome.in_flight


@pytest_twisted.ensureDeferred
async def test_a_server_that_has_heard_enough_gets_no_end() -> None:
    """It answers between the last block and the dot, which would make a whole of the message."""
    async with Listening(polite()) as server:
        client = await server.dial()

        async def blocks() -> AsyncIterator[bytes]:
            yield b"a: b\r\n"
            server.peers[0].transport.write(b"552 5.3.4 too much\r\n")
            await client.when_closed()

        outcome, = await client.send("a@example.com", ["b@example.org"], blocks())
        assert isinstance(outcome.failure, Refused) and str(outcome.status) == "5.3.4"
        assert server.peers[0].in_data and not outcome.in_flight


@pytest_twisted.ensureDeferred
async def test_what_is_not_offered_fails_clearly() -> None:
    async with Listening(polite("SIZE 100")) as server:
        client = await server.dial()
        for sender, message, status in (
                ("a@example.com", "a: b\r\n\r\né".encode(), "5.6.3"),
                ("é@example.com", b"x\r\n", "5.6.7"),
                ("a@example.com", "Subject: é\r\n\r\n".encode(), "5.6.7"),
                ("a@example.com", b"x" * 101, "5.3.4")):
            outcome, = await client.send(sender, ["b@example.org"], message)
            assert isinstance(outcome.failure, NotOffered) and str(outcome.status) == status
        outcomes = await client.send("a@example.com", ["é@example.org", "b@example.org"], b"x\r\n")
        assert kinds(outcomes) == ["NotOffered", "accepted"]
        assert all(line.isascii() for line in server.peers[0].lines)
        client.close()


@pytest.mark.parametrize("extensions", [(), ("CHUNKING", "PIPELINING")])
@pytest_twisted.ensureDeferred
async def test_a_large_message_is_read_as_the_server_takes_it(extensions: tuple[str, ...]) -> None:
    produced = 0

    def blocks() -> Iterator[bytes]:
        nonlocal produced
        for _ in range(1000):
            produced += 65_536
            yield b"x" * 65_534 + b"\r\n"

    def answer(peer: Peer, line: bytes) -> bytes | None:
        if line == b"DATA" or (line.startswith(b"RCPT") and extensions):
            peer.transport.pauseProducing()
        return polite(*extensions)(peer, line)

    outcome = await one(answer, message=blocks())
    assert isinstance(outcome.failure, TimedOut) and not outcome.in_flight
    assert 0 < produced < 32 * 2**20


@pytest.mark.parametrize("extensions", [(), ("CHUNKING", "PIPELINING")])
@pytest_twisted.ensureDeferred
async def test_a_message_that_cannot_be_read_is_not_taken(extensions: tuple[str, ...]) -> None:
    def blocks() -> Iterator[bytes]:
        yield b"x\r\n" * 100_000
        raise OSError("disk gone")

    outcome = await one(polite(*extensions), message=blocks())
    assert isinstance(outcome.failure, BadMessage) and "disk gone" in outcome.failure.text
    assert outcome.temporary and not outcome.in_flight


@pytest_twisted.ensureDeferred
async def test_a_server_that_never_hangs_up_is_left() -> None:
    async with Listening(polite()) as server:
        client = await server.dial()
        await client.quit()
        for _ in range(100):
            if not client._line.connected:
                break
            await deferLater(reactor, 0.02)
        assert not client._line.connected


@pytest.mark.parametrize("extensions", [(), ("CHUNKING",), ("CHUNKING", "PIPELINING")])
@pytest_twisted.ensureDeferred
async def test_a_large_message_arrives(extensions: tuple[str, ...]) -> None:
    message = b"Subject: big\r\n\r\n" + b"".join(b".%d\r\n" % n for n in range(100_000))
    async with Listening(polite(*extensions)) as server:
        client = await server.dial(timeouts=Timeouts())
        outcome, = await client.send("a@example.com", ["b@example.org"], message)
        assert outcome.accepted
        got = server.peers[0].message
        if not extensions:
            got = got.removesuffix(b".\r\n").replace(b"\r\n..", b"\r\n.")
        assert got == message
        client.close()


# ---- arguments -----------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_bad_argument_sends_nothing() -> None:
    async with Listening(polite("PIPELINING")) as server:
        client = await server.dial()
        for sender, recipients in (("a\r\n@x", ["b@y"]), ("a@x", ["b@y", "c@z>\r\nDATA"]),
                                   ("a@x", []), ("a@x", [""])):
            with pytest.raises(BadArgument):
                await client.send(sender, recipients, MESSAGE)
        assert server.peers[0].lines == []
        client.close()


@pytest_twisted.ensureDeferred
async def test_send_mail_raises_when_nobody_gets_it() -> None:
    async with Listening(polite(rcpt=b"550 5.1.1 no\r\n")) as server:
        with pytest.raises(NotSent) as caught:
            await send_mail("127.0.0.1", "a@example.com", ["b@example.org"], MESSAGE,
                            port=server.port)
        outcome, = caught.value.outcomes
        assert isinstance(outcome, Outcome) and outcome.permanent
