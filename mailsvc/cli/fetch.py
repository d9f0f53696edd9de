"""``mailsvc fetch``: mail from a POP3 server into a maildir, an mbox, or standard output."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from twisted.internet.defer import Deferred

from mailsvc.blocking import run
from mailsvc.cli.arguments import password_options
from mailsvc.cli.listing import json_option, print_json
from mailsvc.cli.remote import host_and_port, is_no_host, read_secret, with_remedy, without_greeting
from mailsvc.fetching import Fetcher, FetchFailure
from mailsvc.mailfile import Place, Seen, Stream, place
from mailsvc.trust import UNVERIFIED, Trust

#: How many RETR go out ahead, where the server lets them.
_AHEAD = 16


@click.command(epilog="""\b
Status: 0 done; 2 the command line is wrong; 68 no such server; 69 refused; 73
a message could not be written; 75 try again later; 76 the server does not
speak the protocol; 77 login or TLS failed.  What had been stored stays.

\b
Example:
  mailsvc fetch --server mail.example.org --user bob@example.org \\
      --password-file secret --into maildir:/home/bob/Maildir --new
""")
@click.option("--server", metavar="HOST[:PORT]", required=True,
              help="Where to fetch from.")
@click.option("--port", type=click.IntRange(1, 65_535),
              help="The port, if --server names none [995, or 110 without implicit TLS].")
@click.option("--user", metavar="NAME", required=True, help="Whose mail to fetch.")
@password_options("The password, or with XOAUTH2 and OAUTHBEARER the token [asked for].")
@click.option("--auth", metavar="MECHANISM", default="",
              help="A SASL mechanism, USER or APOP [the best that is offered].")
@click.option("--tls", type=click.Choice(["implicit", "starttls", "no"]),
              help="[implicit on port 995 or without a port, else starttls]")
@click.option("--ca", metavar="FILE", help="Authorities to trust [the system's].")
@click.option("--no-verify", is_flag=True, help="Take any certificate.")
@click.option("--cleartext", is_flag=True, help="Let the password be sent without TLS.")
@click.option("--into", metavar="maildir:DIR|mbox:FILE|-", default="-", show_default=True,
              help="Where to put the messages.")
@click.option("--new", is_flag=True,
              help="Only what was not fetched before; remembers it in --uidl-file "
                   "[~/.local/state/mailsvc/fetch/USER@HOST].")
@click.option("--uidl-file", metavar="FILE", help="Where --new remembers; implies it.")
@click.option("--delete", is_flag=True,
              help="Delete on the server what has been stored; also what was fetched before.")
@click.option("--timeout", metavar="SECONDS", type=click.FloatRange(min=0.1), default=600.0,
              show_default=True, help="For each answer.")
@click.option("--verbose", "-v", is_flag=True, help="Show the dialogue on standard error.")
@json_option
def fetch(**options: Any) -> None:
    """Fetch mail by POP3.

    A message is deleted on the server only after it has been written to disk, and what is deleted
    goes when all has been fetched.  --json prints an object with messages (number, unique_id,
    octets, deleted), skipped and error.
    """
    job = _Job(options)
    with contextlib.suppress(FetchFailure, OSError):
        run(job.do)
    sys.exit(job.report())


class _Job:
    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._host, port = host_and_port(options["server"], options["port"] or 0)
        self._tls = options["tls"] or ("implicit" if port in (0, 995) else "starttls")
        self._port = port
        try:
            self._place: Place = place(options["into"])
        except (ValueError, OSError) as problem:
            raise click.UsageError(f"--into: {problem}") from None
        if options["delete"] and not self._place.durable:
            raise click.UsageError("--delete needs --into maildir:DIR or mbox:FILE: what is on "
                                   "standard output is not stored yet")
        if options["as_json"] and isinstance(self._place, Stream):
            raise click.UsageError("--json needs --into maildir:DIR or mbox:FILE")
        self._seen: Seen | None = None
        if options["new"] or options["uidl_file"]:
            state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
            name = f"{options['user']}@{self._host}".replace("/", "_")
            self._seen = Seen(Path(options["uidl_file"] or
                                   Path(state) / "mailsvc" / "fetch" / name))
        self._secret = read_secret(options["password_file"])
        self.messages: list[dict[str, Any]] = []
        self.skipped = 0
        self.failure: FetchFailure | OSError | None = None
        self._greeted = False

    async def do(self) -> None:
        options = self._options
        trust = UNVERIFIED if options["no_verify"] else Trust(authorities=options["ca"] or "")
        try:
            client = await Fetcher.dial(
                self._host, self._port, tls=self._tls, trust=trust, seconds=options["timeout"],
                transcript=self._heard if options["verbose"] else None)
            self._greeted = True
            try:
                token = options["auth"].upper() in ("XOAUTH2", "OAUTHBEARER")
                await client.log_in(
                    options["user"], "" if token else self._secret,
                    token=self._secret if token else "", mechanism=options["auth"],
                    cleartext=options["cleartext"])
                await self._fetch_all(client)
                # Deletions count from here on; a failure before leaves all where it was.
                await client.quit()
                for each in self.messages:
                    each["deleted"] = options["delete"]
            finally:
                client.close()
        except (FetchFailure, OSError) as failure:
            self.failure = failure
            raise

    async def _fetch_all(self, client: Fetcher) -> None:
        listed = await self._listed(client)
        wanted = [(number, unique_id) for number, unique_id in listed
                  if self._seen is None or unique_id not in self._seen]
        self.skipped = len(listed) - len(wanted)
        deletions: list[Deferred[Any]] = []
        if self._options["delete"]:
            new = {number for number, _ in wanted}
            deletions += [client.delete(number) for number, _ in listed if number not in new]
        ahead = _AHEAD if "PIPELINING" in client.capabilities else 1
        under_way: list[tuple[int, str, Deferred[Any]]] = []
        for number, unique_id in [*wanted, *[(0, "")] * min(ahead, len(wanted))]:
            if number:
                under_way.append((number, unique_id, self._store(client, number, unique_id)))
            if under_way and (len(under_way) >= ahead or not number):
                done, _, stored = under_way.pop(0)
                try:
                    await stored
                except BaseException:
                    for _, _, each in under_way:
                        each.addErrback(lambda _: None)
                    raise
                if self._options["delete"]:
                    deletions.append(client.delete(done))
        for each in deletions:
            await each
        if self._seen is not None:
            self._seen.keep({unique_id for _, unique_id in listed})

    async def _listed(self, client: Fetcher) -> Sequence[tuple[int, str]]:
        try:
            return await client.unique_ids()
        except FetchFailure as failure:
            if failure.kind != "refused" or self._seen is not None:
                raise
            # RFC 1939 §7: UIDL is optional.
            return [(number, "") for number in await client.sizes()]

    def _store(self, client: Fetcher, number: int, unique_id: str) -> Deferred[Any]:
        """Fetch a message and put it where it belongs; it is there when this fires."""
        message = _Message(self._place)

        def stored(_: Any) -> None:
            message.finish()
            if self._seen is not None:
                self._seen.add(unique_id)
            self.messages.append({"number": number, "unique_id": unique_id,
                                  "octets": message.octets, "deleted": False})

        def failed(failure: Any) -> Any:
            message.abandon(failure.value)
            return failure

        return client.retrieve(number, message.write).addCallback(stored).addErrback(failed)

    def _heard(self, sent: bool, line: str) -> None:
        click.echo(f"{' ->' if sent else '<- '} {line}", err=True)

    def report(self) -> int:
        failure = self.failure
        text = "" if failure is None else (
            with_remedy(failure.text, failure.reason) if isinstance(failure, FetchFailure)
            else f"{self._options['into']}: {failure.strerror or failure}")
        if (isinstance(failure, FetchFailure) and failure.kind in ("lost", "time")
                and not self._greeted):
            text = without_greeting(text, self._tls)
        if self._options["as_json"]:
            print_json({"messages": self.messages, "skipped": self.skipped,
                        "error": text or None})
        elif failure is not None:
            click.echo(f"*** {text}", err=True)
        else:
            click.echo(f"{len(self.messages)} fetched, {self.skipped} skipped", err=True)
        if failure is None:
            return os.EX_OK
        if isinstance(failure, OSError):
            return os.EX_CANTCREAT
        if failure.kind in ("login", "tls"):
            # A maildrop in use is no wrong password.
            return os.EX_TEMPFAIL if failure.kind == "login" and failure.temporary else (
                os.EX_NOPERM)
        if is_no_host(failure.text):
            return os.EX_NOHOST
        return {"protocol": os.EX_PROTOCOL, "refused": os.EX_UNAVAILABLE}.get(
            failure.kind, os.EX_TEMPFAIL)


class _Message:
    """One message on its way; the place is opened with its first octet."""

    def __init__(self, where: Place) -> None:
        self._where = where
        self._stack: contextlib.ExitStack | None = None
        self._write: Any = None
        self.octets = 0

    def write(self, block: bytes) -> None:
        self._begin()
        self.octets += len(block)
        self._write(block)

    def finish(self) -> None:
        self._begin()
        assert self._stack is not None
        stack, self._stack = self._stack, None
        stack.__exit__(None, None, None)

    def abandon(self, error: BaseException) -> None:
        if self._stack is not None:
            stack, self._stack = self._stack, None
            with contextlib.suppress(BaseException):
                stack.__exit__(type(error), error, error.__traceback__)

    def _begin(self) -> None:
        if self._stack is None:
            self._stack = contextlib.ExitStack()
            self._write = self._stack.enter_context(self._where.message())
