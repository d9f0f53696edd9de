"""A listener between a client and a server that records what the client says.

With it a test needs no knowledge of how a mail program composes a message: what went over the wire
is what must come out of the mailbox.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator


class Tap:
    """Relays connections to *upstream*; use as a context manager.

    :ivar address: where to connect instead.
    :ivar spoken: what each client said, one bytearray per connection, in the order of connecting.
    """

    def __init__(self, upstream: tuple[str, int]) -> None:
        self.upstream = upstream
        self.spoken: list[bytearray] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> Tap:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        # shutdown() wakes the thread that waits in accept(); close() alone would not.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._listener.close()
        for connection in self._open:
            connection.close()

    def messages(self) -> list[bytes]:
        """The messages that clients sent by DATA, dots unstuffed."""
        return [message for spoken in self.spoken for message in _messages(bytes(spoken))]

    def commands(self) -> list[bytes]:
        """The command lines that clients said, messages left out."""
        return [line for spoken in self.spoken for line in _commands(bytes(spoken))]

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self.upstream)
            spoken = bytearray()
            self.spoken.append(spoken)
            self._open += [client, server]
            threading.Thread(target=_relay, args=(client, server, spoken), daemon=True).start()
            threading.Thread(target=_relay, args=(server, client, bytearray()),
                             daemon=True).start()


def _relay(source: socket.socket, target: socket.socket, record: bytearray) -> None:
    try:
        while block := source.recv(65536):
            record += block
            target.sendall(block)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return  # the other direction closed the pair


def _dialogue(spoken: bytes) -> Iterator[tuple[bool, bytes]]:
    """Each command line, and (True, …) each message."""
    position = 0
    while (end := spoken.find(b"\r\n", position)) >= 0:
        line = spoken[position:end]
        yield False, line
        position = end + 2
        if line.upper() == b"DATA":
            # The CRLF of DATA itself may begin the terminator of an empty message.
            stop = spoken.index(b"\r\n.\r\n", end)
            stuffed = spoken[position:stop + 2]
            yield True, b"\r\n".join(text.removeprefix(b".") for text in stuffed.split(b"\r\n"))
            position = stop + 5


def _messages(spoken: bytes) -> Iterator[bytes]:
    return (text for is_message, text in _dialogue(spoken) if is_message)


def _commands(spoken: bytes) -> Iterator[bytes]:
    return (text for is_message, text in _dialogue(spoken) if not is_message)
