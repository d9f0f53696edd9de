"""What the DNS has to say of a domain whose mail is here: its records, and its MTA-STS policy.

Values in, values out: nothing is asked.  Each record has a sentence that says what it is for:

* of the host: A and AAAA; PTR, which belongs to whoever gave out the address; SPF for its own name,
  which is what a report without a sender is checked by (RFC 7208 §2.3);
* of the domain: MX; SPF (RFC 7208), DKIM (RFC 6376), DMARC (RFC 7489); MTA-STS (RFC 8461) and
  TLS-RPT (RFC 8460); SRV for mail programs (RFC 6186, RFC 8314);
* TLSA (RFC 7672), if they are wanted: they count only in a zone that is signed, and have to change
  before the key does.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mailsvc.dkim import Key
from mailsvc.reach import SERVICES

#: Most octets of one string of a TXT record (RFC 1035 §3.3).
_STRING = 255

#: Where a policy is on its host (RFC 8461 §3.3).
POLICY_PATH = "/.well-known/mta-sts.txt"

#: For how long a policy holds: RFC 8461 §3.2 would have weeks or longer, once it is proven.
_TESTED_SECONDS, _ENFORCED_SECONDS = 86_400, 2_592_000


@dataclass(frozen=True, slots=True)
class Record:
    """One record.

    :ivar name: whose it is, in A-labels, without a final dot.
    :ivar kind: its type: "MX", "TXT" …
    :ivar value: as in a zone file; of TXT the text itself, in one piece.
    :ivar sentence: what it is for; may have several lines.
    """

    name: str
    kind: str
    value: str
    sentence: str = ""

    @property
    def line(self) -> str:
        """As a line of a zone file."""
        return f"{self.name}. IN {self.kind} {self._data}"

    @property
    def _data(self) -> str:
        if self.kind != "TXT":
            return self.value
        strings = [self.value[at:at + _STRING] for at in range(0, len(self.value), _STRING)]
        quoted = [f'"{each}"' for each in (
            each.replace("\\", "\\\\").replace('"', '\\"') for each in strings)]
        return quoted[0] if len(quoted) == 1 else f"( {' '.join(quoted)} )"


def text(records: Iterable[Record], domain: str) -> str:
    """The lines of a zone file, each sentence above the first record that it is about.

    What belongs into another zone than that of *domain* is a comment: no name server takes it here.
    """
    lines: list[str] = []
    before = ""
    for record in records:
        if record.sentence != before:
            lines += [f"; {line}" for line in record.sentence.splitlines()]
            before = record.sentence
        inside = f".{record.name}".endswith(f".{domain}")
        lines.append(record.line if inside else f";{record.line}")
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Zone:
    """A domain, and where its mail is.

    :ivar domain: in A-labels; *hostname* likewise.
    :ivar addresses: of the host, as others see them.
    :ivar receives: whether other servers deliver here.
    :ivar reachable: the ports for mail programs, as :func:`mailsvc.reach.ports`.
    :ivar keys: those that sign, or will.
    :ivar senders: further addresses that mail leaves from.
    :ivar smarthost: the host that takes our mail, if it does not go straight to others.
    :ivar enforced: whether mail shall rather stay away than come without verified TLS (MTA-STS).
    :ivar certificates: those whose keys TLSA records shall name.
    """

    domain: str
    hostname: str
    addresses: Sequence[str] = ()
    receives: bool = True
    reachable: Mapping[str, Sequence[int]] = field(default_factory=dict)
    keys: Sequence[Key] = ()
    senders: Sequence[str] = ()
    smarthost: str = ""
    enforced: bool = False
    certificates: Sequence[x509.Certificate] = ()

    def records(self) -> Iterator[Record]:
        """All of them."""
        yield from self.of_host()
        yield from self.exchanger()
        yield from self.of_senders()
        yield from self.of_transport()
        yield from self.of_programs()

    def of_host(self) -> Iterator[Record]:
        """The host's addresses, their names, and who may say to be it."""
        for address in self.addresses:
            yield Record(self.hostname, "AAAA" if ":" in address else "A", address,
                         "Where this host is.")
        for address in self.addresses:
            yield Record(ipaddress.ip_address(address).reverse_pointer, "PTR", f"{self.hostname}.",
                         "What its address is called (reverse DNS).  Whoever gave you the address "
                         "sets it:\na field in the hosting provider's panel, as a rule.  Without "
                         "it many hosts take no mail.")
        if self.hostname != self.domain:
            yield Record(self.hostname, "TXT", "v=spf1 a -all",
                         "Who may call itself so in EHLO; delivery reports are checked by it.")

    def exchanger(self) -> Iterator[Record]:
        """Where other servers deliver, if they can."""
        if self.receives:
            yield Record(self.domain, "MX", f"10 {self.hostname}.",
                         f"Where other servers deliver mail for {self.domain}.")

    def of_senders(self) -> Iterator[Record]:
        """How others tell mail of this domain from what only says so."""
        about = f"Which hosts may send as {self.domain} (SPF)."
        if self.smarthost:
            about += (f"\nMail leaves by {self.smarthost}: in the place of a:{self.smarthost} put "
                      "what its provider says,\nas a rule include:…")
        yield Record(self.domain, "TXT", self.spf, about)
        for key in self.keys:
            yield Record(key.name, "TXT", key.record,
                         "The keys that sign what is sent (DKIM)."
                         + ("" if all(each.active for each in self.keys) else
                            "\nOnce these are published: mailsvc dkim use " + self.domain))
        yield Record(f"_dmarc.{self.domain}", "TXT",
                     f"v=DMARC1; p=quarantine; rua=mailto:postmaster@{self.domain}",
                     "What becomes of mail that neither SPF nor DKIM vouches for (DMARC), and who "
                     "gets the reports.")

    @property
    def spf(self) -> str:
        """The text of the SPF record."""
        further = [f"ip{ipaddress.ip_address(each).version}:{each}" for each in self.senders]
        if self.smarthost:
            further.append(f"a:{self.smarthost}")
        own = "mx" if self.receives else f"a:{self.hostname}"
        # Others' hosts may be more than we name: a softfail, so that no mail is lost over it.
        return " ".join(["v=spf1", own, *further, "~all" if self.smarthost else "-all"])

    def of_transport(self) -> Iterator[Record]:
        """What other servers are told of TLS."""
        if not self.receives:
            return
        identity = hashlib.sha256(self.policy.encode()).hexdigest()[:16]
        yield Record(f"_mta-sts.{self.domain}", "TXT", f"v=STSv1; id={identity}",
                     "That there is a policy on TLS (MTA-STS); it is of use only with the file "
                     f"below\nat {self.policy_url}\nThe id has to change with the file.")
        yield Record(f"_smtp._tls.{self.domain}", "TXT",
                     f"v=TLSRPTv1; rua=mailto:postmaster@{self.domain}",
                     "Who is told how others fared with TLS to here (TLS-RPT).")
        for certificate in self.certificates:
            key = certificate.public_key().public_bytes(
                Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            # RFC 7672 §3.1.1: the end entity's key, by its SHA-256.
            yield Record(f"_25._tcp.{self.hostname}", "TLSA",
                         f"3 1 1 {hashlib.sha256(key).hexdigest()}",
                         "Which key proves this host (DANE).  Only in a zone that is signed "
                         "(DNSSEC); a new key's\nrecord has to be there two days before the key.")

    @property
    def policy_host(self) -> str:
        """The host that has to have the policy."""
        return f"mta-sts.{self.domain}"

    @property
    def policy_url(self) -> str:
        """Where it has to have it."""
        return f"https://{self.policy_host}{POLICY_PATH}"

    @property
    def policy(self) -> str:
        """The file with the MTA-STS policy (RFC 8461 §3.2)."""
        mode, seconds = (("enforce", _ENFORCED_SECONDS) if self.enforced
                         else ("testing", _TESTED_SECONDS))
        return f"version: STSv1\nmode: {mode}\nmx: {self.hostname}\nmax_age: {seconds}\n"

    def of_programs(self) -> Iterator[Record]:
        """Where mail programs find the server (RFC 6186; RFC 8314 §5.1)."""
        priorities: dict[tuple[str, str], int] = {}
        for service in SERVICES:
            name = f"{service.label}._tcp.{self.domain}"
            about = f"Where mail programs find the server for {service.sentence}."
            there = self.reachable.get(service.label, ())
            for port in there:
                priority = priorities.get(service.element, 0)
                priorities[service.element] = priority + 1
                yield Record(name, "SRV", f"{priority} 1 {port} {self.hostname}.", about)
            if not there:
                yield Record(name, "SRV", "0 0 0 .", about + f"\nlisteners.{service.kind} is off, "
                             "or cannot be reached from elsewhere.")
        # RFC 6186 §3.4 lets the records say what is not served at all.
        for label in ("_imaps", "_imap"):
            yield Record(f"{label}._tcp.{self.domain}", "SRV", "0 0 0 .",
                         "There is no IMAP here; programs shall not look for it.")
