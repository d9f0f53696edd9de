"""Whether SPF (RFC 7208) lets an address send as a domain, as others would judge it.

The judge is pyspf, which asks through our own resolver.  It blocks: for threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import spf

from mailsvc.queue.security.lookup import Found, LookupFailed

#: RFC 7208 §4.6.4: more than two look-ups without an answer are an error of the record.
_VOID = 2


def evaluate(address: str, domain: str, hostname: str, seconds: float,
             find: Callable[[str, str], Found]) -> tuple[str, str]:
    """The result ("pass", "fail" …, RFC 7208 §2.6), and a text that explains it.

    :param address: from where mail would come; *domain*: as whom; *hostname*: of EHLO.
    :param find: asks the DNS, and blocks; raises LookupFailed.
    """
    query = _Query(address, f"postmaster@{domain}", hostname, find, seconds)
    result, _, text = query.check()
    return result, str(text)


class _Query(spf.query):
    """One judgement, whose questions go to *find*, which follows aliases."""

    def __init__(self, address: str, sender: str, hostname: str,
                 find: Callable[[str, str], Found], seconds: float) -> None:
        super().__init__(address, sender, hostname, strict=True)
        self._find = find
        self._end = time.monotonic() + seconds

    def dns(self, name: Any, qtype: str, cnames: Any = None,
            ignore_void: bool = False) -> Sequence[Any]:
        """The records of type *qtype*, in pyspf's forms."""
        if time.monotonic() > self._end:
            raise spf.TempError("the look-ups take too long")
        host = str(name).rstrip(".").lower()
        if not host or not all(0 < len(label) < 64 for label in host.split(".")):
            return []
        try:
            found = self._find(host, qtype) if qtype != "SPF" else None
        except LookupFailed as failure:
            raise spf.TempError(str(failure)) from None
        records = [_form(qtype, each) for each in (found.records if found else ())]
        if not records and not ignore_void:
            self.void_lookups += 1
            if self.void_lookups > _VOID:
                raise spf.PermError(f"more than {_VOID} look-ups without an answer")
        return records


def _form(kind: str, record: Any) -> Any:
    match kind:
        case "MX":
            return record.preference, record.exchange.to_text(omit_final_dot=True)
        case "PTR":
            return record.target.to_text(omit_final_dot=True)
        case "TXT":
            return record.strings
    return record.address
