"""Accounts, and what they log in with.

Whoever changes what an account logs in with has shown its main password for that: an app password
that was meant for one program is not enough to take an account over.  Administrators change those
of others, who have forgotten theirs.
"""

from __future__ import annotations

import datetime

from twisted.logger import Logger

from mailsvc import plain
from mailsvc.api.call import NOTHING, ROOT, Answer, Call, address, part, segment
from mailsvc.api.problems import Problem
from mailsvc.console.passwords import hashed
from mailsvc.directory import SqliteDirectory
from mailsvc.logins import StoredPassword
from mailsvc.mail import Account
from mailsvc.names import parse_address
from mailsvc.passwords import app_verifier, check_password, new_app_password, prepare_password

_log = Logger("mailsvc.api")


def _tell(call: Call, done: str, account: Account) -> None:
    _log.info("account {done} account={account} user={user} client={client}", done=done,
              account=account.name, user=call.caller.name, client=call.caller.client)


async def list_all(call: Call) -> Answer:
    """List the accounts."""
    wanted = call.query["q"].casefold()

    def read(directory: SqliteDirectory) -> Answer:
        found = [each for each in directory.accounts() if wanted in each.name.casefold()]
        return part(call, found, lambda each: plain.account(directory, each))

    return await call.backend.change(read)


async def add(call: Call) -> Answer:
    """Make an account."""
    backend, value = call.backend, call.value
    if "password" in value and backend.elsewhere:
        raise Problem(409, "Passwords are kept elsewhere, and cannot be set here.")
    name = parse_address(value["name"])
    password = check_password(value["password"]) if "password" in value else None

    def make(directory: SqliteDirectory) -> tuple[Account, plain.Plain]:
        checked = directory.check_new_account(name)
        verifier, scram = (None, None) if password is None else hashed(
            backend, directory, f"{checked.local_part}@{checked.domain}", password)
        with directory.transaction():
            made = directory.add_account(
                checked, verifier=verifier, scram=scram,
                quota_octets=int(value.get("quota_octets", 0)),
                quota_messages=int(value.get("quota_messages", 0)), role=value.get("role", "both"))
            if value.get("administrator", False):
                directory.set_administrator(checked, True)
        return made, plain.account(directory, made)

    made, described = await backend.change(make)
    _tell(call, "made", made)
    return Answer(described, 201, {"Location": f"{ROOT}/accounts/{segment(made.name)}"})


async def show(call: Call) -> Answer:
    """Tell of an account."""
    account = await call.account()
    return Answer(await call.backend.change(lambda directory: plain.account(directory, account)))


async def change(call: Call) -> Answer:
    """Change an account's role, its quota, or whether it administers; the rest stays."""
    account, value = await call.account(), call.value
    if call.caller.is_account(account.name) and value.get("administrator") is False:
        raise Problem(409, "You cannot take the role of administrator from yourself; let another "
                      "administrator do it.")

    def do(directory: SqliteDirectory) -> plain.Plain:
        name = address(account)
        with directory.transaction():
            if "role" in value:
                directory.set_role(name, value["role"])
            if "administrator" in value:
                directory.set_administrator(name, value["administrator"])
            quota = {unit: int(value[f"quota_{unit}"]) for unit in ("octets", "messages")
                     if f"quota_{unit}" in value}
            changed = directory.set_quota(name, **quota)
        return plain.account(directory, changed)

    described = await call.backend.change(do)
    _tell(call, "changed", account)
    return Answer(described)


async def remove(call: Call) -> Answer:
    """Remove an account.  Its mail stays on disk."""
    account = await call.account()
    if call.caller.is_account(account.name):
        raise Problem(409, "You cannot remove the account that you are logged in with.")
    await call.backend.change(lambda directory: directory.remove_account(address(account)))
    _tell(call, "removed", account)
    return NOTHING


# ---- logins ----


async def _changing(call: Call) -> Account:
    """The account whose logins are to be changed, if they may be."""
    account, backend, caller = await call.account(), call.backend, call.caller
    if backend.elsewhere:
        raise Problem(409, "Passwords are kept elsewhere, and cannot be changed here.")
    if caller.is_account(account.name):
        found = backend.directory.credentials(account.name)
        if caller.password is None or not await backend.verify(
                account.name, found.verifier if found is not None else None,
                prepare_password(caller.password)):
            raise Problem(403, "To change what your account logs in with, log in by its main "
                          "password, not by an app password.")
    return account


async def set_password(call: Call) -> Answer:
    """Give an account another main password."""
    account = await _changing(call)
    prepared = check_password(call.value["password"])

    def do(directory: SqliteDirectory) -> None:
        verifier, scram = hashed(call.backend, directory, account.name, prepared)
        found = directory.credentials(account.name)
        # Whoever uses APOP goes on with it: as `mailsvc account passwd` has it.
        readable = found is not None and found.secret is not None
        directory.set_password(address(account), verifier, prepared.decode() if readable else None,
                               scram=scram)

    await call.backend.change(do)
    _tell(call, "given another password", account)
    return NOTHING


async def list_app_passwords(call: Call) -> Answer:
    """List an account's app passwords; themselves they cannot be shown."""
    account = await call.account()
    found = call.backend.directory.credentials(account.name)
    return part(call, found.app_passwords if found is not None else (), plain.app_password)


async def add_app_password(call: Call) -> Answer:
    """Make an app password.  It is shown in the answer, and never again."""
    account, value = await _changing(call), call.value
    password = new_app_password()
    days = value.get("expires_days")
    expires = None if days is None else int(
        datetime.datetime.now(datetime.UTC).timestamp()) + 86_400 * int(days)

    def add(directory: SqliteDirectory) -> StoredPassword:
        prepared = password.encode()
        _, scram = hashed(call.backend, directory, account.name, prepared, verifier=False)
        return directory.passwords.add(account, StoredPassword(
            value["label"], app_verifier(directory, prepared), scram, None,
            frozenset(value.get("protocols", ())), tuple(value.get("networks", ())), expires))

    made = await call.backend.change(add)
    _log.info("app password made account={account} label={label!r} user={user} client={client}",
              account=account.name, label=made.label, user=call.caller.name,
              client=call.caller.client)
    return Answer({**plain.app_password(made), "secret": password}, 201, {
        "Location": f"{ROOT}/accounts/{segment(account.name)}/app-passwords/{segment(made.label)}"})


async def remove_app_password(call: Call) -> Answer:
    """Remove an app password.  The next login with it fails."""
    account, label = await _changing(call), call.words["label"]
    found = call.backend.directory.credentials(account.name)
    if found is None or label not in [each.label for each in found.app_passwords]:
        raise Problem(404, "There is no such app password.")
    await call.backend.change(lambda directory: directory.passwords.remove(account, label))
    _log.info("app password removed account={account} label={label!r} user={user} client={client}",
              account=account.name, label=label, user=call.caller.name,
              client=call.caller.client)
    return NOTHING
