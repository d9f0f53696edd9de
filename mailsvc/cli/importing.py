"""``mailsvc import``: mail from files and other servers into a mailbox."""

from __future__ import annotations

import hashlib
import imaplib
import os
import ssl
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from mailsvc.cli.arguments import MAILBOX, password_options
from mailsvc.cli.listing import json_option, print_json
from mailsvc.cli.place import explained, mail_root, open_directory, place_options, settings
from mailsvc.cli.progress import progress
from mailsvc.cli.remote import host_and_port, read_secret, with_remedy
from mailsvc.fetching import Fetcher, FetchFailure
from mailsvc.importing.imap import IMAP
from mailsvc.importing.job import Brought, bring
from mailsvc.importing.ledger import Ledger
from mailsvc.importing.maildir import Maildir
from mailsvc.importing.mbox import Mbox
from mailsvc.importing.pop3 import POP3
from mailsvc.importing.source import Source, SourceFailure
from mailsvc.mail import Account, Address
from mailsvc.ownership import make_folder, make_folders
from mailsvc.store.deposit import Deposit
from mailsvc.trust import UNVERIFIED, Trust

_SCHEMES = ("pop3s", "pop3", "imaps", "imap")


@dataclass(frozen=True, slots=True)
class _Server:
    """What ``SCHEME://[USER@]HOST[:PORT]`` names, and the options about it."""

    scheme: str
    user: str
    host: str
    port: int
    tls: str
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """Tells the account there from every other."""
        port = f":{self.port}" if self.port else ""
        return f"{self.scheme.removesuffix('s')}:{self.user}@{self.host}{port}"


@click.command(name="import")
@click.argument("account", type=MAILBOX, metavar="NAME@DOMAIN")
@click.argument("source", metavar="SOURCE")
@click.option("--user", metavar="NAME", help="Whom to log in as there.")
@password_options("The password there [asked for].")
@click.option("--tls", type=click.Choice(["implicit", "starttls", "no"]),
              help="[implicit for pop3s and imaps, else starttls]")
@click.option("--ca", metavar="FILE", help="Authorities to trust [the system's].")
@click.option("--no-verify", is_flag=True, help="Take any certificate.")
@click.option("--cleartext", is_flag=True, help="Let the password be sent without TLS.")
@click.option("--folder", "folders", metavar="NAME", multiple=True,
              help="Of a maildir, this folder as well; by IMAP, this one instead of INBOX.  May be "
                   "given several times.")
@click.option("--timeout", metavar="SECONDS", type=click.FloatRange(min=0.1), default=600.0,
              show_default=True, help="For each answer of a server.")
@click.option("--dry-run", is_flag=True, help="Tell how much there is to bring; bring nothing.")
@json_option
@place_options
def import_(account: Address, source: str, as_json: bool, dry_run: bool, **options: Any) -> None:
    """Bring mail from elsewhere into the mailbox of an account.

    SOURCE is mbox:FILE or maildir:DIR (or the FILE or DIR alone), or
    pop3s://[USER@]HOST[:PORT], pop3://, imaps:// or imap://.  Nothing is deleted there.

    Each message comes once: an import that broke off, or is run again some days later, brings what
    is new.  Dates and flags stay; quotas, size limits and filters do not hold.  From a POP3 server
    the unique-ids come along, so that clients that leave mail on the server download nothing twice.
    The service may be running.

    --json prints an object with imported, octets, before (brought already, or in the mailbox),
    renamed (messages whose unique-id another message has), gone, notes and error.

    \b
    Example:
      mailsvc import bob@example.org pop3s://bob@example.org@old.example.net \\
          --password-file secret
      mailsvc import bob@example.org mbox:/var/mail/bob
      mailsvc import bob@example.org imaps://old.example.net --user bob \\
          --folder INBOX
    """
    with open_directory() as directory:
        found = directory.account(account.local_part, account.domain)
    if found is None:
        raise click.ClickException(f"there is no account {account}; first add it with: mailsvc "
                                   f"account add {account}")
    brought, problem = Brought(), ""
    with explained():
        try:
            with closing(_source(source, options)) as place:
                _bring(place, found, brought, dry_run)
        except SourceFailure as failure:
            problem = str(failure)
    if as_json:
        print_json({"imported": brought.imported, "octets": brought.octets,
                    "before": brought.before, "renamed": brought.renamed, "gone": brought.gone,
                    "notes": brought.notes, "error": problem or None})
    else:
        for note in brought.notes:
            click.echo(note)
        click.echo(f"{brought.imported} messages {'to import' if dry_run else 'imported'}, "
                   f"{brought.before} were there"
                   + (f", {brought.gone} went meanwhile" if brought.gone else ""))
        if brought.renamed:
            click.echo(f"{brought.renamed} of them got a new unique-id, since another message has "
                       "theirs: clients download these once more")
    if problem:
        click.echo(f"Error: {problem}" + (
            "; what was imported stays, and the same command goes on" if brought.imported else ""),
            err=True)
        raise SystemExit(1)


