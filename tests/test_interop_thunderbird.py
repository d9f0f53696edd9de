"""Thunderbird sets itself up for an address, by what ``mailsvc autoconfig`` says, and logs in; and
it shows our delivery reports.

It runs without a window and is driven by Marionette, its own remote control.  What runs inside it
calls the search and the check of its account set-up (``interop/thunderbird-setup.js``), or opens a
message as a double click does and reads what its window shows (``interop/thunderbird-report.js``).
"""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from mailsvc.cli.autoconfig import thunderbird
from mailsvc.mail import Address
from mailsvc.queue.dsn import TEXTS, Report
from mailsvc.queue.message import QueuedMessage, QueuedRecipient
from tests.authority import Authority
from tests.service import PATIENCE, Service

USER, PASSWORD = "alice@example.org", "se cret"
SCRIPTS = Path(__file__).parent / "interop"
#: As Thunderbird counts them: TLS from the first octet, STARTTLS; a password as it is.
TLS, STARTTLS, PLAIN = 3, 2, 3


@contextmanager
def web(xml: bytes) -> Iterator[int]:
    """A proxy that knows one page of the web; its port."""
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.partition("?")[0] == (
                    "http://autoconfig.example.org/mail/config-v1.1.xml"):
                self.send_response(200)
                self.send_header("Content-Type", "text/xml")
                self.send_header("Content-Length", str(len(xml)))
                self.end_headers()
                self.wfile.write(xml)
            else:
                self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


class Marionette:
    """A Thunderbird that does what it is told.

    :param command: the program.
    :param home: an empty directory.
    :param proxy: the port that is the web.
    """

    def __init__(self, command: str, home: Path, proxy: int) -> None:
        profile = home / "profile"
        profile.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        preferences = {
            "marionette.port": port, "network.proxy.type": 1, "network.proxy.http": "127.0.0.1",
            "network.proxy.http_port": proxy, "network.proxy.ssl": "127.0.0.1",
            "network.proxy.ssl_port": proxy, "network.proxy.no_proxies_on": "localhost",
            "mailnews.auto_config_url": "http://nowhere.invalid/", "app.update.enabled": False,
            "datareporting.policy.dataSubmissionEnabled": False}
        (profile / "user.js").write_text("".join(
            f"user_pref({json.dumps(name)}, {json.dumps(value)});\n"
            for name, value in preferences.items()))
        self._commands = 0
        self.process = subprocess.Popen(
            [command, "--headless", "--marionette", "-remote-allow-system-access", "--no-remote",
             "--profile", str(profile)],
            env={**os.environ, "HOME": str(home)}, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL)
        try:
            self._socket = self._connect(port)
            self._answers = self._socket.makefile("rb")
            self._read()
        except BaseException:
            self.process.kill()
            raise

    def __enter__(self) -> Marionette:
        self.tell("WebDriver:NewSession", capabilities={
            "alwaysMatch": {"timeouts": {"script": 60_000}}})
        self.tell("Marionette:SetContext", value="chrome")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(self, script: str, *arguments: str) -> Any:
        """What comes of a file of SCRIPTS."""
        outcome = self.tell("WebDriver:ExecuteAsyncScript", script=(SCRIPTS / script).read_text(),
                            args=arguments)["value"]
        assert "error" not in outcome, outcome
        return outcome

    def _connect(self, port: int) -> socket.socket:
        deadline = time.monotonic() + 2 * PATIENCE
        while True:
            try:
                return socket.create_connection(("127.0.0.1", port), 3 * PATIENCE)
            except OSError:
                assert self.process.poll() is None, "Thunderbird has ended"
                assert time.monotonic() < deadline, "Thunderbird does not answer"
                time.sleep(0.2)

    def _read(self) -> Any:
        length = b""
        while (octet := self._answers.read(1)) != b":":
            assert octet, "Thunderbird has hung up"
            length += octet
        return json.loads(self._answers.read(int(length)))

    def tell(self, command: str, **parameters: Any) -> Any:
        """Give a command; what it answers."""
        self._commands += 1
        message = json.dumps([0, self._commands, command, parameters]).encode()
        self._socket.sendall(b"%d:%b" % (len(message), message))
        _, _, error, answer = self._read()
        assert error is None, error
        return answer

    def stop(self) -> None:
        self._answers.close()
        self._socket.close()
        self.process.terminate()
        try:
            self.process.wait(PATIENCE)
        finally:
            self.process.kill()


