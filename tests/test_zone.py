"""``mailsvc domain records``: what name servers, and programs that read the records, make of it."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import dns.rdata
import dns.rdatatype
import dns.zone
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from mailsvc import reach
from mailsvc.certificates import certificate_at, self_signed
from mailsvc.cli.records import text_of
from mailsvc.dkim import Keys
from mailsvc.queue.security.sts import parse_policy, parse_record
from mailsvc.zone import Record, Zone
from tests.command_line import CommandLine, fresh_command_line

ADDRESSES = ("192.0.2.7", "2001:db8::7")


@pytest.fixture
def mailsvc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    command_line = fresh_command_line(tmp_path, monkeypatch)
    command_line("domain", "add", "example.org")
    return command_line


def read(text: str) -> dict[tuple[str, str], set[str]]:
    """Name and type of each record -> values, TXT joined, as a name server reads *text*.

    Those of other zones are read too.
    """
    text = re.sub(r"(?m)^;(?=[^ ])", "", text)
    found: dict[tuple[str, str], set[str]] = {}
    parsed = dns.zone.from_text("$TTL 60\n" + text, origin=".", relativize=False,
                                check_origin=False)
    for name, _, data in parsed.iterate_rdatas():
        kind = dns.rdatatype.to_text(data.rdtype)
        value = (b"".join(data.strings).decode() if kind == "TXT"
                 else data.to_text(relativize=False))
        found.setdefault((name.to_text(omit_final_dot=True), kind), set()).add(value)
    return found


def test_a_name_server_reads_them(mailsvc: CommandLine) -> None:
    mailsvc("dkim", "add", "example.org", "--use")
    text = mailsvc("domain", "records", "Example.org", "--hostname", "mx.example.org", "--systemd",
                   *(word for each in ADDRESSES for word in ("--address", each)))
    found = read(text)
    keys = Keys(mailsvc.dir / "dkim").of("example.org")
    assert len(keys) == 2
    assert found == {
        ("mx.example.org", "A"): {"192.0.2.7"},
        ("mx.example.org", "AAAA"): {"2001:db8::7"},
        ("7.2.0.192.in-addr.arpa", "PTR"): {"mx.example.org."},
        ("7." + 23 * "0." + "8.b.d.0.1.0.0.2.ip6.arpa", "PTR"): {"mx.example.org."},
        ("mx.example.org", "TXT"): {"v=spf1 a -all"},
        ("example.org", "MX"): {"10 mx.example.org."},
        ("example.org", "TXT"): {"v=spf1 mx -all"},
        **{(key.name, "TXT"): {key.record} for key in keys},
        ("_dmarc.example.org", "TXT"): {
            "v=DMARC1; p=quarantine; rua=mailto:postmaster@example.org"},
        ("_mta-sts.example.org", "TXT"): found["_mta-sts.example.org", "TXT"],
        ("_smtp._tls.example.org", "TXT"): {"v=TLSRPTv1; rua=mailto:postmaster@example.org"},
        ("_pop3s._tcp.example.org", "SRV"): {"0 1 995 mx.example.org."},
        ("_pop3._tcp.example.org", "SRV"): {"1 1 110 mx.example.org."},
        ("_submissions._tcp.example.org", "SRV"): {"0 1 465 mx.example.org."},
        ("_submission._tcp.example.org", "SRV"): {"1 1 587 mx.example.org."},
        ("_imaps._tcp.example.org", "SRV"): {"0 0 0 ."},
        ("_imap._tcp.example.org", "SRV"): {"0 0 0 ."},
    }
    assert mailsvc.notes == ""
    assert re.findall(r"(?m)^;(\S+)", text) == [
        "7.2.0.192.in-addr.arpa.", "7." + 23 * "0." + "8.b.d.0.1.0.0.2.ip6.arpa."]
    # What is no record is a comment; and no string is too long for one.
    assert all(line.startswith((";", "( ")) or " IN " in line for line in text.splitlines())
    assert max(map(len, re.findall('"([^"]*)"', text))) == 255


def test_programs_get_the_same(mailsvc: CommandLine) -> None:
    arguments = ("domain", "records", "example.org", "--hostname", "mx.example.org", "--address",
                 "192.0.2.7")
    printed = json.loads(mailsvc(*arguments, "--json"))
    assert read(mailsvc(*arguments)) == read("\n".join(
        Record(each["name"], each["type"], each["value"]).line for each in printed["records"]))
    assert all(each["meaning"].endswith((".", "record")) or each["type"] == "TXT"
               for each in printed["records"])
    assert printed["policy"]["url"] == "https://mta-sts.example.org/.well-known/mta-sts.txt"


@pytest.mark.parametrize(("options", "mode"), [((), "testing"), (("--enforce",), "enforce")])
def test_the_policy(mailsvc: CommandLine, options: tuple[str, ...], mode: str) -> None:
    printed = json.loads(mailsvc("domain", "records", "example.org", "--hostname",
                                 "mx.example.org", "--json", *options))
    policy = parse_policy(printed["policy"]["text"].encode())
    assert (policy.mode, policy.patterns) == (mode, ("mx.example.org",))
    assert policy.max_age >= 86_400
    (record,) = [each["value"] for each in printed["records"]
                 if each["name"] == "_mta-sts.example.org"]
    assert parse_record([record]) is not None


def test_the_id_changes_with_the_policy() -> None:
    def identity(zone: Zone) -> str | None:
        return parse_record([each.value for each in zone.of_transport()
                             if each.name.startswith("_mta-sts.")])

    first = Zone("example.org", "mx.example.org")
    assert identity(first) == identity(Zone("example.org", "mx.example.org", ADDRESSES))
    assert len({identity(each) for each in (
        first, Zone("example.org", "mx.example.org", enforced=True),
        Zone("example.org", "mx2.example.org"))}) == 3


def test_a_host_elsewhere_has_its_records_there() -> None:
    text = text_of(Zone("example.org", "mx.example.net", ADDRESSES))
    assert "\n;mx.example.net. IN A 192.0.2.7\n" in text
    assert '\n;mx.example.net. IN TXT "v=spf1 a -all"\n' in text
    assert "\nexample.org. IN MX 10 mx.example.net.\n" in text


@pytest.mark.parametrize(("zone", "spf"), [
    (Zone("example.org", "mx.example.org"), "v=spf1 mx -all"),
    (Zone("example.org", "mx.example.org", receives=False), "v=spf1 a:mx.example.org -all"),
    (Zone("example.org", "mx.example.org", senders=("192.0.2.8", "2001:db8::8")),
     "v=spf1 mx ip4:192.0.2.8 ip6:2001:db8::8 -all"),
    (Zone("example.org", "mx.example.org", smarthost="smtp.example.net"),
     "v=spf1 mx a:smtp.example.net ~all"),
], ids=["exchanger", "none", "bound", "smarthost"])
def test_spf(zone: Zone, spf: str) -> None:
    assert zone.spf == spf


def test_a_host_called_like_its_domain_has_one_spf_record() -> None:
    found = read(text_of(Zone("example.org", "example.org", ADDRESSES)))
    assert found["example.org", "TXT"] == {"v=spf1 mx -all"}
    assert found["example.org", "A"] == {"192.0.2.7"}


def test_what_cannot_be_told_is_said(mailsvc: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mailsvc.records.own_addresses", lambda: ["10.0.0.2", "fe80::1"])
    text = mailsvc("--dir", str(mailsvc.dir), "domain", "records", "example.org", "--hostname",
                   "vm")
    assert "cannot be told from here: give --address" in text
    assert "no keys that sign what is sent: mailsvc dkim add example.org" in text
    assert not {kind for _, kind in read(text)} & {"A", "AAAA", "PTR"}
    assert mailsvc.notes.startswith("Note: other machines do not find vm; give --hostname")
    text = text_of(Zone("example.org", "mx.example.org", receives=False))
    assert "so there is no MX record" in text and "mta-sts" not in text
    monkeypatch.setattr("mailsvc.records.own_addresses", lambda: ["9.9.9.7", "10.0.0.2"])
    text = mailsvc("domain", "records", "example.org", "--hostname", "mx.example.org")
    assert read(text)["mx.example.org", "A"] == {"9.9.9.7"}


def test_tlsa(mailsvc: CommandLine) -> None:
    assert "self-signed.pem" in mailsvc.fails("domain", "records", "example.org", "--tlsa")
    path = self_signed(str(mailsvc.dir / "tls"), "mx.example.org")
    text = mailsvc("domain", "records", "example.org", "--hostname", "mx.example.org", "--tlsa")
    key = certificate_at(path).load().chain[0].public_key().public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert read(text)["_25._tcp.mx.example.org", "TLSA"] == {
        f"3 1 1 {hashlib.sha256(key).hexdigest()}"}


@pytest.mark.parametrize("arguments", [
    ("a b",), ("example.org", "--address", "192.0.2"), ("example.org", "--hostname", "x\r\ny"),
], ids=["domain", "address", "hostname"])
def test_what_is_misused(mailsvc: CommandLine, arguments: tuple[str, ...]) -> None:
    mailsvc.misused("domain", "records", *arguments)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=1500))
def test_a_text_of_any_length_comes_out_again(text: str) -> None:
    line = Record("a.example", "TXT", text).line
    data = dns.rdata.from_text("IN", "TXT", line.partition(" TXT ")[2].strip("( )"))
    assert b"".join(data.strings).decode() == text
    assert all(len(each) <= 255 for each in data.strings)


def test_own_addresses_are_this_machines() -> None:
    import socket  # noqa: PLC0415

    for address in reach.own_addresses():
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as trial:
            trial.bind((address, 0))
