"""All accounts, for administrators."""

from __future__ import annotations

import re

from twisted.logger import Logger

from mailsvc.console.call import Answer, Backend, Call, Page, Problem, Redirect
from mailsvc.console.pages import segment
from mailsvc.console.passwords import hashed
from mailsvc.directory import SqliteDirectory
from mailsvc.mail import ROLES, Account, Address
from mailsvc.names import DirectoryError, parse_address
from mailsvc.passwords import check_password

_log = Logger("mailsvc.console")

#: How many accounts stand on a page.
PAGE = 100


async def show_list(call: Call) -> Answer:
    """The accounts, those whose name holds what is looked for."""
    return await _list(call)


async def _list(call: Call, status: int = 200, wrong: str = "") -> Page:
    wanted = call.query["q"].casefold()
    page = number(call.query["page"])

    def read(directory: SqliteDirectory) -> tuple[list[Account], set[str], list[str]]:
        accounts = [each for each in directory.accounts() if wanted in each.name.casefold()]
        return accounts, set(directory.administrators()), [
            each.name for each in directory.domains()]

    accounts, administrators, domains = await call.backend.change(read)
    first = PAGE * (page - 1)
    return Page("accounts.html", {
        "accounts": accounts[first:first + PAGE], "count": len(accounts), "page": page,
        "more": len(accounts) > first + PAGE, "administrators": administrators,
        "wanted": call.query["q"], "domains": domains, "roles": ROLES, "wrong": wrong,
        "form": call.form, "elsewhere": call.backend.elsewhere}, status)


def number(text: str) -> int:
    """The number of a page, as it stands in an address."""
    return max(1, int(text)) if re.fullmatch("[0-9]{1,6}", text) else 1


def _quota(text: str) -> int:
    """Octets as one types them: 500M, 1G; raises Problem."""
    match = re.fullmatch(r"([0-9]{1,15})\s*([KMGT]?)(?:i?B)?", text or "0",
                         re.IGNORECASE | re.ASCII)
    if match is None:
        raise Problem("A size such as 500M or 1G was expected, or 0 for no limit.")
    return int(match[1]) << 10 * " KMGT".index(match[2].upper() or " ")


def _messages(text: str) -> int:
    if not re.fullmatch("[0-9]{1,15}", text or "0"):
        raise Problem("A number of messages was expected, or 0 for no limit.")
    return int(text or 0)


async def add(call: Call) -> Answer:
    """Make an account."""
    form, backend = call.form, call.backend
    try:
        address = parse_address(form["name"])
        password = check_password(form.text("password")) if not backend.elsewhere else b""
        octets, messages = _quota(form["octets"]), _messages(form["messages"])

        def make(directory: SqliteDirectory) -> Account:
            checked = directory.check_new_account(address)
            name = f"{checked.local_part}@{checked.domain}"
            verifier, scram = hashed(backend, directory, name, password) if password else (
                None, None)
            with directory.transaction():
                made = directory.add_account(
                    checked, verifier=verifier, scram=scram, quota_octets=octets,
                    quota_messages=messages, role=form["role"] or "both")
                if "administrator" in form:
                    directory.set_administrator(checked, True)
            return made

        made = await backend.change(make)
    except DirectoryError as error:
        return await _list(call, 400, str(error))
    except Problem as problem:
        return await _list(call, 400, call.translate(problem.text, **problem.values))
    _tell(call, "made", made)
    return Redirect(f"/accounts/{segment(made.name)}", "account-added")


def _tell(call: Call, done: str, account: Account) -> None:
    _log.info("account {done} account={account} user={user} client={client}", done=done,
              account=account.name, user=call.user.name, client=call.client)


def _found(call: Call) -> tuple[Account, Address]:
    local_part, _, domain = call.words["name"].rpartition("@")
    account = call.backend.directory.account(local_part, domain)
    if account is None:
        raise Problem("There is no such account.", 404)
    return account, Address(account.local_part, account.domain)


async def show(call: Call) -> Answer:
    """One account."""
    account, _ = _found(call)
    found = call.backend.directory.credentials(account.name)

    def leading(directory: SqliteDirectory) -> list[str]:
        return directory.users_of(account)

    return Page("one-account.html", {
        "account": account, "roles": ROLES, "elsewhere": call.backend.elsewhere,
        "administers": call.backend.directory.administers(account),
        "has_password": found is not None and found.verifier is not None,
        "app_passwords": len(found.app_passwords) if found is not None else 0,
        "users": await call.backend.change(leading), "own": account.name == call.user.name})


async def change(call: Call) -> Answer:
    """Its role, its quota, and whether it administers."""
    form, (account, address) = call.form, _found(call)
    administers, octets, messages = (
        "administrator" in form, _quota(form["octets"]), _messages(form["messages"]))
    if account.name == call.user.name and not administers:
        raise Problem("You cannot take the role of administrator from yourself; let another "
                      "administrator do it.")

    def do(directory: SqliteDirectory) -> None:
        with directory.transaction():
            directory.set_role(address, form["role"])
            directory.set_quota(address, octets=octets, messages=messages)
            directory.set_administrator(address, administers)

    await call.backend.change(do)
    _tell(call, "changed", account)
    return Redirect(f"/accounts/{segment(account.name)}", "account-changed")


async def set_password(call: Call) -> Answer:
    """Another main password for somebody who has forgotten theirs."""
    account, address = _found(call)
    backend: Backend = call.backend
    if backend.elsewhere:
        raise Problem("Passwords are kept elsewhere, and cannot be changed here.", 403)
    if account.name == call.user.name:
        raise Problem("Change your own password on the page of your account.")
    prepared = check_password(call.form.text("password"))

    def do(directory: SqliteDirectory) -> None:
        verifier, scram = hashed(backend, directory, account.name, prepared)
        directory.set_password(address, verifier, scram=scram)

    await backend.change(do)
    _tell(call, "given another password", account)
    return Redirect(f"/accounts/{segment(account.name)}", "account-changed")


async def ask(call: Call) -> Answer:
    """Whether it is to be removed."""
    account, _ = _found(call)
    return Page("remove-account.html", {"account": account})


async def remove(call: Call) -> Answer:
    """Remove it; its mail stays."""
    account, address = _found(call)
    if account.name == call.user.name:
        raise Problem("You cannot remove the account that you are logged in with.")
    await call.backend.change(lambda directory: directory.remove_account(address))
    _tell(call, "removed", account)
    return Redirect("/accounts", "account-removed")
