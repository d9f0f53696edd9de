"""``mailsvc autoconfig``: what it prints is what is configured, and as its readers want it."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from twisted.internet.defer import succeed

from mailsvc.cli import main
from mailsvc.config import ListenerSettings
from mailsvc.reach import UNITS

ALL = """
smtp = ["tcp:25:backlog=1024", "tcp6:25"]
submission = ["tcp:587:interface=0.0.0.0", "tcp:2587", "unix:/run/mailsvc/submission.sock"]
submissions = ["tcp6:4465:interface=\\\\:\\\\:"]
pop3 = ["tcp:port=1110", "ssl:port=9955:privateKey=a:certKey=b"]
pop3s = ["haproxy:tcp:995"]
"""


def run(tmp_path: Path, listeners: str, *arguments: str, status: int = 0,
        hostname: str = "Mail.Example.org") -> tuple[str, str]:
    """What is printed, and what is noted beside it."""
    (tmp_path / "mailsvc.toml").write_text(
        f'[service]\nhostname = "{hostname}"\n[listeners]\n{listeners}')
    # Certificates of ssl: endpoints are read where they are checked.
    done = CliRunner().invoke(main, ["autoconfig", "--config", str(tmp_path / "mailsvc.toml"),
                                     *arguments])
    assert done.exit_code == status, done.output
    return done.stdout, done.stderr


@pytest.fixture(autouse=True)
def no_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = SimpleNamespace(listen=lambda factory: succeed(None))
    monkeypatch.setattr("twisted.internet.endpoints.serverFromString", lambda *_: nothing)


def servers(xml: str) -> list[dict[str, str]]:
    """The servers of an XML file, held against the rules for config-v1.1.xml.

    https://wiki.mozilla.org/Thunderbird:Autoconfiguration:ConfigFileFormat
    """
    assert xml.startswith('<?xml version="1.0" encoding="UTF-8"?>\n')
    root = ElementTree.fromstring(xml.encode())
    assert (root.tag, root.attrib) == ("clientConfig", {"version": "1.1"})
    (provider,) = root
    assert provider.tag == "emailProvider"
    assert re.fullmatch(r"[a-z0-9.-]+", provider.attrib["id"])
    tags = [child.tag for child in provider]
    assert tags[:3] == ["domain", "displayName", "displayShortName"]
    assert "incomingServer" in tags and "outgoingServer" in tags
    found = []
    for server in provider[3:]:
        assert (server.tag, server.attrib["type"]) in {
            ("incomingServer", "pop3"), ("outgoingServer", "smtp")}
        values = {child.tag: child.text or "" for child in server}
        assert list(values) == ["hostname", "port", "socketType", "username", "authentication"]
        assert re.fullmatch(r"[a-z0-9.-]+", values["hostname"])
        assert 1 <= int(values["port"]) <= 65_535
        assert values["socketType"] in {"SSL", "STARTTLS"}  # never "plain"
        assert values["username"] == "%EMAILADDRESS%"
        assert values["authentication"] in {"password-cleartext", "password-encrypted"}
        found.append({"type": server.attrib["type"], **values})
    return found


def test_the_file_for_thunderbird(tmp_path: Path) -> None:
    xml, notes = run(tmp_path, ALL, "Example.org", "--format", "thunderbird")
    assert notes == ""
    assert ElementTree.fromstring(xml.encode())[0].attrib["id"] == "example.org"
    assert [(each["type"], each["hostname"], int(each["port"]), each["socketType"])
            for each in servers(xml)] == [
        ("pop3", "mail.example.org", 995, "SSL"),
        ("pop3", "mail.example.org", 9955, "SSL"),
        ("pop3", "mail.example.org", 1110, "STARTTLS"),
        ("smtp", "mail.example.org", 4465, "SSL"),
        ("smtp", "mail.example.org", 587, "STARTTLS"),
        ("smtp", "mail.example.org", 2587, "STARTTLS"),
    ]


def test_the_records(tmp_path: Path) -> None:
    zone, notes = run(tmp_path, ALL, "example.org", "--format", "srv")
    assert notes == ""
    assert [line for line in zone.splitlines() if not line.startswith(";")] == [
        "example.org. IN MX 10 mail.example.org.",
        "_pop3s._tcp.example.org. IN SRV 0 1 995 mail.example.org.",
        "_pop3s._tcp.example.org. IN SRV 1 1 9955 mail.example.org.",
        "_pop3._tcp.example.org. IN SRV 2 1 1110 mail.example.org.",
        "_submissions._tcp.example.org. IN SRV 0 1 4465 mail.example.org.",
        "_submission._tcp.example.org. IN SRV 1 1 587 mail.example.org.",
        "_submission._tcp.example.org. IN SRV 2 1 2587 mail.example.org.",
        "_imaps._tcp.example.org. IN SRV 0 0 0 .",
        "_imap._tcp.example.org. IN SRV 0 0 0 .",
    ]
    # A sentence above each name.
    lines = zone.splitlines()
    for before, line in pairwise(lines):
        if line[0] != ";" and line.split()[0] != before.split()[0] and "_imap." not in line:
            assert before.startswith("; ") and before.endswith("."), line


def test_what_is_off_is_said(tmp_path: Path) -> None:
    listeners = """
