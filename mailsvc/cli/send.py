"""``mailsvc send``: one message to one server, with the dialogue shown."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from mailsvc.blocking import run
from mailsvc.cli.arguments import password_options
from mailsvc.cli.listing import json_option, print_json
from mailsvc.cli.remote import host_and_port, is_no_host, read_secret, with_remedy, without_greeting
from mailsvc.client import (
    BadArgument,
    Client,
    Message,
    Outcome,
    Said,
    SendingFailure,
    Stage,
    Timeouts,
    Trust,
)
from mailsvc.composing import Attachment, BadPart, compose
from mailsvc.mail import DeliverBy
from mailsvc.sendmail import SOCKET
from mailsvc.smtp.failures import (
    BadMessage,
    BadReply,
    CannotConnect,
    CannotLogIn,
    Disconnected,
    LoginRefused,
    TimedOut,
)
from mailsvc.smtp.failures import TLSFailed as _TLSFailed
from mailsvc.smtp.grammar import SyntaxFault
from mailsvc.smtp.handling import deliver_by
from mailsvc.trust import UNVERIFIED

#: --quit-after, in the order of a dialogue; swaks's words for them count too.
_STAGES = ("connect", "banner", "hello", "tls", "auth", "mail", "rcpt")
_SYNONYMS = {"helo": "hello", "ehlo": "hello", "first-helo": "hello", "greeting": "banner",
             "from": "mail", "to": "rcpt", "starttls": "tls"}


class _By(click.ParamType):
    name = "SECONDS;R|N[T]"

    def convert(self, value: Any, param: click.Parameter | None,
                ctx: click.Context | None) -> DeliverBy:
        try:
            return deliver_by(value)
        except SyntaxFault as fault:
            self.fail(f"{value!r}: {fault}", param, ctx)


class _StageName(click.ParamType):
    name = "STAGE"

    def convert(self, value: Any, param: click.Parameter | None,
                ctx: click.Context | None) -> str:
        stage = _SYNONYMS.get(value.lower(), value.lower())
        if stage not in _STAGES:
            self.fail(f"{value!r} is no stage; expected one of {', '.join(_STAGES)}", param, ctx)
        return stage


@click.command(epilog="""\b
Status: 0 done; 2 the command line is wrong; 65 the message cannot be sent as
it is; 67 no such recipient; 68 no such server; 69 refused for good; 75 try
again later; 76 the server does not speak the protocol; 77 login or TLS
failed, or the sender may not do that.  If only some recipients were refused,
theirs.

\b
Example:
  mailsvc send --server mx.example.org --to bob@example.org --subject hello
  mailsvc send --server mail.example.org --port 587 --user me@example.org \\
      --password-file secret --from me@example.org --to you@example.net \\
      --subject report --body 'See there.' --attach report.pdf
