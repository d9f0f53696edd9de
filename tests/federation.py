"""Mail between two mailsvc, Postfix, Exim and OpenSMTPD, each to each; prints what became of it.

    python -m tests.federation      # as root; a line of JSON for each way

They are in a network apart, each at an address of its own with the ports that mail has, and know
of each other by unbound alone: by MX records, and by TLSA records in signed zones or the TXT
records of MTA-STS.  Each has a domain of every kind in :data:`KINDS`.  msmtp hands mail in, mpop
fetches it.  Their logs go to standard error.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from email import message_from_bytes
from pathlib import Path
from typing import NamedTuple

from tests.apart import apart, found
from tests.authority import Authority, Issued, pem, rsa_key
from tests.daemons import Dovecot
from tests.federated import (
    PASSWORD,
    RESOLVER,
    End,
    Exim,
    Ground,
    Mailsvc,
    OpenSmtpd,
    Postfix,
    Site,
)
from tests.policyhost import PolicyHost
from tests.test_relay_dane import STRANGER, tlsa
from tests.unbound import Unbound

#: How a domain says how it is to be reached: by DANE, its certificate not having the exchanger's
#: name; by MTA-STS; and with something wrong: a TLSA record of another certificate, a policy with
#: other exchangers, a policy with an exchanger that its certificate does not name.
KINDS = ("dane", "sts", "wrong-dane", "wrong-mx", "wrong-name")
#: The servers, the first at 192.0.2.10.
SITES: dict[str, type[Site]] = {
    "first": Mailsvc, "second": Mailsvc, "postfix": Postfix, "exim": Exim, "opensmtpd": OpenSmtpd}
POLICIES, PROGRAMS = "192.0.2.80", "192.0.2.100"
#: Where those fetch who have no POP3 of their own.
POP3 = "pop3.sts.example"
#: How long all of the mail may take, seconds.
PATIENCE = 120.0


class Arrived(NamedTuple):
    """A message that was fetched: who sent it where, and whether it came by TLS."""

    sender: str
    recipient: str
    tls: bool


def main() -> None:
    addresses = {name: f"192.0.2.{10 + number}" for number, name in enumerate(SITES)}
    with (apart("tests.federation", [*addresses.values(), POLICIES, PROGRAMS], RESOLVER) as folder,
          ExitStack() as stack):
        authority = Authority()
        (folder / "ca.pem").write_bytes(pem(authority.root))
        # What mends OpenSMTPD (opensmtpd_keys.c) mends RSA alone.
        issued = {name: authority.issue(f"mx.{name}.sts.example", f"mx.{name}.wrong-mx.example",
                                        key=rsa_key(2048) if name == "opensmtpd" else None)
                  for name in SITES}
        stack.enter_context(Unbound(found, folder / "unbound", _zones(addresses, issued),
                                    signed=("dane.example", "wrong-dane.example"), port=53))
        _host_policies(stack, folder, authority)
        dovecot = _dovecot(stack, folder, authority)
        ground = Ground(folder, stack, folder / "ca.pem", dovecot.mail, PROGRAMS,
                        tuple(f"{name}.{kind}.example" for name in SITES for kind in KINDS))
        sites = {}
        for name, kind in SITES.items():
            issued[name].write(folder / name)
            sites[name] = kind(name, addresses[name], ground)
        for row in _exchanged(folder, sites, dovecot):
            print(json.dumps(row))
        for name, site in sites.items():
            print(f"---- {name}\n{site.log()}", file=sys.stderr)


def _zones(addresses: Mapping[str, str], issued: Mapping[str, Issued]) -> dict[str, list[str]]:
    zones: dict[str, list[str]] = {f"{kind}.example": [] for kind in KINDS}
    zones["sts.example"].append("pop3 A 127.0.0.1")
    for name, address in addresses.items():
        for kind in KINDS:
            zones[f"{kind}.example"] += [f"{name} MX 10 mx.{name}", f"mx.{name} A {address}", *(
                [f"_25._tcp.mx.{name} " + tlsa(3, 1, 1, STRANGER if kind == "wrong-dane"
                                               else issued[name].certificate)]
                if kind.endswith("dane") else
                [f"_mta-sts.{name} TXT \"v=STSv1; id=1;\"", f"mta-sts.{name} A {POLICIES}"])]
    return zones


def _host_policies(stack: ExitStack, folder: Path, authority: Authority) -> None:
    domains = [f"{name}.{kind}.example" for name in SITES for kind in KINDS
               if not kind.endswith("dane")]
    certificate = folder / "policies.pem"
    certificate.write_bytes(
        authority.issue(*(f"mta-sts.{domain}" for domain in domains)).combined)
    host = stack.enter_context(PolicyHost(certificate, POLICIES, 443))
    for domain in domains:
        exchanger = "mx.elsewhere.example" if ".wrong-mx." in domain else f"mx.{domain}"
        host.answers[f"mta-sts.{domain}"] = (200, "text/plain", (
            f"version: STSv1\r\nmode: enforce\r\nmax_age: 604800\r\nmx: {exchanger}\r\n").encode())


def _dovecot(stack: ExitStack, folder: Path, authority: Authority) -> Dovecot:
    """POP3 for the mail of those who have none of their own."""
    place = authority.issue(POP3).write(folder / "pop3")
    return stack.enter_context(Dovecot(found, ssl="required",
                                       ssl_cert=f"<{place}/fullchain.pem",
                                       ssl_key=f"<{place}/privkey.pem"))


# ---- mail ---------------------------------------------------------------------------------------


def _exchanged(folder: Path, sites: Mapping[str, Site], dovecot: Dovecot
               ) -> list[dict[str, str | int]]:
    """What became of a message from each to each, in every kind of domain."""
    letters = [(sender, to, kind) for sender in sites for to in sites if to != sender
               for kind in KINDS]
    _set_up(folder, sites, dovecot)
    for sender in sites:
        _send(folder, sender, [f"bob@{to}.{kind}.example"
                               for each, to, kind in letters if each == sender])
    deadline = time.monotonic() + PATIENCE
    while True:
        ends = {name: site.ends() for name, site in sites.items()}
        if sum(map(len, ends.values())) >= len(letters) or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    sent = {(sender, recipient) for sender, each in ends.items()
            for recipient, end in each.items() if end.taken}
    while True:
        arrived = _fetched(folder)
        if {each[:2] for each in arrived} >= sent or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    # What is put off is said in the log at once, what was proven a moment later elsewhere.
    ends = {name: site.ends() for name, site in sites.items()}
    rows: list[dict[str, str | int]] = []
    for sender, to, kind in letters:
        recipient = f"bob@{to}.{kind}.example"
        copies = [each for each in arrived if each[:2] == (sender, recipient)]
        end = ends[sender].get(recipient, End(False, False, "nothing became of it"))
        rows.append({
            "from": sender, "to": to, "kind": kind, "copies": len(copies),
            "tls": bool(copies) and all(each.tls for each in copies),
            "verified": end.verified, "reason": end.reason})
    return rows


def _set_up(folder: Path, sites: Mapping[str, Site], dovecot: Dovecot) -> None:
    """Configure msmtp and mpop for everybody's accounts."""
    common = f"defaults\ntls on\ntls_starttls on\ntls_trust_file {folder}/ca.pem\ntimeout 60\n"
    sending = [common, f"source_ip {PROGRAMS}\n"]
    fetching = [common, "received_header off\n", f"uidls_file {folder}/uidls-%H-%U\n"]
    for name, site in sites.items():
        host, ours = f"mx.{name}.sts.example", isinstance(site, Mailsvc)
        sending.append(f"account {name}\nhost {host}\nfrom {site.user}\n" + (
            f"port 587\nauth plain\nuser {site.user}\npassword {PASSWORD}\n" if ours
            else "port 25\n"))
        for kind in KINDS:
            address = f"bob@{name}.{kind}.example"
            into = folder / "fetched" / address
            for part in ("tmp", "new", "cur"):
                (into / part).mkdir(parents=True)
            server, port = (host, 110) if ours else (POP3, dovecot.pop3[1])
            fetching.append(f"account {address}\nhost {server}\nport {port}\nauth plain\n"
                            f"user {address}\npassword {PASSWORD}\n"
                            f"delivery maildir {into}\n")
    for program, lines in ("msmtp", sending), ("mpop", fetching):
        (folder / program).write_text("".join(lines))
        (folder / program).chmod(0o600)


def _send(folder: Path, sender: str, recipients: list[str]) -> None:
    message = (f"From: alice@{sender}.sts.example\nTo: undisclosed-recipients:;\n"
               f"Date: Sat, 28 Nov 2026 10:00:00 +0000\nMessage-ID: <1@{sender}.sts.example>\n"
               f"Subject: {sender}\n\nHello.\n")
    subprocess.run([found("msmtp"), "-C", str(folder / "msmtp"), "-a", sender, "--", *recipients],
                   input=message.encode(), check=True, timeout=PATIENCE)


def _fetched(folder: Path) -> list[Arrived]:
    """All that was fetched up to now."""
    subprocess.run([found("mpop"), "-C", str(folder / "mpop"), "--quiet", "--all-accounts"],
                   check=True, timeout=PATIENCE)
    arrived = []
    for path in (folder / "fetched").glob("*/new/*"):
        message = message_from_bytes(path.read_bytes())
        # RFC 3848: who took it last says how.
        arrived.append(Arrived(message["Subject"], path.parts[-3],
                               " with esmtps " in f"{message['Received']} ".lower()))
    return arrived


if __name__ == "__main__":
    main()
