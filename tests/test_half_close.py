"""Clients that close their side behind their last command still get every answer (``nc -N``)."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.service import Service

ROUNDS = 10
BIG = b"x" * 70 + b"\r\n"
USER, PASSWORD = "bob@example.org", "secret"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("half") / "data", (f"{USER}:{PASSWORD}",)) as running:
        yield running


def whole_talk(address: tuple[str, int], said: bytes) -> bytes:
    """Say all at once, close for writing, and read to the end."""
    with socket.create_connection(address, timeout=30) as peer:
        peer.sendall(said)
        peer.shutdown(socket.SHUT_WR)
        heard = b""
        while block := peer.recv(65536):
            heard += block
    return heard


@pytest.mark.parametrize("ending", [b"", b"RSET\r\n", b"QUIT\r\n"])
def test_smtp(service: Service, ending: bytes) -> None:
    said = (b"EHLO client.test\r\nMAIL FROM:<>\r\nRCPT TO:<" + USER.encode()
            + b">\r\nDATA\r\nSubject: x\r\n\r\nx\r\n.\r\n" + ending)
    for _ in range(ROUNDS):
        codes = [line[:3] for line in whole_talk(service.smtp, said).splitlines()
                 if line[3:4] == b" "]
        last = {b"": [], b"RSET\r\n": [b"250"], b"QUIT\r\n": [b"221"]}[ending]
        assert codes == [b"220", b"250", b"250", b"250", b"354", b"250", *last]


@pytest.mark.parametrize("lines", [1, 20_000])
def test_pop3(service: Service, lines: int) -> None:
    """Nothing is deleted that the client did not get."""
    text = b"Subject: x\r\n\r\n" + BIG * lines
    user, password = USER.encode(), PASSWORD.encode()
    for path in service.maildir(USER).glob("new/*"):
        path.unlink()
    for _ in range(ROUNDS if lines == 1 else 3):
        whole_talk(service.smtp, b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<" + user + b">\r\nDATA\r\n"
                   + text + b".\r\nQUIT\r\n")
        heard = whole_talk(service.pop3, b"USER " + user + b"\r\nPASS " + password
                           + b"\r\nRETR 1\r\nDELE 1\r\nQUIT\r\n")
        assert text + b".\r\n+OK" in heard
        assert heard.count(b"+OK") == 6
        assert not list(service.maildir(USER).glob("new/*"))
