"""One's own account: the password, and app passwords.

Whoever changes them shows the main password once more: a browser left alone, or an app password
that was meant for one program, is not enough to take an account over.
"""

from __future__ import annotations

import re
import time

from twisted.logger import Logger

from mailsvc.authentication import Who
from mailsvc.console.call import Answer, Call, Page, Problem, Redirect
from mailsvc.console.passwords import hashed
from mailsvc.credentials import Attempt
from mailsvc.directory import SqliteDirectory
from mailsvc.logins import PROTOCOLS, StoredPassword
from mailsvc.mail import Address, new_id
from mailsvc.passwords import app_verifier, check_password, new_app_password, prepare_password

_log = Logger("mailsvc.console")

#: For how many days a new app password may be good, as offered.
DAYS = ("", "30", "90", "365")


async def show(call: Call) -> Answer:
    """What there is."""
    return _page(call)


def _page(call: Call, status: int = 200, **values: object) -> Page:
    found = call.backend.directory.credentials(call.user.name)
    return Page("account.html", {
        "account": call.user, "passwords": found.app_passwords if found is not None else (),
        "protocols": PROTOCOLS, "days": DAYS, "elsewhere": call.backend.elsewhere,
        "now": time.time(), "made": "", "label": "", "wrong": "", **values}, status)


async def _confirm(call: Call) -> str:
    """Why the main password that was typed will not do; "" when it will."""
    backend, name = call.backend, call.user.name
    if backend.elsewhere:
        raise Problem("Passwords are kept elsewhere, and cannot be changed here.", 403)
    attempt = Attempt("console", call.client, "FORM")
    await backend.authenticator.permit(attempt.client, name.encode())
    found = backend.directory.credentials(name)
    shown = prepare_password(call.form.text("current"))
    if await backend.verify(name, found.verifier if found is not None else None, shown):
        return ""
    backend.authenticator.failed(name.encode(), attempt, Who(new_id(), _log),
                                 "wrong password for a change")
    return call.translate("That is not your present password.")


def _address(call: Call) -> Address:
    return Address(call.user.local_part, call.user.domain)


async def change_password(call: Call) -> Answer:
    """Another main password."""
    form = call.form
    wrong = await _confirm(call)
    if not wrong and form.text("password") != form.text("again"):
        wrong = call.translate("The two new passwords differ.")
    if wrong:
        return _page(call, 400, wrong=wrong)
    prepared, address = check_password(form.text("password")), _address(call)

    def change(directory: SqliteDirectory) -> None:
        verifier, scram = hashed(call.backend, directory, call.user.name, prepared)
        found = directory.credentials(call.user.name)
        # Whoever uses APOP goes on with it: as `mailsvc account passwd` has it.
        readable = found is not None and found.secret is not None
        directory.set_password(address, verifier, prepared.decode() if readable else None,
                               scram=scram)

    await call.backend.change(change)
    _log.info("password changed user={user} client={client}", user=call.user.name,
              client=call.client)
    await _go_on(call)
    return Redirect("/account", "password")


async def _go_on(call: Call) -> None:
    """Stay logged in here alone: all sessions ended with what was changed."""
    backend, name = call.backend, call.user.name
    found = backend.directory.credentials(name)
    passwords = [each.id for each in found.passwords] if found is not None else []
    await backend.threads.run(backend.sessions.end, call.session)
    call.session = await backend.threads.run(backend.sessions.begin, name, passwords, call.client)


async def add_app_password(call: Call) -> Answer:
    """A password for a program: made here, shown once."""
    form = call.form
    wrong = await _confirm(call)
    if wrong:
        return _page(call, 400, wrong=wrong, label=form["label"])
    password, days = new_app_password(), form["days"]
    if days and not re.fullmatch("[0-9]{1,4}", days):
        raise Problem("A number of days was expected.")
    expires = int(time.time()) + 86_400 * int(days) if days else None
    protocols = frozenset(form.fields.get("protocol", ()))
    networks = tuple(form["networks"].replace(",", " ").split())

    def add(directory: SqliteDirectory) -> StoredPassword:
        prepared = password.encode()
        _, scram = hashed(call.backend, directory, call.user.name, prepared, verifier=False)
        return directory.passwords.add(call.user, StoredPassword(
            form["label"], app_verifier(directory, prepared), scram, None,
            frozenset() if protocols == set(PROTOCOLS) else protocols, networks, expires))

    made = await call.backend.change(add)
    _log.info("app password made user={user} label={label!r} client={client}",
              user=call.user.name, label=made.label, client=call.client)
    return _page(call, made=password, label=made.label)


async def remove_app_password(call: Call) -> Answer:
    """The next login with it fails, and sessions of the console begun before end."""
    label = call.form.text("label")
    await call.backend.change(lambda directory: directory.passwords.remove(call.user, label))
    _log.info("app password removed user={user} label={label!r} client={client}",
              user=call.user.name, label=label, client=call.client)
    await _go_on(call)
    return Redirect("/account", "app-password-removed")