""")
@click.option("--server", metavar="HOST[:PORT]|/SOCKET",
              help="Where to send to [the submission socket of the service here].")
@click.option("--port", type=click.IntRange(1, 65_535),
              help="The port, if --server names none [465 with --tls implicit, 587 with a login, "
                   "else 25].")
@click.option("--from", "sender", metavar="ADDRESS", default=None,
              help='The reverse-path, and From; "<>" for none [this user at this host].')
@click.option("--to", metavar="ADDRESS", multiple=True, help="A recipient; again for more.")
@click.option("--cc", metavar="ADDRESS", multiple=True, help="The same, named in Cc.")
@click.option("--bcc", metavar="ADDRESS", multiple=True, help="The same, not named.")
@click.option("--subject", metavar="TEXT", default="test", show_default=True,
              help="What it is about.")
@click.option("--body", metavar="TEXT", help="The text [one line that says what this is].")
@click.option("--html", metavar="FILE", type=click.Path(exists=True, dir_okay=False),
              help="The text in HTML too.")
@click.option("--attach", metavar="FILE", multiple=True, help="Attach a file; again for more.")
@click.option("--inline", metavar="FILE", multiple=True,
              help="Show an image in the text; --html refers to it as cid:NAME.")
@click.option("--header", metavar="'NAME: VALUE'", multiple=True, help="A further header field.")
@click.option("--data", metavar="FILE|-", type=click.File("rb"),
              help="Send this message, as it is, but for line ends.")
@click.option("--hold-for", metavar="SECONDS", type=click.IntRange(0, 999_999_999), default=0,
              help="Let the server hold it for so long (FUTURERELEASE).")
@click.option("--by", type=_By(), metavar="SECONDS;R|N[T]",
              help="How long it may take: then return it (R), or tell me (N) (DELIVERBY).")
@click.option("--priority", metavar="-9…9", type=click.IntRange(-9, 9),
              help="How urgent it is (MT-PRIORITY).")
@click.option("--tls", type=click.Choice(["no", "starttls", "opportunistic", "implicit"]),
              help="[implicit on port 465, starttls with a login, else no]")
@click.option("--ca", metavar="FILE", help="Authorities to trust [the system's].")
@click.option("--no-verify", is_flag=True, help="Take any certificate.")
@click.option("--user", metavar="NAME", help="Log in.")
@password_options("The password, or with XOAUTH2 and OAUTHBEARER the token [asked for].")
@click.option("--auth", metavar="MECHANISM", help="[the best that is offered]")
@click.option("--cleartext", is_flag=True, help="Let the password be sent without TLS.")
@click.option("--hello", "--helo", "--ehlo", metavar="NAME", default="",
              help="What to call ourselves.")
@click.option("--bind", metavar="ADDRESS", default="", help="The local address.")
@click.option("--lmtp", is_flag=True, help="Speak LMTP.")
@click.option("--quit-after", metavar="STAGE", type=_StageName(),
              help=f"Stop there: {', '.join(_STAGES)}.")
@click.option("--timeout", metavar="SECONDS", type=click.FloatRange(min=0.1),
              help="For each step [those of RFC 5321].")
@click.option("--pipeline/--no-pipeline", default=True,
              help="Whether to send ahead where it is offered.")
@click.option("--chunk/--no-chunk", default=True,
              help="Whether to use BDAT where it is offered.")
@click.option("--quiet", "-q", is_flag=True, help="Show no dialogue, only what failed.")
@json_option
def send(**options: Any) -> None:
    """Send a message to a server, and show the dialogue.

    Lines that go out are marked "->", those that come "<-", inside TLS "~>" and "<~".  Secrets are
    masked; the time that a reply took is behind it.  --json prints an object with status (as the
    command ends with), outcomes, dialogue, tls and error.
    """
    job = _Job(options)
    try:
        run(job.do)
    except BadArgument as problem:
        raise click.UsageError(str(problem)) from None
    except SendingFailure as failure:
        job.failure = failure
    status = job.report()
    if job.unshown is not None and not status:
        raise job.unshown
    sys.exit(status)


class _Job:
    """What the command line asks for, and what became of it."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._host, self._port = self._server(options["server"])
        self._tls = options["tls"] or (
            "implicit" if self._port == 465 else "starttls" if options["user"] else "no")
        if not self._port:
            self._port = 465 if self._tls == "implicit" else 587 if options["user"] else 25
        self._recipients = [*options["to"], *options["cc"], *options["bcc"]]
        self._sender = options["sender"]
        if self._sender is None:
            self._sender = f"{os.environ.get('USER', 'nobody')}@{os.uname().nodename}"
        stop = options["quit_after"]
        if not self._recipients and stop in (None, "rcpt"):
            raise click.UsageError("name a recipient by --to")
        self._secret = self._read_secret() if options["user"] else ""
        self._message = self._read_message() if stop is None else b""
        self._dialogue: list[Said] = []
        self._asked = 0.0
        self.outcomes: tuple[Outcome, ...] = ()
        self.failure: SendingFailure | None = None
        #: What kept the dialogue from being shown.
        self.unshown: SystemExit | None = None
        self._client: Client | None = None

    @staticmethod
    def _server(text: str | None) -> tuple[str, int]:
        context = click.get_current_context()
        port = context.params["port"] or 0
        if text is None:
            path = os.environ.get("MAILSVC_SOCKET") or SOCKET
            if not os.path.exists(path):
                raise click.UsageError(
                    f"no service here (there is no socket {path}); name a server by --server")
            return path, port
        return host_and_port(text, port)

    def _read_secret(self) -> str:
        if self._options["password_file"] is None and (
                (self._options["auth"] or "").upper() == "EXTERNAL"):
            return ""
        return read_secret(self._options["password_file"])

    def _read_message(self) -> Message:
        options = self._options
        if options["data"] is not None:
            file = options["data"]
            return file if file.seekable() else file.read()
        fields = []
        for text in options["header"]:
            name, colon, value = text.partition(":")
            if not colon:
                raise click.UsageError(f"--header {text!r}: expected 'NAME: VALUE'")
            fields.append((name.strip(), value.strip()))
        body = options["body"]
        try:
            return compose(
                sender="" if self._sender == "<>" else self._sender, to=options["to"],
                cc=options["cc"], subject=options["subject"],
                body="This is a test message of mailsvc send." if body is None else body,
                html=Path(options["html"]).read_text("utf-8") if options["html"] else "",
                attachments=[Attachment.of(path) for path in options["attach"]],
                inline=[Attachment.of(path) for path in options["inline"]], fields=fields,
                utf8=not all(map(str.isascii, [self._sender, *options["to"], *options["cc"]])))
        except (BadPart, OSError, UnicodeDecodeError) as problem:
            raise click.UsageError(str(problem)) from None

    # ---- in the reactor's thread ----

    async def do(self) -> None:
        options, stop = self._options, self._options["quit_after"]
        seconds = options["timeout"]
        timeouts = Timeouts() if seconds is None else Timeouts(
            *[seconds] * len(Timeouts.__dataclass_fields__))
        trust = UNVERIFIED if options["no_verify"] else Trust(authorities=options["ca"] or "")
        self._note(f"=== Trying {self._host}"
                   + ("..." if self._host.startswith("/") else f":{self._port}..."))
        client = self._client = await Client.dial(
            self._host, self._port, tls="implicit" if self._tls == "implicit" else "no",
            trust=trust, hello=options["hello"], bind=options["bind"], lmtp=options["lmtp"],
            timeouts=timeouts, transcript=self._heard)
        client.pipeline = options["pipeline"]
        try:
            await self._talk(client, trust, _STAGES.index(stop) if stop else len(_STAGES))
            if client.closed is None:
                await client.quit()
        finally:
            client.close()

    async def _talk(self, client: Client, trust: Trust, stop: int) -> None:
        options = self._options
        if stop < _STAGES.index("hello"):
            return
        await client.hello()
        opportunistic = self._tls == "opportunistic"
        offered = client.extension("STARTTLS") is not None
        if stop >= _STAGES.index("tls") and (
                self._tls == "starttls" or (opportunistic and offered)):
            await client.start_tls(UNVERIFIED if opportunistic else trust)
        if client.secured is not None:
            self._note(f"=== TLS {client.secured.version} {client.secured.cipher}, "
                       + ("verified" if client.secured.verified else client.secured.flaw))
        if options["user"] and stop >= _STAGES.index("auth"):
            token = (options["auth"] or "").upper() in ("XOAUTH2", "OAUTHBEARER")
            await client.auth(
                options["user"], "" if token else self._secret,
                token=self._secret if token else "", mechanism=options["auth"] or "",
                cleartext=options["cleartext"])
        if stop == len(_STAGES):
            self.outcomes = await client.send(
                self._sender, self._recipients, self._message, normalize=True,
                chunk=options["chunk"], hold_for=options["hold_for"], by=options["by"],
                priority=options["priority"])
        elif stop >= _STAGES.index("mail"):
            await client.mail(self._sender)
            if stop >= _STAGES.index("rcpt"):
                for each in self._recipients:
                    await client.rcpt(each)

    # ---- what is shown ----

    def _note(self, text: str) -> None:
        if not self._options["quiet"] and not self._options["as_json"]:
            try:
                click.echo(text)
            except SystemExit as ended:
                # The message goes all the same: half a transaction is nobody's wish.
                self.unshown = ended

    def _heard(self, line: Said) -> None:
        self._dialogue.append(line)
        if line.sent:
            self._asked = line.seconds
            self._note(f" {'~' if line.tls else '-'}> {line.line}")
            return
        final = line.line[3:4] != "-"
        refused = "*" if line.line[:1] in "45" else " "
        mark = f"<{'~' if line.tls else '-'}{refused}" if refused == " " else (
            f"<{'~' if line.tls else '*'}*")
        self._note(f"{mark} {line.line}"
                   + (f"  [{line.seconds - self._asked:.3f} s]" if final else ""))

    def report(self) -> int:
        """Tell what failed; the exit status."""
        failures = [each.failure for each in self.outcomes if each.failure is not None]
        if self.failure is not None:
            failures.append(self.failure)
        status = _status(failures)
        if self._options["as_json"]:
            self._print_json(status)
        else:
            for each in self.outcomes:
                if each.failure is not None:
                    click.echo(f"*** {each}", err=True)
            if self.failure is not None:
                reason = self.failure.reason if isinstance(self.failure, _TLSFailed) else ""
                text = with_remedy(self.failure.text, reason)
                if (self.failure.stage is Stage.GREETING
                        and isinstance(self.failure, Disconnected | TimedOut)):
                    text = without_greeting(text, self._tls)
                click.echo(f"*** {self.failure.stage}: {text}", err=True)
        return status

    def _print_json(self, status: int) -> None:
        secured = self._client.secured if self._client is not None else None
        failure = self.failure
        print_json({
            "status": status,
            "outcomes": [{
                "recipient": str(each.recipient), "accepted": each.accepted,
                "temporary": each.temporary, "permanent": each.permanent,
                "in_flight": each.in_flight, "enhanced_status": str(each.status),
                "code": each.reply.code if each.reply is not None else None,
                "text": str(each).removeprefix(f"{each.recipient}: "),
            } for each in self.outcomes],
            "error": None if failure is None else {
                "stage": str(failure.stage), "temporary": failure.temporary,
                "enhanced_status": str(failure.status), "text": failure.text},
            "tls": None if secured is None else {
                "version": secured.version, "cipher": secured.cipher,
                "verified": secured.verified, "flaw": secured.flaw},
            "dialogue": [{"from": "client" if each.sent else "server", "line": each.line,
                          "tls": each.tls, "seconds": round(each.seconds, 6)}
                         for each in self._dialogue],
        })


def _status(failures: list[SendingFailure]) -> int:
    """The exit status: whoever may try again should hear of it first."""
    if not failures:
        return os.EX_OK
    codes = [_code(each) for each in failures]
    return os.EX_TEMPFAIL if os.EX_TEMPFAIL in codes else codes[0]


def _code(failure: SendingFailure) -> int:
    if isinstance(failure, _TLSFailed | LoginRefused | CannotLogIn) and not (
            failure.reply is not None and failure.temporary):
        return os.EX_NOPERM
    if isinstance(failure, CannotConnect) and is_no_host(failure.text):
        return os.EX_NOHOST
    if isinstance(failure, BadReply):
        return os.EX_PROTOCOL
    if failure.temporary:
        return os.EX_TEMPFAIL
    if isinstance(failure, BadMessage) or failure.status.subject == 6:
        return os.EX_DATAERR
    if failure.stage is Stage.RCPT and failure.status.subject == 1:
        return os.EX_NOUSER
    return os.EX_NOPERM if failure.status.subject == 7 else os.EX_UNAVAILABLE
