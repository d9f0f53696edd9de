"""The first hour of a mail domain, typed as somebody would; prints what the terminal shows.

    python -m tests.first_hour > docs/first-hour.txt     # as root

Everything outside the host is a stand-in, in a network of its own: a DNS server, to whose zone goes
what ``mailsvc`` says is to be published; Pebble, an authority for certificates; and Postfix as
somebody else's mail server.  The host has the address 192.0.2.7 and the ports that mail has.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.apart import apart, found
from tests.daemons import Postfix
from tests.nameserver import NameServer
from tests.pebble import Pebble

ADDRESS, HOST, DOMAIN = "192.0.2.7", "mail.example.org", "example.org"
YOU = f"you@{DOMAIN}"
CONFIGURATION = "/srv/mail/mailsvc.toml"
RESOLVER = "nameserver 127.0.0.1\noptions timeout:1 attempts:2\n"
#: How long one thing may take, seconds.
PATIENCE = 60.0


def main() -> None:
    with apart("tests.first_hour", [ADDRESS], RESOLVER) as folder, ExitStack() as stack:
        subprocess.run(["mount", "-t", "tmpfs", "none", "/srv"], check=True)
        zone = {HOST: [f"A {ADDRESS}"], "7.2.0.192.in-addr.arpa": [f"PTR {HOST}"]}
        stack.enter_context(NameServer(zone, 53))
        authority = stack.enter_context(Pebble(found, folder, 80, "127.0.0.1:53"))
        # What everybody trusts.
        trusted = folder / "trusted.pem"
        trusted.write_bytes(authority.root.read_bytes() + authority.issuer())
        os.environ["SSL_CERT_FILE"] = os.environ["REQUESTS_CA_BUNDLE"] = str(trusted)
        os.environ["PATH"] = f"{sys.prefix}/bin:{os.environ['PATH']}"
        os.environ["COLUMNS"] = "100"
        print(_played(zone, authority), end="")


def _played(zone: dict[str, list[str]], authority: Pebble) -> str:
    began = time.monotonic()
    shell = Shell()
    shell.type(f"mailsvc quickstart {YOU} --hostname {HOST} --address {ADDRESS} --acme \\\n"
               f"      --dir /srv/mail --set acme.directory={authority.url}")
    (password,) = re.findall(rf"password of {YOU} is (\S+),", shell.shown)
    (start,) = re.findall(r"^ +\S*(twistd .*)$", shell.shown, re.MULTILINE)
    _publish(zone)
    shell.say("The records are in the DNS now.")
    with shell.running(start):
        shell.type(f"mailsvc --config {CONFIGURATION} acme show",
                   until=lambda shown: "\n  until " in shown)
        # Warnings are left: nobody keeps the clock right, and who would serve the policy?
        shell.type(f"mailsvc --config {CONFIGURATION} doctor {DOMAIN}", statuses=(0, 1))
        with Postfix(found, smtp_host_lookup="dns", myhostname="mx.example.net",
                     smtp_tls_security_level="may") as postfix:
            postfix.sendmail(f"From: bob@example.net\nTo: {YOU}\nSubject: hello\n\n"
                             "Does it work?\n".encode(), [YOU], "bob@example.net")
            postfix.until_sent(1)
        shell.say("Bob has written, from another server.")
        Path("/srv/password").write_text(password + "\n")
        shell.type(f"mailsvc fetch --server {HOST} --user {YOU} --password-file /srv/password")
        (id,) = re.findall(r"with ESMTPS id (\S+)", shell.shown)
        shell.type(f"mailsvc --config {CONFIGURATION} trace {id}",
                   until=lambda shown: "fetched" in shown)
    shell.say(f"All of this took {time.monotonic() - began:.0f} seconds.")
    return shell.transcript.rstrip() + "\n"


def _publish(zone: dict[str, list[str]]) -> None:
    """What ``mailsvc domain records`` says into *zone*."""
    told = subprocess.run(
        ["mailsvc", "--config", CONFIGURATION, "domain", "records", DOMAIN, "--json",
         "--address", ADDRESS], capture_output=True, check=True, timeout=PATIENCE).stdout
    for each in json.loads(told)["records"]:
        records = zone.setdefault(each["name"].rstrip("."), [])
        if (record := f"{each['type']} {each['value']}") not in records:
            records.append(record)


class Shell:
    """Somebody at a terminal.

    :ivar transcript: all that was typed and shown; *shown*: by the last command.
    """

    def __init__(self) -> None:
        self.transcript = self.shown = ""

    def say(self, sentence: str) -> None:
        """Note something that happened elsewhere."""
        self.transcript += f"# {sentence}\n\n"

    def type(self, line: str, *, statuses: Sequence[int] = (0,),
             until: Callable[[str], bool] = bool) -> None:
        """Enter a command, again and again *until* what it shows is what is waited for."""
        deadline = time.monotonic() + PATIENCE
        while True:
            done = subprocess.run(["sh", "-c", line], stdout=subprocess.PIPE, text=True,
                                  stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False,
                                  timeout=PATIENCE)
            self.shown = done.stdout
            if done.returncode in statuses and until(done.stdout):
                break
            if time.monotonic() > deadline or done.returncode not in statuses:
                sys.exit(f"{self.transcript}$ {line}\n{done.stdout}")
            time.sleep(0.2)
        self._shows(line, done.stdout)

    @contextmanager
    def running(self, line: str) -> Iterator[None]:
        """A command that goes on in the background."""
        with tempfile.TemporaryFile("w+") as log:
            process = subprocess.Popen(["sh", "-c", f"exec {line}"], stdout=log, stderr=log)
            deadline = time.monotonic() + PATIENCE
            try:
                while "acme listens" not in (said := _so_far(log.fileno())):
                    if time.monotonic() > deadline or process.poll() is not None:
                        sys.exit(f"{self.transcript}$ {line}\n{said}")
                    time.sleep(0.1)
                self._shows(f"{line} &", said)
                yield
            finally:
                process.terminate()
                process.wait(PATIENCE)

    def _shows(self, line: str, output: str) -> None:
        self.transcript += f"$ {line}\n" + "".join(
            each.rstrip().replace(f"{sys.prefix}/bin/", "") + "\n"
            for each in output.splitlines()) + "\n"


def _so_far(file: int) -> str:
    return os.pread(file, 1 << 20, 0).decode()


if __name__ == "__main__":
    main()
