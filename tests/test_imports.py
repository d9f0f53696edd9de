"""Imports point one way, as docs/architecture.rst lays down; read from the source by ``ast``.

Every import counts, wherever it stands: inside a function or under TYPE_CHECKING too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

VALUES = ["errors", "mail", "networks", "settings", "wire"]
LOGINS = ["credentials", "sasl"]
CONTRACTS = [*VALUES, "interfaces"]
PEOPLE = [*CONTRACTS, "names", "ownership", "database", "logins"]
PARTS = [*PEOPLE, "directory", "state", "bans", "ledger", "brakes", "srs", "routing", "fanout",
         "queue", "submission", "dkim", "passwords", "logindelay", "accounts", "authentication",
         "certificates", "tls", "acme", "journal", "store", "sasl", "smtp", "pop3", "proxy", "pace",
         "webhooks"]
SERVICE = [*PARTS, "tracing", "trust", "checkers.inturn", "toml", "mistakes", "endpoints", "config",
           "contradictions", "log", "systemd", "succession", "holding", "headcount", "places",
           "connections", "listeners", "figures", "gathering", "history", "localsocket", "monitor",
           "control", "observer", "front", "console", "live", "api"]

#: module (or package, for all in it) -> what of mailsvc it may import.  The first row that fits.
MAY_IMPORT = {
    "errors": [],
    "mail": [],
    "networks": [],
    "settings": [],
    "wire": [],
    "interrupt": [],
    "__main__": ["cli", "sendmail"],
    "plugin": ["interrupt", "tap"],
    "toml": [],
    "mistakes": ["toml"],
    "headers": [],
    "interfaces": [],
    "credentials": [],
    "sasl": ["credentials", "settings", "sasl"],
    "trace": ["mail"],
    "smtp.tally": ["figures", "smtp.replies"],
    "smtp.reception": [*CONTRACTS, "figures", "submission", "smtp", "fanout"],
    "smtp.server": [*CONTRACTS, *LOGINS, "figures", "authentication", "submission", "trace", "smtp",
                    "connections", "conversation", "deadline", "factory"],
    "pop3.server": [*CONTRACTS, *LOGINS, "figures", "authentication", "pop3", "connections",
                    "conversation", "factory"],
    "smtp.passage": ["conversation", "transport"],
    "smtp.outgoing": [*VALUES, "trust", "dialing", "smtp"],
    "smtp": [*VALUES, *LOGINS, "headers", "trace", "smtp"],
    "pop3.retrieval": ["pop3"],
    "pop3": [*VALUES, *LOGINS, "pop3"],
    "pace": [],
    "figures": [],
    "gathering": ["figures"],
    "localsocket": [],
    "history": ["figures"],
    "monitor": ["figures", "gathering", "history", "listeners", "localsocket", "pages"],
    "control": ["config", "localsocket"],
    "pages": ["figures", "gathering", "web"],
    "web": [],
    "observer": ["figures", "gathering"],
    "headcount": ["pace"],
    "places": ["figures", "headcount"],
    "connections": [*VALUES, "pace", "headcount"],
    "deadline": [],
    "conversation": [*VALUES, *LOGINS, "authentication", "connections", "deadline", "handshake"],
    "factory": ["errors", "figures", "authentication", "connections", "log"],
    "transcript": [],
    "watching": ["connections", "networks", "transcript"],
    "live": ["connections", "localsocket", "watching"],
    "proxy": [*VALUES, "connections"],
    "webhooks.events": ["settings"],
    "webhooks.signing": [],
    "webhooks.spool": ["database"],
    "webhooks.posting": ["trust", "webhooks"],
    "webhooks": ["figures", "store.threads", "webhooks"],
    "journal": [],
    "store": [*CONTRACTS, "journal", "ownership", "turn", "store"],
    "importing.pop3": ["blocking", "fetching", "store.filenames", "importing.source"],
    "importing": ["mail", "ownership", "store", "importing"],
    "fsck": ["mail", "names", "ownership", "database", "journal", "store", "queue.message",
             "queue.spool"],
    "export": ["mailfile", "store.contents", "store.tree"],
    "backup.manifest": [],
    "backup": [*CONTRACTS, "names", "ownership", "database", "logins", "directory", "journal",
               "store", "backup"],
    "names": ["mail"],
    "ownership": [],
    "database": ["errors", "names", "ownership"],
    "state": ["errors", "names", "database"],
    "bans": ["networks", "state"],
    "ledger": ["errors", "names", "state", "bans"],
    "brakes": ["errors", "networks", "settings", "names", "bans", "ledger"],
    "submission.limits": ["settings", "names"],
    "submission.mailboxes": ["mail"],
    "submission.repair": [],
    "submission.rates": [*VALUES, "names", "state", "submission.limits"],
    "submission": [*PEOPLE, "trace", "routing", "submission"],
    "authentication": [*PEOPLE, *LOGINS, "figures", "brakes", "accounts"],
    "certificates": ["ownership"],
    "acme.limits": ["settings"],
    "acme.files": ["ownership"],
    "acme.page": ["acme.files", "web"],
    "acme.alpn": ["acme.files", "handshake"],
    "acme": ["certificates", "acme"],
    "handshake": [],
    "tls": ["settings", "certificates", "handshake"],
    "trust": ["handshake"],
    "dialing": ["networks", "trust"],
    "transaction": [*VALUES, "smtp"],
    "client": [*VALUES, "sasl", "smtp", "trust", "dialing", "transaction"],
    "schema": [],
    "logins": ["mail", "names", "networks", "database"],
    "directory": [*CONTRACTS, "names", "database", "schema", "logins"],
    "srs": ["mail"],
    "routing": [*CONTRACTS, "names", "srs"],
    "fanout": CONTRACTS,
    "dkim": ["names", "ownership", "submission.mailboxes"],
    "queue.limits": ["settings"],
    "queue.message": ["mail"],
    "queue.receipts": ["queue.message"],
    "queue.claims": [],
    "queue.spool": ["journal", "queue.claims", "queue.content", "queue.message", "queue.receipts",
                    "store.checkpoint", "store.tree"],
    "queue.recovery": ["journal", "queue.message", "queue.receipts", "queue.spool",
                       "store.replay"],
    "queue.content": ["headers"],
    "queue.slots": [],
    "queue.schedule": ["mail", "queue.limits", "queue.message"],
    "queue.filter": ["mail", "names", "queue.message"],
    "queue.dsn": ["mail", "trace", "queue.message"],
    "queue.pipe": ["errors"],
    "queue.routes": ["mail", "names", "settings", "queue.message"],
    "queue.exchangers": ["errors", "queue.routes"],
    "queue.security.sts": [],
    "queue.security.levels": ["state"],
    "queue.security.dane": [],
    "queue.security.tlsa": ["queue.security.dane", "queue.security.lookup"],
    "queue.security.lookup": ["queue.routes", "store.threads"],
    "queue.security.https": ["trust", "queue.exchangers"],
    "queue.security.policies": ["errors", "state", "store.threads", "queue.security"],
    "queue.security.results": ["state", "store.threads"],
    "queue.security.report": ["trace", "queue.security.results"],
    "queue.security": ["errors", "mail", "client", "smtp.failures", "store.threads", "trust",
                       "queue.exchangers", "queue.routes", "queue.security"],
    "queue": [*CONTRACTS, "figures", "names", "trace", "srs", "fanout", "journal", "localsocket",
              "store", "client", "dialing", "trust",
              "smtp.failures", "smtp.offers", "smtp.requests", "transport", "queue"],
    "passwords": [*CONTRACTS, *LOGINS, "names"],
    "logindelay": ["errors", "names", "state"],
    "accounts": [*PEOPLE, "credentials", "passwords", "logindelay"],
    "checkers.inturn": ["errors"],
    "checkers.plugin": ["checkers"],
    "checkers.verifiers": ["accounts", "passwords"],
    "checkers": ["errors", "settings", "credentials", "checkers"],
    "tracing.limits": ["settings"],
    "tracing": ["errors", "mail", "networks", "figures", "names", "database", "log", "tracing"],
    "systemd": ["log"],
    "turn": [],
    "transport": ["turn"],
    "succession": [],
    "holding": ["ownership"],
    "listeners": ["transport"],
    "log": ["settings", "turn"],
    "endpoints": [],
    "contradictions": ["acme.limits", "config", "endpoints", "toml"],
    "config": [*PARTS, "endpoints", "console.limits", "toml", "mistakes", "log", "tracing.limits"],
    "front": ["acme.alpn", "acme.files", "acme.page", "config", "contradictions", "control",
              "gathering", "history", "holding", "listeners", "monitor", "prerequisites",
              "succession", "systemd"],
    "doctor.facts": [],
    "doctor.spf": ["queue.security.lookup"],
    "doctor.host": ["config", "directory", "errors", "localsocket", "monitor", "names", "ownership",
                    "doctor"],
    "doctor.listening": ["acme.limits", "config", "client", "dialing", "fetching", "pop3.fetching",
                         "smtp", "trust", "doctor"],
    "doctor.probes": ["doctor.facts"],
    "doctor.examination": ["dialing", "trust", "doctor"],
    "doctor.outgoing": ["config", "client", "queue", "smtp", "trust", "doctor"],
    "doctor.world": ["certificates", "config", "queue", "reach", "records",
                     "store.threads", "zone", "doctor"],
    "doctor": ["queue", "reach", "zone", "doctor"],
    "jsonschema": ["config", "settings"],
    "reach": ["config"],
    "records": ["names", "ownership", "certificates", "config", "dkim", "queue", "reach", "zone"],
    "installation": [*PEOPLE, "directory", "passwords", "certificates", "config", "dkim"],
    "zone": ["dkim", "reach"],
    "console.limits": ["settings"],
    "console.forms": [],
    "console.texts": [],
    "console.meanings": [],
    "console.letters": [],
    "console.graphs": [],
    "console.sessions": ["state", "console.limits"],
    "paths": [],
    "mailbox": [*CONTRACTS, "store.threads", "store.undeletion"],
    "plain": [*PEOPLE, "directory", "bans", "config", "queue.filter", "queue.message",
              "store.undeletion", "tracing.story", "webhooks.spool", "zone"],
    "console.channel": ["connections", "errors"],
    "console": [*PARTS, "credentials", "client", "composing", "config", "connections", "doctor",
                "history", "listeners", "live", "localsocket", "mailbox", "monitor", "paths",
                "reach", "records", "toml", "tracing", "watching", "zone", "console"],
    "api.problems": [],
    "api.shapes": ["mail", "logins", "queue.filter", "api.problems"],
    "api": [*PARTS, "credentials", "client", "composing", "config", "connections", "console",
            "live", "localsocket", "mailbox", "monitor", "paths", "plain", "tracing", "trust",
            "api"],
    "stopping": [],
    "prerequisites": ["config", "contradictions", "holding", "listeners", "ownership",
                      "store.tree", "trust"],
    "service": [*SERVICE, "prerequisites", "relaying"],
    "relaying": ["config", "dkim", "figures", "names", "ownership", "queue", "routing", "state",
                 "store"],
    "rehearsal": SERVICE,
    "consequences": ["config", "networks", "rehearsal", "tracing"],
    "worker": ["config", "holding", "listeners", "log", "places", "service"],
    "backoff": [],
    "child": ["holding", "listeners", "worker"],
    "workers": [*SERVICE, "service", "worker", "child", "backoff"],
    "serving": ["config", "front", "listeners", "log", "service", "succession", "workers"],
    "blocking": ["client"],
    "composing": [],
    "fetching": ["sasl", "pop3", "trust", "dialing"],
    "mailfile": ["mail"],
    "sendmail": ["mail", "wire", "submission.mailboxes"],
    "tap": [*SERVICE, "credentials", "service", "serving", "stopping", "workers"],
    "cli": [*SERVICE, "prerequisites", "rehearsal", "consequences", "relaying", "service",
            "serving", "stopping", "tap", "sendmail", "interrupt", "client", "jsonschema", "plain",
            "blocking", "composing", "trust", "fetching", "mailfile", "reach", "records", "zone",
            "installation", "doctor", "backup", "importing", "export", "fsck", "cli"],
}

#: Left of the servers nothing knows a reactor.
SANS_IO = [*VALUES, "interfaces", "trace", "toml", "mistakes", "names", "database", "state", "bans",
           "schema", "logins", "directory", "srs", "routing", "sasl", "submission", "smtp", "pop3",
           "figures", "queue.limits", "queue.message", "queue.schedule", "queue.filter",
           "transcript", "webhooks.events", "webhooks.signing", "webhooks.spool",
           "queue.dsn", "queue.routes", "queue.security.sts", "queue.security.levels",
           "queue.security.dane", "console.limits", "console.forms", "console.texts",
           "console.meanings", "console.letters", "console.graphs", "console.sessions",
           "paths", "plain",
           "api.problems", "api.shapes"]
ADAPTORS = ["smtp.server", "smtp.passage", "smtp.outgoing", "smtp.incoming", "smtp.severally",
            "smtp.reception", "submission.agent", "submission.rates", "pop3.server",
            "pop3.retrieval"]

MODULES = sorted((ROOT / "mailsvc").rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """The modules that the file at *path* imports, dotted and absolute.

    ``from a import b`` yields ``a.b``: whether b is a module or a name in a, a prefix decides.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def dotted(path: Path) -> str:
    """The module's name below ``mailsvc``: ``smtp.session``; a package by its own name."""
    parts = path.relative_to(ROOT / "mailsvc").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def within(module: str, packages: list[str]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_a_module_imports_only_what_stands_left_of_it(path: Path) -> None:
    module = dotted(path)
    ours = [name.removeprefix("mailsvc.") for name in imports(path)
            if name.startswith("mailsvc.")]
    if module in {"", "smtp", "pop3", "submission", "queue", "doctor", "backup", "importing",
                  "acme", "tracing", "console", "api"}:
        assert ours in ([], ["__version__"]), "these packages only hold their modules"
        return
    row = next((row for row in MAY_IMPORT if within(module, [row])), None)
    assert row is not None, f"{module} has no place in docs/architecture.rst and MAY_IMPORT yet"
    strangers = [name for name in ours if not within(name, [*MAY_IMPORT[row], "__version__"])]
    assert not strangers, f"{module} must not import {', '.join(strangers)}"


@pytest.mark.parametrize(
    "path",
    [p for p in MODULES if within(dotted(p), SANS_IO) and not within(dotted(p), ADAPTORS)],
    ids=dotted,
)
def test_the_cores_know_no_reactor(path: Path) -> None:
    assert not [name for name in imports(path) if within(name, ["twisted", "asyncio", "socket"])]


@pytest.mark.parametrize("path", [*MODULES, *(ROOT / "twisted").rglob("*.py")],
                         ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_imports_twisted_mail(path: Path) -> None:
    assert not [name for name in imports(path) if within(name, ["twisted.mail"])]


def test_the_table_names_only_what_there_is() -> None:
    names = {dotted(path) for path in MODULES}
    assert set(MAY_IMPORT) <= names


def test_a_forbidden_import_is_seen(tmp_path: Path) -> None:
    sample = tmp_path / "sample.py"
    sample.write_text("def f():\n    from twisted import mail\n    import twisted.mail.smtp\n")
    assert list(imports(sample)) == ["twisted.mail", "twisted.mail.smtp"]
