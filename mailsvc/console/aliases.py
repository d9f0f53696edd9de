"""Aliases, for administrators: what ``mailsvc alias`` does."""

from __future__ import annotations

import re
from contextlib import suppress

from twisted.logger import Logger

from mailsvc.console.accounts import PAGE, number
from mailsvc.console.call import Answer, Call, Page, Redirect
from mailsvc.directory import SqliteDirectory
from mailsvc.mail import Address, Alias
from mailsvc.names import DirectoryError, parse_address

_log = Logger("mailsvc.console")


async def show_list(call: Call) -> Answer:
    """The aliases in whose name or targets stands what is looked for."""
    return await _list(call)


async def _list(call: Call, wrong: str = "") -> Page:
    wanted, page = call.query["q"].casefold(), number(call.query["page"])

    def read(directory: SqliteDirectory) -> tuple[list[Alias], list[str], Alias | None]:
        aliases = [each for each in directory.aliases()
                   if wanted in f"{each.name} {' '.join(map(str, each.targets))}".casefold()]
        changed = None
        with suppress(DirectoryError):
            address = parse_address(call.query["change"])
            changed = directory.alias(address.local_part, address.domain)
        return aliases, [each.name for each in directory.domains()], changed

    aliases, domains, changed = await call.backend.change(read)
    filled = {"name": call.form["name"], "targets": call.form.text("targets"),
              "moved": "moved" in call.form, "replace": "replace" in call.form}
    if changed is not None:
        filled = {"name": _address(changed), "targets": "\n".join(map(str, changed.targets)),
                  "moved": changed.moved, "replace": True}
    first = PAGE * (page - 1)
    return Page("aliases.html", {
        "aliases": [(_address(each), each) for each in aliases[first:first + PAGE]],
        "count": len(aliases), "page": page, "more": len(aliases) > first + PAGE,
        "wanted": call.query["q"], "domains": domains, "filled": filled, "wrong": wrong,
        "changing": changed is not None}, 400 if wrong else 200)


def _address(alias: Alias) -> str:
    """Its name as an address is written: with quotes, if need be."""
    return str(Address(alias.local_part, alias.domain))


async def put(call: Call) -> Answer:
    """Make one, or give one that there is other targets."""
    form = call.form

    def do(directory: SqliteDirectory) -> tuple[Alias, bool]:
        made = directory.add_alias(
            parse_address(form["name"]),
            [parse_address(each.strip()) for each in re.split(r"[\n,;]+", form.text("targets"))
             if each.strip()],
            moved="moved" in form, replace="replace" in form)
        account = directory.account(made.local_part, made.domain)
        return made, account is not None and all(
            directory.account(target.local_part, target.domain) != account
            for target in made.targets)

    try:
        made, bereft = await call.backend.change(do)
    except DirectoryError as error:
        return await _list(call, str(error))
    _log.info("alias set alias={alias} targets={targets} user={user} client={client}",
              alias=made.name, targets=list(map(str, made.targets)), user=call.user.name,
              client=call.client)
    return Redirect("/aliases", "alias-set-for-account" if bereft else "alias-set")


async def remove(call: Call) -> Answer:
    """Forget one."""
    try:
        removed = await call.backend.change(
            lambda directory: directory.remove_alias(parse_address(call.form["name"])))
    except DirectoryError as error:
        return await _list(call, str(error))
    _log.info("alias removed alias={alias} user={user} client={client}", alias=removed.name,
              user=call.user.name, client=call.client)
    return Redirect("/aliases", "alias-removed")
