"""TLS reports (RFC 8460): counts in, JSON and mail out; where they go."""

from __future__ import annotations

import base64
import datetime
import gzip
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from mailsvc.queue.security.results import Count, Detail
from mailsvc.trace import date

#: How many different failures of one policy are told.
_DETAILS = 500

#: To how many places one report goes at most: a record could name a thousand mailboxes of others.
_PLACES = 5

#: The media type of a report (§6.5).
KIND = "application/tlsrpt+gzip"


def destinations(texts: Sequence[str]) -> list[str]:
    """Where reports go by the TXT records at ``_smtp._tls.DOMAIN`` (§3): URIs with mailto or https,
    each once and five at most.

    Empty if there is no record, more than one, or none of what it says is understood.
    """
    meant = [text for text in texts if re.match(r"v=TLSRPTv1[ \t]*(;|$)", text)]
    if len(meant) != 1:
        return []
    fields = [part.strip(" \t").partition("=") for part in meant[0].split(";")]
    rua = next((value.strip(" \t") for name, _, value in fields if name.strip(" \t") == "rua"), "")
    uris = [uri for part in rua.split(",") if (uri := part.strip(" \t")) and _understood(uri)]
    return list(dict.fromkeys(uris))[:_PLACES]


def _understood(uri: str) -> bool:
    try:
        parts = urlsplit(uri)
        if not uri.isascii() or not uri.isprintable() or " " in uri:
            return False
        if parts.scheme == "mailto":
            return re.fullmatch(r"[^@\s<>\"(),:;]+@[A-Za-z0-9_.-]+", mailbox(uri)) is not None
        return parts.scheme == "https" and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return False


def mailbox(uri: str) -> str:
    """The address of a ``mailto:`` URI (RFC 6068), without its fields."""
    return unquote(urlsplit(uri).path)


@dataclass(frozen=True, slots=True)
class TLSReport:
    """The report of one day about one domain.

    :ivar day: as "2026-11-26", in UTC.
    :ivar submitter: the domain that reports; *contact*: an address of it.
    :ivar id: tells it from all others, left of an "@".
    """

    day: str
    domain: str
    counts: Sequence[Count]
    submitter: str
    contact: str
    id: str

    @property
    def content(self) -> dict[str, Any]:
        """The report as JSON has it (§4.4)."""
        policies: dict[Any, list[Count]] = {}
        for each in self.counts:
            policies.setdefault(each.policy, []).append(each)
        return {
            "organization-name": self.submitter,
            "date-range": {"start-datetime": f"{self.day}T00:00:00Z",
                           "end-datetime": f"{self.day}T23:59:59Z"},
            "contact-info": self.contact,
            "report-id": f"{self.id}@{self.submitter}",
            "policies": [{
                "policy": {
                    "policy-type": policy.kind,
                    **({"policy-string": list(policy.strings)} if policy.strings else {}),
                    "policy-domain": self.domain,
                    **({"mx-host": list(policy.patterns)} if policy.patterns else {}),
                },
                "summary": {
                    "total-successful-session-count": sum(
                        each.sessions for each in counts if each.detail is None),
                    "total-failure-session-count": sum(
                        each.sessions for each in counts if each.detail is not None),
                },
                "failure-details": [
                    _failure(each.detail, each.sessions) for each in counts
                    if each.detail is not None][:_DETAILS],
            } for policy, counts in policies.items()],
        }

    @property
    def compressed(self) -> bytes:
        """The same as octets, by gzip."""
        # No time in it, so that the same report is the same octets.
        return gzip.compress(json.dumps(self.content, indent=1).encode(), mtime=0)

    @property
    def filename(self) -> str:
        """The name of the attachment (§5.1)."""
        begin = datetime.datetime.fromisoformat(f"{self.day}T00:00:00+00:00").timestamp()
        return (f"{self.submitter}!{self.domain}!{begin:.0f}!{begin + 86_399:.0f}!{self.id}"
                ".json.gz")

    def mail(self, to: str, now: float) -> bytes:
        """The report as a message, with CRLF (§5.3)."""
        # RFC 2046 §5.1.1: 70 characters.
        boundary = f"{self.id}/{self.submitter}"[:70]
        attachment = base64.encodebytes(self.compressed).replace(b"\n", b"\r\n")
        header = [
            f"Date: {date(int(now))}",
            f"From: <{self.contact}>",
            f"To: <{to}>",
            f"Subject: Report Domain: {self.domain} Submitter: {self.submitter}",
            f" Report-ID: <{self.id}@{self.submitter}>",
            f"Message-ID: <{self.id}@{self.submitter}>",
            f"TLS-Report-Domain: {self.domain}",
            f"TLS-Report-Submitter: {self.submitter}",
            # §5.3: what is wrong with their TLS must not keep the report of it (RFC 8689 §3).
            "TLS-Required: No",
            "Auto-Submitted: auto-generated",
            "MIME-Version: 1.0",
            'Content-Type: multipart/report; report-type="tlsrpt";',
            f'\tboundary="{boundary}"',
            "", f"--{boundary}",
            "Content-Type: text/plain; charset=us-ascii", "",
            f"This is a report of {self.submitter} about the TLS sessions that it had with the",
            f"mail exchangers of {self.domain} on {self.day}, in the form of RFC 8460.",
            f"--{boundary}",
            f"Content-Type: {KIND}",
            "Content-Transfer-Encoding: base64",
            "Content-Disposition: attachment;",
            f'\tfilename="{self.filename}"', "", "",
        ]
        return "\r\n".join(header).encode("ascii") + attachment + f"--{boundary}--\r\n".encode()


def _failure(detail: Detail, sessions: int) -> dict[str, Any]:
    said = {"result-type": detail.result, "receiving-mx-hostname": detail.host,
            "receiving-ip": detail.address, "failed-session-count": sessions,
            "failure-reason-code": detail.text}
    return {name: value for name, value in said.items() if value != ""}
