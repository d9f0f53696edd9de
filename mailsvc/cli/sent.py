"""``mailsvc account sent``: how much accounts have sent lately, and letting one send again."""

from __future__ import annotations

from typing import Any

import click

from mailsvc.cli.arguments import MAILBOX
from mailsvc.cli.listing import json_option, print_json, print_rows
from mailsvc.cli.place import open_directory, open_state, place_options
from mailsvc.mail import Account, Address
from mailsvc.submission.limits import SubmissionSettings
from mailsvc.submission.rates import PERIODS, Ledger, Sent


@click.command()
@click.argument("name", type=MAILBOX, metavar="[NAME@DOMAIN]", required=False)
@json_option
@click.option("--reset", is_flag=True, help="Forget it, so that the account may send again now.")
@place_options
def sent(name: Address | None, as_json: bool, reset: bool) -> None:
    """Show how much accounts have sent lately.

    That is in the last minute, hour and day.  One account, or without a NAME all that have sent
    anything.  Limits are set in the section [submission] of the configuration.  The keys in JSON
    are name, and messages and recipients, each with minute, hour and day.

    \b
    Example:
      mailsvc account sent
      mailsvc account sent alice@example.org --reset
    """
    if reset and name is None:
        raise click.UsageError("Say whose counts to reset: NAME@DOMAIN --reset.")
    account = None if name is None else _account(name)
    found: list[Sent] = []
    with open_state() as state:
        if state is not None:
            # The limits make no difference to what is shown.
            ledger = Ledger(state, SubmissionSettings())
            if reset and account is not None:
                ledger.reset(account)
            found = ledger.sent(account)
    if as_json:
        print_json([_described(each) for each in found])
        return
    print_rows(["account", "sent", *PERIODS],
               [[each.account, kind, *(str(counts[period]) for period in PERIODS)]
                for each in found
                for kind, counts in (("messages", each.messages), ("recipients", each.recipients))])


def _account(name: Address) -> Account:
    with open_directory() as directory:
        account = directory.account(name.local_part, name.domain)
    if account is None:
        raise click.ClickException(f"there is no account {name}; see `mailsvc account list`")
    return account


def _described(sent: Sent) -> dict[str, Any]:
    return {"name": sent.account, "messages": sent.messages, "recipients": sent.recipients}
