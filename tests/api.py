"""A client of the API: requests over TCP with a login, or over the Unix socket."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from tests.console import ACCOUNTS, PASSWORD
from tests.service import PATIENCE, Service

ROOT = "/api/v1"


@contextlib.contextmanager
def serving(path: Path, *options: str, workers: int = 2,
            accounts: tuple[str, ...] = ACCOUNTS) -> Iterator[Service]:
    """A service with the API, beside the console and on a Unix socket."""
    with Service(path / "data", accounts, (
            "--console", "127.0.0.1:0", "--api", f"unix:{path}/api", "--workers", str(workers),
            "--set", "maildir.keep_deleted_days=1", *options)) as service:
        yield service


@dataclass
class Told:
    """What was answered."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def value(self) -> Any:
        """The JSON in it."""
        return json.loads(self.content)

    @property
    def problem(self) -> str:
        """What is wrong, which every refusal has to tell in the same form."""
        assert self.headers["content-type"] == "application/problem+json", self
        assert self.value["status"] == self.status, self
        assert {"type", "title", "detail"} <= self.value.keys(), self
        return str(self.value["detail"])


class _Local(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(str(self._path))


class Api:
    """Somebody who asks.  Each request is a connection of its own, to any worker.

    :param name: the account; "" for nobody.
    :param local: over the Unix socket.
    """

    def __init__(self, service: Service, name: str = "", password: str = PASSWORD, *,
                 local: bool = False) -> None:
        self._service = service
        self._login = name and base64.b64encode(f"{name}:{password}".encode()).decode()
        self._local = local

    def connection(self) -> HTTPConnection:
        return (_Local(self._service.directory.parent / "api") if self._local else
                HTTPConnection(*self._service.listeners["console"], timeout=PATIENCE))

    def ask(self, method: str, path: str, value: object = None, *, body: bytes | None = None,
            **headers: str) -> Told:
        """One request; with *value* as JSON, or with *body*."""
        sent = {name.replace("_", "-"): text for name, text in headers.items()}
        if self._login:
            sent.setdefault("Authorization", f"Basic {self._login}")
        if value is not None:
            body = json.dumps(value).encode()
            sent.setdefault("Content-Type", "application/json")
        with contextlib.closing(self.connection()) as connection:
            connection.request(method, ROOT + path, body, sent)
            answer = connection.getresponse()
            return Told(answer.status, {
                name.lower(): text for name, text in answer.getheaders()}, answer.read())

    def get(self, path: str) -> Any:
        """What is there."""
        told = self.ask("GET", path)
        assert told.status == 200, told
        return told.value