smtp = ["tcp:25:interface=127.0.0.1"]
submission = ["unix:/run/s"]
submissions = ["tcp:465:interface=127.0.0.1"]
pop3 = []
pop3s = ["tcp6:995:interface=\\\\:\\\\:1"]
"""
    zone, notes = run(tmp_path, listeners, "example.org", "--format", "srv")
    assert notes == ""
    assert [line for line in zone.splitlines() if not line.startswith(";")] == [
        f"_{name}._tcp.example.org. IN SRV 0 0 0 ."
        for name in ("pop3s", "pop3", "submissions", "submission", "imaps", "imap")]
    for kind in "pop3s", "pop3", "submissions", "submission":
        assert f"; listeners.{kind} is off, or cannot be reached from elsewhere.\n" in zone
    assert "nobody can deliver here" in zone
    _, said = run(tmp_path, listeners, "example.org", "--format", "thunderbird", status=1)
    assert said == ("Error: programs would find no server to fetch mail: set listeners.pop3s or "
                    "listeners.pop3; or if the service runs by mailsvc.service and mailsvc.socket, "
                    "whose ports count instead, add --systemd\n")
    _, said = run(tmp_path, 'pop3s = ["tcp:995"]', "example.org", "--format", "thunderbird",
                  status=1)
    assert "send mail: set listeners.submissions or listeners.submission; or if" in said
    text, said = run(tmp_path, listeners, "example.org")
    assert said.count("Note: ") == 2 and "SRV 0 0 0 ." in text


def test_the_ports_of_the_systemd_units(tmp_path: Path) -> None:
    # The stock configuration, in which only ports 25 and 110 stand.
    _, said = run(tmp_path, "", "example.org")
    assert "mailsvc.socket, whose ports count instead, add --systemd" in said
    zone, notes = run(tmp_path, "", "example.org", "--systemd", "--format", "srv")
    assert notes == ""
    assert [line for line in zone.splitlines() if not line.startswith((";", "_imap"))] == [
        "example.org. IN MX 10 mail.example.org.",
        "_pop3s._tcp.example.org. IN SRV 0 1 995 mail.example.org.",
        "_pop3._tcp.example.org. IN SRV 1 1 110 mail.example.org.",
        "_submissions._tcp.example.org. IN SRV 0 1 465 mail.example.org.",
        "_submission._tcp.example.org. IN SRV 1 1 587 mail.example.org.",
    ]
    xml, _ = run(tmp_path, ALL, "example.org", "--systemd", "--format", "thunderbird")
    assert [int(each["port"]) for each in servers(xml)] == [995, 110, 465, 587]


def test_the_units_open_these_ports() -> None:
    etc = Path(__file__).parent.parent / "etc"
    opened = re.findall("(?m)^ListenStream=([0-9]+)$", (etc / "mailsvc.socket").read_text())
    endpoints = re.findall(r"--(\w+) systemd:domain=INET6:index=(\d+)",
                           (etc / "mailsvc.service").read_text())
    assert len(endpoints) == len(opened)
    assert ListenerSettings(
        **{kind: [f"tcp:{opened[int(index)]}"] for kind, index in endpoints}) == UNITS


def test_all_of_it_with_where_it_goes(tmp_path: Path) -> None:
    text, notes = run(tmp_path, ALL, "example.org")
    assert notes == ""
    zone, _ = run(tmp_path, ALL, "example.org", "--format", "srv")
    xml, _ = run(tmp_path, ALL, "example.org", "--format", "thunderbird")
    assert zone in text and text.endswith(xml)
    assert "https://autoconfig.example.org/mail/config-v1.1.xml" in text
    assert "https://example.org/.well-known/autoconfig/mail/config-v1.1.xml" in text


def test_another_name(tmp_path: Path) -> None:
    for hostname, given in (("localhost", ("--hostname", "IMAP.münchen.example")),
                            ("imap.xn--mnchen-3ya.example", ())):
        xml, notes = run(tmp_path, ALL, "münchen.example", "--format", "thunderbird", *given,
                         hostname=hostname)
        assert notes == ""
        assert {each["hostname"] for each in servers(xml)} == {"imap.xn--mnchen-3ya.example"}
        assert "<domain>xn--mnchen-3ya.example</domain>" in xml
    _, notes = run(tmp_path, ALL, "a.example", "--format", "srv", hostname="localhost")
    assert notes.startswith("Note: other machines do not find localhost; give --hostname")


@pytest.mark.parametrize(("endpoint", "port"), [
    ("systemd:domain=INET6:index=0", 995), ("fd:domain=INET:index=0", 995), ("tcp:1995", 1995),
    ("tcp:port=1995", 1995), ("tcp:interface=192.0.2.1:port=1995", 1995),
    ("tcp:1995:interface=192.0.2.1", 1995), ("tcp:1995:interface=localhost", None),
    ("haproxy:tcp:1995:interface=127.0.0.1", None), ("haproxy:unix:/run/x", None),
])
def test_endpoints(tmp_path: Path, endpoint: str, port: int | None) -> None:
    zone, _ = run(tmp_path, f'pop3s = ["{endpoint}"]', "example.org", "--format", "srv")
    (record,) = [line for line in zone.splitlines() if line.startswith("_pop3s.")]
    assert record.endswith(f" 0 1 {port} mail.example.org." if port else " 0 0 0 .")


@pytest.mark.parametrize("domain", ["a b", "x\r\ny.example", "<b>", "192.0.2.1", "a&b.example"])
def test_what_is_no_domain(tmp_path: Path, domain: str) -> None:
    """PITFALLS, SMTP row 13: nothing gets into the zone or the XML."""
    for arguments in ((domain,), ("example.org", "--hostname", domain)):
        assert run(tmp_path, ALL, *arguments, status=2)[0] == ""


