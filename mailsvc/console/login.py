"""Logging in and out, and the language of the pages.

A login is the same as on any listener: the portal is asked, the brakes make those who guess wait,
and a failure is a line in the log that fail2ban reads.  App passwords will do, unless they are for
certain protocols.
"""

from __future__ import annotations

from twisted.cred.error import LoginFailed
from twisted.logger import Logger

from mailsvc.authentication import Who
from mailsvc.console.call import ADMINISTRATOR, Answer, Call, Page, Redirect
from mailsvc.console.sessions import stranger
from mailsvc.console.texts import LANGUAGES
from mailsvc.credentials import Attempt, Password
from mailsvc.interfaces import IAccountHolder
from mailsvc.mail import new_id

_log = Logger("mailsvc.console")


async def home(call: Call) -> Answer:
    """Where one begins."""
    if call.account is None:
        return Redirect("/login")
    if call.role == ADMINISTRATOR:
        return Redirect("/overview")
    return Redirect("/mailbox" if call.account.receives else "/send")


async def show(call: Call) -> Answer:
    """The form."""
    if call.account is not None:
        return Redirect("/")
    return Page("login.html", {"name": "", "failed": False})


async def log_in(call: Call) -> Answer:
    """Check what was filled in."""
    backend, name = call.backend, call.form["name"]
    connection = new_id()
    attempt = Attempt("console", call.client, "FORM")
    credentials = Password(name.encode(), call.form.text("password").encode(), attempt)
    try:
        holder, log_out = await backend.authenticator.log_in(
            credentials, IAccountHolder, Who(connection, _log))
    except LoginFailed:
        return Page("login.html", {"name": name, "failed": True}, 403)
    log_out()  # it holds nothing
    account = holder.account
    found = backend.directory.credentials(account.name)
    passwords = [each.id for each in found.passwords] if found is not None else []
    call.session = await backend.threads.run(
        backend.sessions.begin, account.name, passwords, call.client)
    _log.info("{connection} logged in user={user} client={client}", connection=connection,
              user=account.name, client=call.client)
    return Redirect("/")


async def log_out(call: Call) -> Answer:
    """Forget the session."""
    await call.backend.threads.run(call.backend.sessions.end, call.session)
    _log.info("logged out user={user} client={client}", user=call.user.name, client=call.client)
    call.session = stranger()
    return Redirect("/login", "logged-out")


async def choose_language(call: Call) -> Answer:
    """Remember the language in a cookie."""
    wanted, back = call.form["language"], call.form["back"]
    if wanted in LANGUAGES:
        call.cookies["language"] = wanted
    # A path here: "//host" and "/\\host" would lead elsewhere.
    here = back.isascii() and back.isprintable() and back.startswith("/") and (
        back[1:2] not in ("/", "\\")) and " " not in back
    return Redirect(back if here else "/")
