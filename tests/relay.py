"""A service that relays: sending by it, waiting for it, and what is in its reports."""

from __future__ import annotations

import email
import email.policy
import smtplib
import ssl
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.service import PATIENCE, Service

MESSAGE = (b"Date: Thu, 26 Nov 2026 10:00:00 +0000\r\nFrom: <alice@a.example>\r\n"
           b"Message-ID: <1@a.example>\r\nSubject: hi\r\n\r\n.a dot\r\nlast\r\n")

#: Retries within a test's patience, and what a hanging host may cost.
QUICK = ("queue.retry_first_seconds=0.3", "queue.retry_factor=1", "queue.lifetime_seconds=6",
         "queue.warning_seconds=0", "relay.connect_seconds=1", "relay.reply_seconds=1")


def relaying(directory: Path, *settings: str, accounts: Sequence[str] = ("alice@a.example:secret",),
             options: Sequence[str] = ()) -> Service:
    """A service whose users may submit, and that relays as *settings* say."""
    given = [argument for each in settings for argument in ("--set", each)]
    return Service(directory, tuple(accounts),
                   ("--submission", "127.0.0.1:0", *given, *options))


def submit(service: Service, recipients: Sequence[str], message: bytes = MESSAGE,
           sender: str = "alice@a.example", mail: Sequence[str] = (),
           rcpt: Sequence[str] = ()) -> None:
    """Log in and send, over TLS; every recipient must be accepted."""
    with smtplib.SMTP(*service.listeners["submission"], timeout=PATIENCE) as smtp:
        smtp.starttls(context=unverified())
        smtp.login("alice@a.example", "secret")
        assert smtp.sendmail(sender, list(recipients), message, list(mail), list(rcpt)) == {}


def unverified() -> ssl.SSLContext:
    """TLS with whomever."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def until(condition: Callable[[], object], service: Service, seconds: float = PATIENCE) -> None:
    """Wait until *condition* holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, service.log.read_text()[-6000:]
        time.sleep(0.05)


def mail(service: Service, account: str = "alice@a.example") -> list[bytes]:
    """What lies in the account's maildir."""
    new = service.maildir(account) / "new"
    return [each.read_bytes() for each in sorted(new.iterdir())] if new.is_dir() else []


def queued(service: Service) -> list[Path]:
    return list((service.directory / "queue" / "message").iterdir())


def below_trace(message: bytes) -> bytes:
    """*message* without the trace fields on top."""
    lines = message.split(b"\r\n")
    start = next(n for n, line in enumerate(lines)
                 if not line.startswith((b"Return-Path:", b"Received:", b" ", b"\t")))
    return b"\r\n".join(lines[start:])


def statuses(report: bytes) -> list[tuple[str, str, str]]:
    """Final recipient, action and status of each recipient of a report."""
    parsed = email.message_from_bytes(report, policy=email.policy.default)
    assert parsed.get_content_type() == "multipart/report"
    _, status, _ = parsed.iter_parts()
    assert status.get_content_type() == "message/delivery-status"
    groups = list(status.iter_parts())[1:]
    return [(group["Final-Recipient"].split("; ")[1], str(group["Action"]), str(group["Status"]))
            for group in groups]
