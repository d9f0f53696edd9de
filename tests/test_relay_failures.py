"""Exchangers and name servers that fail, in every way and at every step.

Each message ends delivered once, or is returned once with the right status.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import pytest

from tests.daemons import free_port
from tests.exchanger import Exchanger
from tests.nameserver import NameServer
from tests.relay import (
    MESSAGE,
    QUICK,
    below_trace,
    mail,
    queued,
    relaying,
    statuses,
    submit,
    until,
)

#: The steps of a transaction that have a reply.
STEPS = ("greet", "ehlo", "mail", "rcpt", "data", "end")

#: domain -> what its exchangers do, each a tuple of behaviours for one connection after the other;
#: and how the message must end: how many times it was taken, or the status of the one report.
#: 4.4.7: it was tried until its time was over.
CASES: dict[str, tuple[list[tuple[str, ...]], int | str]] = {
    "fine": ([()], 1),
    # ---- at every step, once: the next attempt, or the next exchanger, succeeds
    **{f"4xx-at-{step}": ([(f"{step}=451_4.3.0_no", "")], 1) for step in STEPS},
    **{f"421-at-{step}": ([(f"{step}=421_4.3.2_closing", "")], 1) for step in STEPS},
    **{f"drop-at-{step}": ([(f"drop={step}", "")], 1) for step in (*STEPS, "content")},
    **{f"hang-at-{step}": ([(f"hang={step}", "")], 1) for step in (*STEPS, "content")},
    **{f"garbage-at-{step}": ([(f"garbage={step}", "")], 1) for step in STEPS},
    **{f"endless-at-{step}": ([(f"endless={step}", "")], 1) for step in STEPS},
    **{f"trickle-at-{step}": ([(f"trickle={step}", "")], 1) for step in STEPS},
    **{f"next-after-4xx-at-{step}": ([(f"{step}=450_4.2.1_busy",), ()], 1) for step in STEPS},
    # Once the message was sent whole it may have been taken: then another exchanger gets it, but
    # not before the next attempt.
    **{f"next-after-drop-at-{step}": ([(f"drop={step}",), ()], 1)
       for step in (*STEPS, "content")},
    **{f"next-after-hang-at-{step}": ([(f"hang={step}",), ()], 1)
       for step in (*STEPS, "content")},
    "next-after-554": ([("greet=554_5.3.2_no_mail_here",), ()], 1),
    "next-after-ehlo-5xx": ([("ehlo=550_5.7.1_not_you",), ()], 1),
    "next-after-black-hole": ([("black-hole",), ()], 1),
    "next-after-closed-port": ([("closed",), ()], 1),
    "greylisting": ([("rcpt=450_4.7.1_later", "rcpt=450_4.7.1_later", "")], 1),
    "4xx-mail-then-lax": ([("mail=451_4.3.0_no lax", "")], 1),
    # ---- at every step, for ever
    **{f"always-4xx-at-{step}": ([(f"{step}=451_4.3.0_no",)], "4.4.7") for step in STEPS},
    "always-drops": ([("drop=content",)], "4.4.7"),
    "always-hangs": ([("hang=greet",)], "4.4.7"),
    "always-garbage": ([("garbage=greet",)], "4.4.7"),
    "closed-port": ([("closed",)], "4.4.7"),
    "black-hole": ([("black-hole",)], "4.4.7"),
    # ---- refusals
    **{f"5xx-at-{step}": ([(f"{step}=550_5.7.1_no",)], "5.7.1") for step in STEPS},
    "nobody": ([("rcpt=550_5.1.1_nobody",)], "5.1.1"),
    "spam": ([("end=554_5.6.0_spam",)], "5.6.0"),
    "refused-by-all": ([("greet=554_5.3.2_closed",), ("greet=554_5.3.2_closed",)], "5.3.2"),
    # Who is not there may be there later, whatever the other says.
    "refused-by-one": ([("closed",), ("greet=554_5.3.2_closed",)], "4.4.7"),
    "refused-by-first": ([("greet=554_5.3.2_closed",), ("hang=greet",)], "4.4.7"),
    "without-status": ([("rcpt=550_go_away",)], "5.0.0"),
    # A sender that was refused is refused for all, whatever is said to RCPT and DATA then.
    "5xx-mail-then-lax": ([("mail=550_5.7.1_not_you lax",)], "5.7.1"),
    # ---- TLS
    "self-signed": ([("starttls",)], 1),
    "broken-tls": ([("badtls",)], 1),
    "not-smtp": ([("greet=HTTP/1.1_400_Bad_Request", "")], 1),
    "unverified": ([("starttls",)], "4.4.7"),
    "without-tls": ([("",)], "4.4.7"),
    # ---- RFC 5321 §6.1, RFC 1047: the answer was lost, so it comes twice rather than never
    "taken-and-lost": ([("lose=end", "")], 2),
}
#: Routes that insist on a certificate that proves something.
VERIFIED = ("unverified", "without-tls")

#: domain -> its records, and the status.
LOOKED_UP = {
    "nowhere": ([], "5.1.2"), "null": (["MX 0 ."], "5.1.10"), "none": (["TXT x"], "5.4.4"),
    "lame": (["SERVFAIL"], "4.4.7"), "silent": (["SILENCE"], "4.4.7"),
    "dangling": (["MX 10 gone.example"], "5.4.4"), "lame-mx": (["MX 10 lame.example"], "4.4.7"),
    "circle": (["CNAME round.example"], "5.4.4"), "round": (["CNAME circle.example"], "5.4.4"),
    "itself": (["CNAME itself.example"], "5.4.4"), "mx-in-circle": (
        ["MX 10 circle.example"], "5.4.4"),
    "self": (["MX 10 me.example"], "5.4.6"), "self-by-name": (["MX 10 mx.example.org"], "5.4.6"),
    "backup": (["MX 10 me.example", "MX 20 mx0.fine.example"], "5.4.6"),
}


class BlackHole:
    """A port at *address* that answers no connection: its backlog is full."""

    def __init__(self, address: str, port: int) -> None:
        self._sockets = [socket.socket()]
        self._sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._sockets[0].bind((address, port))
        self._sockets[0].listen(0)
        for _ in range(4):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex((address, port))
            self._sockets.append(client)

    def __enter__(self) -> BlackHole:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for each in self._sockets:
            each.close()


@pytest.mark.slow
def test_exchangers_that_fail(tmp_path: Path) -> None:
    certificate = tmp_path / "cert.pem"
    certificate.write_bytes(self_signed())
    with ExitStack() as stack:
        port, number = free_port(), 10
        zone: dict[str, list[str]] = {"me.example": ["A 127.0.0.1"],
                                      "mx.example.org": ["A 127.0.0.1"]}
        exchangers: dict[str, list[Exchanger]] = {}
        routes = []
        for name, (behaviours, _) in CASES.items():
            domain = f"{name}.example"
            zone[domain] = []
            for preference, behaviour in enumerate(behaviours):
                number += 1
                address, host = f"127.0.0.{number}", f"mx{preference}.{domain}"
                zone[domain].append(f"MX {preference} {host}")
                zone[host] = [f"A {address}"]
                if behaviour == ("black-hole",):
                    stack.enter_context(BlackHole(address, port))
                elif behaviour != ("closed",):
                    exchangers.setdefault(name, []).append(stack.enter_context(Exchanger(
                        address, port, *behaviour, certificate=certificate)))
                if name in VERIFIED:
                    routes.append(f'"{domain}"="smtp+starttls://{address}:{port}"')
        for name, (records, _) in LOOKED_UP.items():
            if records:
                zone[f"{name}.example"] = records
        names = stack.enter_context(NameServer(zone))
        service = stack.enter_context(relaying(
            tmp_path / "data", f'relay.dns=["{names.address}"]', f"relay.port={port}",
            f"relay.routes={{{', '.join(routes)}}}", *QUICK,
            options=("--smtp", f"127.0.0.1:{port}")))
        ends = {name: end for name, (_, end) in (CASES | LOOKED_UP).items()}
        for name in ends:
            submit(service, [f"bob@{name}.example"])
        until(lambda: not queued(service), service, 120)
        reports = dict(_reported(mail(service)))
        log = service.log.read_text()
        assert "Traceback" not in log
        found: dict[str, int | str | None] = {}
        for name in ends:
            taken = [message for each in exchangers.get(name, []) for message in each.messages]
            report = reports.pop(f"bob@{name}.example", None)
            found[name] = report if report and not taken else len(taken) if not report else (
                f"{report}, and taken {len(taken)} times")
            for sender, recipients, text, tls in taken:
                assert sender.upper().startswith("MAIL FROM:<ALICE@A.EXAMPLE>")
                assert [each.split(">")[0] for each in recipients] == [
                    f"RCPT TO:<bob@{name}.example"]
                assert below_trace(text) == MESSAGE and b"Return-Path" not in text
                assert tls == (name == "self-signed")
        assert {name: end for name, end in found.items() if end != ends[name]} == {}, log
        assert reports == {}, log


def _reported(messages: list[bytes]) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for report in messages:
        for recipient, action, status in statuses(report):
            assert action == "failed" and recipient not in seen
            seen.add(recipient)
            yield recipient, status


def self_signed() -> bytes:
    """A certificate for nobody in particular, and its key."""
    import trustme  # noqa: PLC0415

    certificate = trustme.CA().issue_cert("elsewhere.example")
    return certificate.private_key_and_cert_chain_pem.bytes()
