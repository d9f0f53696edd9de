"""aiosmtpd in a thread of its own, on loopback."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiosmtpd.smtp import SMTP


@contextmanager
def listening(handler: Any, **options: Any) -> Iterator[int]:
    """It listens and hands what comes to *handler*; its port.  *options* are aiosmtpd's."""
    ready, ports = threading.Event(), []
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        server = await loop.create_server(
            lambda: SMTP(handler, loop=loop, **options), "127.0.0.1", 0)
        ports.append(server.sockets[0].getsockname()[1])
        ready.set()

    def run() -> None:
        loop.run_until_complete(serve())
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
