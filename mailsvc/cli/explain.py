"""``mailsvc explain``: what would be answered to a message, and by which rule."""

from __future__ import annotations

import re
from typing import Any

import click

from mailsvc.cli.arguments import MAILBOX, OCTETS
from mailsvc.cli.listing import json_option, print_json
from mailsvc.cli.place import place_options, settings
from mailsvc.config import KEYS, Settings
from mailsvc.errors import MailFailure
from mailsvc.log import escape
from mailsvc.mail import Address
from mailsvc.names import DirectoryError
from mailsvc.networks import address_of
from mailsvc.rehearsal import Rehearsal, Verdict
from mailsvc.toml import literal

_TRANSACTION = re.compile(r"\s*<?([^<>]*?)>?\s*->\s*<?([^<>]+?)>?(?:\s+from\s+(\S+))?\s*")


class _IPAddress(click.ParamType):
    name = "ADDRESS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return str(address_of(value.strip("[]").removeprefix("IPv6:")))
        except ValueError:
            self.fail(f"{value!r} is no IP address; expected one such as 192.0.2.7 or 2001:db8::7",
                      param, ctx)


_ADDRESS = _IPAddress()


@click.command()
@click.argument("transaction", metavar="['SENDER -> RECIPIENT from ADDRESS']", required=False)
@click.option("--sender", metavar="SENDER", help="The envelope's sender; '' for bounces.")
@click.option("--recipient", metavar="RECIPIENT", help="The recipient.")
@click.option("--from", "client", type=_ADDRESS, metavar="ADDRESS",
              help="The client's IP address [127.0.0.1].")
@click.option("--as", "account", type=MAILBOX, metavar="ACCOUNT",
              help="It is submitted by this account, which has logged in.")
@click.option("--submission", is_flag=True,
              help="It comes to a listener for submission, without a login.")
@click.option("--size", type=OCTETS, default="0", metavar="OCTETS", help="The size it declares.")
@json_option
@place_options
def explain(transaction: str | None, sender: str | None, recipient: str | None,
            client: str | None, account: Address | None, submission: bool, size: int,
            as_json: bool) -> None:
    """Say what would be answered to a message, and why.

    It names the rule and the setting.  The service's own code decides, with its accounts, bans and
    counts, up to RCPT: then come the message and what depends on it.  Nothing is counted, changed,
    sent or looked up in the DNS, and the service need not run.  How many connections it has, it
    alone knows.

    The keys in JSON are accepted, command and reply, rule, settings (each with key, value and
    where: FILE:LINE, or null for a default), standard (the section of an RFC), looked_up (lines),
    accounts, and onward, each with address, hop and key.

    \b
    Example:
      mailsvc explain 'bob@example.net -> alice@example.org from 192.0.2.7'
      mailsvc explain 'alice@example.org -> bob@example.net' \\
          --as alice@example.org
    """
    if transaction is not None:
        if sender is not None or recipient is not None:
            raise click.UsageError("Give either 'SENDER -> RECIPIENT' or --sender and --recipient.")
        found = _TRANSACTION.fullmatch(transaction)
        if found is None:
            raise click.UsageError(f"{transaction!r}: expected 'SENDER -> RECIPIENT from ADDRESS', "
                                   "such as 'a@example.net -> b@example.org from 192.0.2.7'.")
        sender, recipient = found[1], found[2]
        if found[3] is not None:
            if client is not None:
                raise click.UsageError("Give the client's address once.")
            client = _ADDRESS(found[3])
    elif sender is None or recipient is None:
        raise click.UsageError("Say which message: 'SENDER -> RECIPIENT from ADDRESS'.")
    if not (sender + recipient).isprintable():
        raise click.UsageError("An address holds control characters; leave them out.")
    loaded = settings()
    try:
        with Rehearsal(loaded) as rehearsal:
            verdict = rehearsal.play(sender, recipient, size, client=client or "127.0.0.1",
                                     submission=submission, login=str(account or ""))
    except (DirectoryError, MailFailure) as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        print_json(_plain(verdict, loaded))
    else:
        for line in _text(verdict, loaded):
            click.echo(escape(line))


def _plain(verdict: Verdict, loaded: Settings) -> dict[str, Any]:
    return {
        "accepted": verdict.accepted, "command": verdict.command, "reply": verdict.reply,
        "rule": verdict.rule.sentence,
        "settings": [{"key": key, "value": _value(key, loaded), "where": _where(key, loaded)}
                     for key in verdict.rule.keys],
        "standard": verdict.rule.standard, "looked_up": verdict.looked_up,
        "accounts": verdict.accounts,
        "onward": [{"address": address, "hop": str(hop), "exchangers": hop.exchangers, "key": key,
                    "where": _where(key, loaded)} for address, hop, key in verdict.onward]}


def _text(verdict: Verdict, loaded: Settings) -> list[str]:
    lines = [verdict.reply]

    def tell(title: str, *texts: str) -> None:
        for place, text in enumerate(texts):
            lines.append(f"  {'' if place else title:<10} {text}")

    tell("answers", verdict.command)
    tell("rule", verdict.rule.sentence)
    tell("settings", *(f"{key} = {literal(_value(key, loaded))}  # {_origin(key, loaded)}"
                       for key in verdict.rule.keys))
    tell("standard", verdict.rule.standard)
    tell("looked up", *verdict.looked_up)
    tell("delivers", *(f"into the mailbox of {name}" for name in verdict.accounts))
    for address, hop, key in verdict.onward:
        how = (f"kept until {hop.host} fetches it" if hop.kept else
               f"to the exchangers (MX) of {hop.host}" if hop.exchangers else f"by {hop}")
        tell("sends on", f"to {address}: {how}  # {key}, {_origin(key, loaded)}")
    return lines


def _value(key: str, loaded: Settings) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(loaded, section), name)


def _where(key: str, loaded: Settings) -> str | None:
    # relay.routes.example.org stands in the table relay.routes.
    return loaded.given.get(next(
        each for each in KEYS if key == each or key.startswith(f"{each}.")))


def _origin(key: str, loaded: Settings) -> str:
    return _where(key, loaded) or "default"