def _bring(source: Source, account: Account, brought: Brought, dry_run: bool) -> None:
    data = Path(settings().service.data)
    folder = data / "imports" / account.domain / account.local_part
    make_folders(folder)
    digest = hashlib.blake2b(os.fsencode(source.name), digest_size=16).hexdigest()
    root = mail_root()
    if not dry_run:
        make_folder(root)  # the service has not run yet
    deposit = Deposit(root, account, settings().service.hostname)
    with progress("messages") as tell:
        bring(source, deposit, Ledger(folder / digest, source.name), brought, progress=tell,
              dry_run=dry_run)


def _source(text: str, options: dict[str, Any]) -> Source:
    scheme, _, rest = text.partition(":")
    folders = options["folders"]
    if scheme in _SCHEMES and rest.startswith("//"):
        server = _server(scheme, rest[2:], options)
        return _imap(server) if scheme.startswith("imap") else _pop3(server)
    for option in ("user", "password_file", "tls", "ca"):
        if options[option]:
            raise click.UsageError(f"{text} is a file: --{option.partition('_')[0]} is for servers")
    path = Path(rest if scheme in ("mbox", "maildir") and rest else text)
    if not path.exists():
        raise click.UsageError(f"there is no {path}; expected mbox:FILE, maildir:DIR, or "
                               + ", ".join(f"{each}://HOST" for each in _SCHEMES))
    if scheme == "maildir" or (scheme != "mbox" and path.is_dir()):
        return Maildir(path, folders)
    if folders:
        raise click.UsageError("--folder: an mbox has no folders")
    return Mbox(path)


def _server(scheme: str, place: str, options: dict[str, Any]) -> _Server:
    user, _, host = place.rstrip("/").rpartition("@")
    user = options["user"] or user
    if not user:
        raise click.UsageError(f"{scheme}://{place}: tell as whom to log in; add --user NAME")
    host, port = host_and_port(host, 0)
    if not host:
        raise click.UsageError(f"{scheme}://{place} names no host; expected "
                               f"{scheme}://HOST")
    tls = options["tls"] or ("implicit" if scheme.endswith("s") else "starttls")
    if options["folders"] and scheme.startswith("pop3"):
        raise click.UsageError("--folder: POP3 has no folders")
    return _Server(scheme, user, host, port, tls, options)


def _pop3(server: _Server) -> POP3:
    secret = read_secret(server.options["password_file"])
    trust = (UNVERIFIED if server.options["no_verify"]
             else Trust(authorities=server.options["ca"] or ""))

    async def connect() -> Fetcher:
        client = await Fetcher.dial(server.host, server.port, tls=server.tls, trust=trust,
                                    seconds=server.options["timeout"])
        try:
            await client.log_in(server.user, secret, cleartext=server.options["cleartext"])
        except BaseException:
            client.close()
            raise
        return client

    try:
        return POP3(server.name, connect)
    except FetchFailure as failure:
        raise SourceFailure(with_remedy(failure.text, failure.reason)) from None


def _imap(server: _Server) -> IMAP:
    secret = read_secret(server.options["password_file"])
    context = ssl.create_default_context(cafile=server.options["ca"])
    if server.options["no_verify"]:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    loopback = server.host in ("127.0.0.1", "::1", "localhost")
    if server.tls == "no" and not (server.options["cleartext"] or loopback):
        raise click.UsageError("--tls no would send the password unencrypted; --cleartext lets it")

    def connect() -> imaplib.IMAP4:
        timeout = server.options["timeout"]
        try:
            if server.tls == "implicit":
                client: imaplib.IMAP4 = imaplib.IMAP4_SSL(
                    server.host, server.port or 993, ssl_context=context, timeout=timeout)
            else:
                client = imaplib.IMAP4(server.host, server.port or 143, timeout=timeout)
                if server.tls == "starttls":
                    client.starttls(context)
        except ssl.SSLError as error:
            raise SourceFailure(f"TLS failed: {error}; --ca FILE trusts an authority, --no-verify "
                                "takes any certificate") from None
        try:
            client.login(server.user, secret)
        except UnicodeEncodeError:
            raise SourceFailure("LOGIN of IMAP takes names and passwords in ASCII alone; give the "
                                "account there such a password for as long") from None
        return client

    return IMAP(server.name, connect, server.options["folders"] or ("INBOX",))
