"""mailsvc.queue.security.https against a server on loopback that does what it should not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor

from mailsvc.queue.exchangers import Place, Unroutable
from mailsvc.queue.security.https import HTTPS, HTTPFailure
from tests.authority import Authority, pem
from tests.policyhost import PolicyHost


class World:
    """A server, and who asks it.

    :ivar addresses: of every host.
    """

    def __init__(self, host: PolicyHost, ca: Path) -> None:
        self.host = host
        self.ca = ca
        self.addresses = ["127.0.0.1"]

    async def places(self, name: str) -> list[Place]:
        if not self.addresses:
            raise Unroutable(f"there is no domain {name}", 5, 1, 2)
        return [Place(name, address) for address in self.addresses]

    async def get(self, name: str = "a.example", *, authorities: str | None = None,
                  loopback: bool = True) -> bytes:
        web = HTTPS(self.places, str(self.ca) if authorities is None else authorities, loopback,
                    reactor)
        return await web.get(f"https://{name}:{self.host.port}/p", "text/plain", 65_536)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    authority = Authority()
    (tmp_path / "ca.pem").write_bytes(pem(authority.root))
    (tmp_path / "cert.pem").write_bytes(authority.issue("a.example").combined)
    with PolicyHost(tmp_path / "cert.pem") as host:
        yield World(host, tmp_path / "ca.pem")


@pytest_twisted.ensureDeferred
async def test_what_is_there_is_read(world: World) -> None:
    for kind in "text/plain", "Text/Plain; charset=utf-8":
        for content in b"", b"policy\r\n", b"x" * 65_536:
            world.host.answers["a.example"] = 200, kind, content
            assert await world.get() == content


ANSWERS: dict[str, tuple[tuple[int, str, bytes], str]] = {
    "absent": ((404, "text/plain", b""), "the answer is 404, expected 200"),
    "moved": ((301, "text/plain", b"https://a.example/"), "the answer is 301, expected 200"),
    "partial": ((206, "text/plain", b"x"), "the answer is 206, expected 200"),
    "web page": ((200, "text/html", b"<html>"), "is text/html, expected text/plain"),
    "too long": ((200, "text/plain", b"x" * 65_537), "more than 65536 octets"),
    "much too long": ((200, "text/plain", b"x" * 10_000_000), "more than 65536 octets"),
    "endless header": ((0, "", b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 1000 + b"\r\n"), ""),
    "endless line": ((0, "", b"y" * 1000), ""),
    "no HTTP": ((0, "", b"220 mx.a.example ESMTP\r\n"), ""),
}


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("name", ANSWERS)
async def test_what_is_no_answer_is_said_to_be_none(world: World, name: str) -> None:
    world.host.answers["a.example"], problem = ANSWERS[name]
    with pytest.raises(HTTPFailure) as raised:
        await world.get()
    assert problem in raised.value.text and not raised.value.certificate


@pytest_twisted.ensureDeferred
async def test_who_does_not_answer_is_left(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mailsvc.queue.security.https._PATIENCE", 0.5)
    world.host.answers["a.example"] = 0, "", b""
    # The time is for all of its addresses: mail waits meanwhile.
    world.addresses = ["127.0.0.1"] * 3
    with pytest.raises(HTTPFailure):
        await world.get()
    assert len(world.host.asked) == 1


@pytest_twisted.ensureDeferred
async def test_who_does_not_prove_its_name_is_not_asked(world: World) -> None:
    for name, authorities in ("b.example", None), ("a.example", ""):
        with pytest.raises(HTTPFailure) as raised:
            await world.get(name, authorities=authorities)
        assert raised.value.certificate, raised.value.text
    assert world.host.asked == []


@pytest_twisted.ensureDeferred
async def test_addresses_are_tried_in_turn(world: World) -> None:
    world.host.answers["a.example"] = 200, "text/plain", b"here"
    world.addresses = ["127.0.0.9", "127.0.0.1"]
    assert await world.get() == b"here"


@pytest_twisted.ensureDeferred
async def test_hosts_that_cannot_be_asked(world: World, tmp_path: Path) -> None:
    async def problem(**options: Any) -> str:
        with pytest.raises(HTTPFailure) as raised:
            await world.get(**options)
        return raised.value.text

    assert "no address but this machine's own" in await problem(loopback=False)
    assert "expected a PEM file" in await problem(authorities=str(tmp_path / "none.pem"))
    world.addresses = ["127.0.0.9"]
    assert "refused" in (await problem()).lower()
    world.addresses = []
    assert await problem() == "there is no domain a.example"
