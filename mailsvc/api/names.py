"""Domains and aliases."""

from __future__ import annotations

import ipaddress

from twisted.logger import Logger

from mailsvc import plain
from mailsvc.api.call import NOTHING, ROOT, Answer, Call, part, segment
from mailsvc.api.problems import Problem
from mailsvc.console.domains import zone_here
from mailsvc.directory import SqliteDirectory
from mailsvc.mail import Address, Alias, Domain
from mailsvc.names import parse_address

_log = Logger("mailsvc.api")


def _tell(call: Call, done: str, name: str) -> None:
    _log.info("{done} name={name} user={user} client={client}", done=done, name=name,
              user=call.caller.name, client=call.caller.client)


# ---- domains ----


def _domain(call: Call) -> Domain:
    found = call.backend.directory.domain(call.words["domain"])
    if found is None:
        raise Problem(404, "That domain is not served here.")
    return found


async def list_domains(call: Call) -> Answer:
    """List the domains whose mail is taken."""
    return part(call, await call.backend.change(lambda directory: list(directory.domains())),
                plain.domain)


async def add_domain(call: Call) -> Answer:
    """Take on the mail of a domain."""
    value = call.value
    made = await call.backend.change(lambda directory: directory.add_domain(
        value["name"], separators=value.get("separators")))
    _tell(call, "domain added", made.name)
    return Answer(plain.domain(made), 201, {"Location": f"{ROOT}/domains/{segment(made.name)}"})


async def show_domain(call: Call) -> Answer:
    """Tell of a domain."""
    return Answer(plain.domain(_domain(call)))


async def change_domain(call: Call) -> Answer:
    """Say who gets the mail for a domain's unknown names; null to refuse it."""
    domain, target = _domain(call), call.value["catch_all"]
    given = None if target is None else parse_address(target)
    changed = await call.backend.change(
        lambda directory: directory.set_catch_all(domain.name, given))
    _tell(call, "catch-all changed", domain.name)
    return Answer(plain.domain(changed))


async def remove_domain(call: Call) -> Answer:
    """Give up the mail of a domain that has no accounts and aliases left."""
    domain = _domain(call)
    await call.backend.change(lambda directory: directory.remove_domain(domain.name))
    _tell(call, "domain removed", domain.name)
    return NOTHING


async def list_records(call: Call) -> Answer:
    """Tell what has to be published in the DNS for a domain, and its MTA-STS policy."""
    domain = _domain(call)
    try:
        addresses = [str(ipaddress.ip_address(each)) for each in call.query["address"]]
    except ValueError:
        raise Problem(422, "The field address of the query: expected an IP address such as "
                      "192.0.2.7 or 2001:db8::7.") from None
    return Answer(plain.zone(await call.backend.threads.run(
        zone_here, call.backend, domain.name, addresses)))


# ---- aliases ----


def _alias(call: Call) -> Alias:
    local_part, _, domain = call.words["alias"].rpartition("@")
    found = call.backend.directory.alias(local_part, domain)
    if found is None:
        raise Problem(404, "There is no such alias.")
    return found


async def list_aliases(call: Call) -> Answer:
    """List the aliases."""
    return part(call, await call.backend.change(lambda directory: list(directory.aliases())),
                plain.alias)


async def show_alias(call: Call) -> Answer:
    """Tell where an alias leads."""
    return Answer(plain.alias(_alias(call)))


async def put_alias(call: Call) -> Answer:
    """Lead the mail for a name to these targets, and to no others."""
    name = parse_address(call.words["alias"])
    targets = [parse_address(each) for each in call.value["targets"]]

    def put(directory: SqliteDirectory) -> tuple[bool, Alias]:
        with directory.transaction():
            new = directory.alias(name.local_part, name.domain) is None
            return new, directory.add_alias(name, targets, moved=call.value.get("moved", False),
                                            replace=True)

    new, made = await call.backend.change(put)
    _tell(call, "alias made" if new else "alias changed", made.name)
    return Answer(plain.alias(made), 201 if new else 200)


async def remove_alias(call: Call) -> Answer:
    """Remove an alias."""
    alias = _alias(call)
    await call.backend.change(
        lambda directory: directory.remove_alias(Address(alias.local_part, alias.domain)))
    _tell(call, "alias removed", alias.name)
    return NOTHING