@pytest.mark.slow
def test_an_account_sets_itself_up(program: Callable[[str], str], tmp_path: Path) -> None:
    command = program("thunderbird")
    authority = Authority()
    folder = authority.issue("localhost").write(tmp_path / "tls")
    options = ("--tls-cert", str(folder / "fullchain.pem"), "--tls-key",
               str(folder / "privkey.pem"), "--submission", "0", "--submissions", "0",
               "--pop3s", "0", "--set", "pop3.allow_cleartext_auth=no")
    with Service(tmp_path / "data", (f"{USER}:{PASSWORD}",), options) as service:
        ports = {kind: port for kind, (_, port) in service.listeners.items()}
        xml = thunderbird("example.org", "localhost", {
            "_pop3s": [ports["pop3s"]], "_pop3": [ports["pop3"]],
            "_submissions": [ports["submissions"]], "_submission": [ports["submission"]]})
        root = base64.b64encode(authority.root.public_bytes(Encoding.DER)).decode()
        with web(xml.encode()) as proxy, Marionette(command, tmp_path, proxy) as client:
            outcome = client.run("thunderbird-setup.js", USER, PASSWORD, root)

        def server(kind: str, protocol: str, security: int) -> dict[str, Any]:
            return {"hostname": "localhost", "port": ports[kind], "socketType": security,
                    "auth": PLAIN, "username": "%EMAILADDRESS%", "type": protocol}

        assert outcome["found"]["incoming"] == [server("pop3s", "pop3", TLS),
                                                server("pop3", "pop3", STARTTLS)]
        assert outcome["found"]["outgoing"] == [server("submissions", "smtp", TLS),
                                                server("submission", "smtp", STARTTLS)]
        # Its own check has fetched nothing, over TLS with the certificate verified.
        assert f"logged in user='{USER}' messages=0" in service.log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("language", TEXTS)
def test_a_report_is_shown(program: Callable[[str], str], tmp_path: Path, language: str) -> None:
    command = program("thunderbird")
    bob = Address("bob", "example.net")
    recipient = QueuedRecipient(bob, bob, status="5.1.1", reply="550 5.1.1 No such user",
                                host="mx.example.net", tried=0.0)
    message = QueuedMessage("M1", 0.0, Address("alice", "example.org"), [recipient])
    report = Report("failed", message, [recipient], "mx.example.org", 0.0, language=language)
    file = tmp_path / "report.eml"
    file.write_bytes(report.write(
        "R1", b"Subject: lunch\r\nFrom: alice@example.org\r\n\r\nAt noon?\r\n"))
    with Marionette(command, tmp_path, 1) as client:
        shown = client.run("thunderbird-report.js", str(file))
    words = TEXTS[language]
    assert shown["subject"].endswith(words.subjects["failed"])
    # First what is for people, then what is for programs, then the header of the message.
    text = "".join(shown["text"].split())
    paragraph = words.paragraphs["failed"].format(host="mx.example.org")
    _, _, below = text.partition("".join(paragraph.split()))
    assert below.startswith("<bob@example.net>"), text
    assert re.search("Final-Recipient:rfc822;bob@example.net.*Action:failed.*Status:5.1.1.*"
                     "Diagnostic-Code:smtp;5505.1.1Nosuchuser.*Subject:lunch", below), below
    assert shown["attachments"] == []
