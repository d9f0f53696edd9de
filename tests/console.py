"""A client of the console: what a browser does with cookies and forms, without scripts."""

from __future__ import annotations

import contextlib
import html
import re
import secrets
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

from tests.service import PATIENCE, Service

ALICE, BOB = "alice@example.org", "bob@example.org"  # the first administers
PASSWORD = "secret"
ACCOUNTS = (f"{ALICE}:{PASSWORD}", f"{BOB}:{PASSWORD}")


@contextlib.contextmanager
def serving(path: Path, *options: str, workers: int = 2,
            accounts: tuple[str, ...] = ACCOUNTS) -> Iterator[Service]:
    """A service with a console."""
    with Service(path / "data", accounts, (
            "--console", "127.0.0.1:0", "--workers", str(workers), *options)) as service:
        yield service


@dataclass
class Shown:
    """What was answered."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def text(self) -> str:
        """The page, as a person would read it in the source."""
        return html.unescape(self.content.decode())

    @property
    def where(self) -> str:
        """Where it leads on to."""
        return self.headers.get("location", "")


class Browser:
    """Somebody with cookies.  Each request is a connection of its own, to any worker."""

    def __init__(self, service: Service, language: str = "en") -> None:
        self.address = service.listeners["console"]
        self.cookies: dict[str, str] = {}
        self._tokens: dict[str, str] = {}
        self.language = language

    def ask(self, path: str, method: str = "GET", body: bytes | None = None,
            **headers: str) -> Shown:
        connection = HTTPConnection(*self.address, timeout=PATIENCE)
        sent = {"Accept-Language": self.language,
                **{name.replace("_", "-"): value for name, value in headers.items()}}
        if self.cookies:
            sent["Cookie"] = "; ".join(map("=".join, self.cookies.items()))
        with contextlib.closing(connection):
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            content = answer.read()
            for name, value in answer.getheaders():
                if name.lower() == "set-cookie":
                    key, _, rest = value.partition("=")
                    self.cookies[key] = rest.partition(";")[0]
            return Shown(answer.status, {
                name.lower(): value for name, value in answer.getheaders()}, content)

    @property
    def token(self) -> str:
        """What forms carry: as any page has it that there is for everybody."""
        cookie = self.cookies.get("mailsvc", "")
        if cookie not in self._tokens or not cookie:
            found = re.search(r'name="token" value="([0-9a-f]{64})"',
                              self.ask("/nowhere").content.decode())
            assert found
            self._tokens[cookie := self.cookies["mailsvc"]] = found[1]
        return self._tokens[cookie]

    def post(self, path: str, fields: Mapping[str, str | Sequence[str]] | None = None, *,
             token: str | None = None, **headers: str) -> Shown:
        """Fill in a form and send it."""
        filled = {"token": self.token if token is None else token, **(fields or {})}
        return self.ask(path, "POST", urllib.parse.urlencode(filled, doseq=True).encode(),
                        Content_Type="application/x-www-form-urlencoded", **headers)

    def upload(self, path: str, fields: Mapping[str, str],
               files: Sequence[tuple[str, str, bytes]] = ()) -> Shown:
        """The same with files: field, name, content."""
        body, kind = multipart({"token": self.token, **fields}, files)
        return self.ask(path, "POST", body, Content_Type=kind)

    def log_in(self, name: str = ALICE, password: str = PASSWORD) -> Browser:
        shown = self.post("/login", {"name": name, "password": password})
        assert (shown.status, shown.where) == (303, "/"), shown.text
        return self


def multipart(fields: Mapping[str, str],
              files: Sequence[tuple[str, str, bytes]] = ()) -> tuple[bytes, str]:
    """A body as browsers write it (RFC 7578), and its type."""
    boundary = f"----{secrets.token_hex(12)}"
    blocks = []
    for name, value in fields.items():
        blocks.append(f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'
                      f"{value}\r\n".encode())
    for name, file, content in files:
        escaped = file.replace('"', "%22")
        blocks.append(f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; '
                      f'filename="{escaped}"\r\nContent-Type: application/octet-stream\r\n\r\n'
                      .encode() + content + b"\r\n")
    return b"".join(blocks) + f"--{boundary}--\r\n".encode(), (
        f"multipart/form-data; boundary={boundary}")
