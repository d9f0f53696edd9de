"""Domains, for administrators: what ``mailsvc domain`` does, the records to publish in the DNS of
each, and what the world sees of them by now.

The records are those of ``mailsvc domain records``, the checks those of ``mailsvc doctor``.  A
check asks name servers and web servers elsewhere, which may take their time: its page is written
while it goes on, and a process does few at once.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace

from twisted.internet.defer import Deferred, DeferredQueue
from twisted.logger import Logger

from mailsvc.console.call import Answer, Backend, Call, Page, Problem, Redirect, Stream
from mailsvc.console.pages import segment
from mailsvc.directory import SqliteDirectory
from mailsvc.doctor.facts import Fact, Verdict, examine
from mailsvc.doctor.world import World, shown_by
from mailsvc.mail import Domain
from mailsvc.names import DirectoryError, parse_address
from mailsvc.reach import bound
from mailsvc.records import zone_of
from mailsvc.zone import Record, Zone, text

_log = Logger("mailsvc.console")

#: How many checks a process makes at once, and how long each part of one may take, seconds.
_AT_ONCE, _SECONDS = 4, 10.0

#: What records are for, by what begins their names, or by their types.
PURPOSES = {
    "_dmarc": "What becomes of forged mail (DMARC)", "_mta-sts": "TLS on the way here (MTA-STS)",
    "_smtp._tls": "Reports on TLS (TLS-RPT)", "A": "Where this host is",
    "AAAA": "Where this host is", "PTR": "Reverse DNS", "MX": "Where mail is delivered (MX)",
    "SRV": "Where mail programs connect (SRV)",
}
SPF, DKIM = "Who may send (SPF)", "The keys that sign mail (DKIM)"
#: How facts are to be taken.
VERDICTS = {Verdict.OK: ("good", "right"), Verdict.NOTE: ("muted", "note"),
            Verdict.WARN: ("later", "warning"), Verdict.FAIL: ("bad", "wrong")}

_under_way = 0


async def show_list(call: Call) -> Answer:
    """The domains."""
    return await _list(call)


async def _list(call: Call, wrong: str = "") -> Page:
    def read(directory: SqliteDirectory) -> tuple[list[Domain], Counter[str], Counter[str]]:
        return (list(directory.domains()),
                Counter(each.domain for each in directory.accounts()),
                Counter(each.domain for each in directory.aliases()))

    domains, accounts, aliases = await call.backend.change(read)
    return Page("domains.html", {
        "domains": domains, "accounts": accounts, "aliases": aliases, "wrong": wrong,
        "form": call.form}, 400 if wrong else 200)


async def add(call: Call) -> Answer:
    """Take on the mail of one."""
    try:
        made = await call.backend.change(
            lambda directory: directory.add_domain(call.form["name"]))
    except DirectoryError as error:
        return await _list(call, str(error))
    _tell(call, "added", made)
    return Redirect(f"/domains/{segment(made.name)}", "domain-added")


def _tell(call: Call, done: str, domain: Domain) -> None:
    _log.info("domain {done} domain={domain} user={user} client={client}", done=done,
              domain=domain.name, user=call.user.name, client=call.client)


def _found(call: Call) -> Domain:
    domain = call.backend.directory.domain(call.words["name"])
    if domain is None:
        raise Problem("There is no such domain here.", 404)
    return domain


async def show(call: Call) -> Answer:
    """One domain, and its records."""
    return await _show(call)


async def _show(call: Call, wrong: str = "") -> Page:
    domain, addresses = _found(call), _addresses(call.query["address"])
    zone = await call.backend.threads.run(zone_here, call.backend, domain.name, addresses)
    groups: dict[str, list[Record]] = {}
    for record in zone.records():
        groups.setdefault(purpose(record), []).append(record)
    return Page("domain.html", {
        "domain": domain, "zone": zone, "groups": groups, "wrong": wrong,
        "text": text(zone.records(), zone.domain), "asked": call.query["address"],
        "catch_all": call.form["target"] if wrong else str(domain.catch_all or "")},
        400 if wrong else 200)


def purpose(record: Record) -> str:
    """What *record* is for."""
    for start, words in PURPOSES.items():
        if record.name.startswith(f"{start}.") or record.kind == start:
            return words
    if record.kind == "TXT":
        return DKIM if "._domainkey." in record.name else SPF
    return record.kind


def _addresses(asked: str) -> list[str]:
    try:
        return [str(ipaddress.ip_address(each)) for each in asked.replace(",", " ").split()[:8]]
    except ValueError:
        raise Problem("An IP address such as 192.0.2.7 or 2001:db8::7 was expected.") from None


def zone_here(backend: Backend, domain: str, addresses: list[str]) -> Zone:
    """What the DNS has to say of *domain*; it blocks.  For the API, too."""
    # Where it really listens: by the systemd units, say.
    settings = replace(backend.settings, listeners=bound(backend.listening()))
    return zone_of(settings, domain, addresses=addresses)


async def change(call: Call) -> Answer:
    """Who gets the mail for unknown names."""
    target = call.form["target"]
    try:
        changed = await call.backend.change(lambda directory: directory.set_catch_all(
            call.words["name"], parse_address(target) if target else None))
    except DirectoryError as error:
        return await _show(call, str(error))
    _tell(call, "changed", changed)
    return Redirect(f"/domains/{segment(changed.name)}", "domain-changed")


async def remove(call: Call) -> Answer:
    """Give it up."""
    try:
        removed = await call.backend.change(
            lambda directory: directory.remove_domain(call.words["name"]))
    except DirectoryError as error:
        return await _list(call, str(error))
    _tell(call, "removed", removed)
    return Redirect("/domains", "domain-removed")


async def check(call: Call) -> Answer:
    """What the world sees of it: each fact is shown when it is known."""
    global _under_way  # noqa: PLW0603 - of the process, as what it bounds is
    domain, addresses = _found(call), _addresses(call.form["address"])
    zone = await call.backend.threads.run(zone_here, call.backend, domain.name, addresses)
    shown = await call.backend.threads.run(shown_by, call.backend.settings)
    if _under_way >= _AT_ONCE:
        raise Problem("The service is busy; try again in a moment.", 503)
    told: DeferredQueue[Page | None] = DeferredQueue()

    def tell(fact: Fact) -> None:
        told.put(Page("_fact.html", {"fact": fact, "verdict": VERDICTS[fact.verdict]}))

    async def run() -> None:
        reactor = call.backend.reactor
        world = World(call.backend.settings, addresses, shown, _SECONDS, reactor,
                      call.backend.lookups)
        try:
            await examine([*world.of_host(zone), *world.of_domain(zone)], _SECONDS, reactor, tell)
        finally:
            world.stop()

    async def pieces() -> AsyncIterator[Page]:
        while (piece := await told.get()) is not None:
            yield piece

    def over(_: object) -> None:
        global _under_way  # noqa: PLW0603
        _under_way -= 1
        told.put(None)

    _under_way += 1
    Deferred.fromCoroutine(run()).addErrback(
        lambda failure: _log.failure("a domain could not be looked at", failure)).addBoth(over)
    return Stream(Page("checked.html", {"domain": domain}), pieces())
