"""mailsvc.dkim and mailsvc dkim: keys, records, signatures that others verify."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import dkim as dkimpy
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mailsvc.dkim import Key, Keys, Signer
from mailsvc.names import DirectoryError
from tests.command_line import CommandLine

MESSAGE = (b"Received: from x by y; z\r\nFrom: Alice <alice@example.org>\r\nTo: bob@example.net\r\n"
           b"Subject: a  long\r\n\tsubject\r\n\r\nbody  \r\n\r\n.\r\nlast\r\n\r\n\r\n")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    keys = Keys(tmp_path_factory.mktemp("keys") / "dkim")
    made = [keys.add("example.org", "rsa", "r1"), keys.add("Example.ORG", "ed25519", "e1")]
    keys.use("example.org", [key.selector for key in made])
    return keys


def verified(keys: Keys, message: bytes) -> list[bool]:
    """Whether each signature of *message* holds, the topmost first."""
    records = {f"{key.name}.".encode(): key.record.encode() for key in keys.all()}
    count = message.count(b"DKIM-Signature:")
    def verify(index: int) -> bool:
        try:
            return bool(dkimpy.DKIM(message).verify(
                index, lambda name, timeout=5: records.get(name)))
        except dkimpy.ValidationError:
            return False

    return [verify(index) for index in range(count)]


def test_both_signatures_verify(keys: Keys) -> None:
    prefix = Signer(keys).sign(MESSAGE, "example.org")
    assert prefix.endswith(b"\r\n") and b"\n" not in prefix.replace(b"\r\n", b"")
    assert verified(keys, prefix + MESSAGE) == [True, True]
    assert prefix.count(b"c=relaxed/relaxed") == 2


@pytest.mark.parametrize("changed", [
    (b"body  \r\n", b"BODY\r\n"), (b"alice@", b"mallory@"),
    (b"\r\n\r\nbody", b"\r\nFrom: m@x\r\n\r\nbody"),
    (b"\r\n\r\nbody", b"\r\nReply-To: m@x\r\n\r\nbody"),
    (b"\r\n\r\nbody", b"\r\nSubject: m\r\n\r\nbody"),
    (b"\r\n\r\nbody", b"\r\nContent-Type: text/html\r\n\r\nbody")])
def test_nothing_can_be_changed_or_added(keys: Keys, changed: tuple[bytes, bytes]) -> None:
    prefix = Signer(keys).sign(MESSAGE, "example.org")
    altered = MESSAGE.replace(*changed, 1)
    assert altered != MESSAGE
    assert verified(keys, prefix + altered) == [False, False]


def test_what_relaxed_allows(keys: Keys) -> None:
    prefix = Signer(keys).sign(MESSAGE, "example.org")
    altered = MESSAGE.replace(b"a  long\r\n\tsubject", b"a long subject").replace(
        b"body  \r\n", b"body\r\n")
    assert verified(keys, b"Received: once more\r\n" + prefix + altered) == [True, True]


def test_white_space_before_a_colon_is_nothing_to_a_signature(keys: Keys) -> None:
    """RFC 5322 §4.5, RFC 6376 §3.4.2.  dkimpy itself cannot read it."""
    obsolete = MESSAGE.replace(b"From:", b"From :").replace(b"Subject:", b"SUBJECT\t :").replace(
        b"body  ", b"body : x")
    prefix = Signer(keys).sign(obsolete, "example.org")
    usual = obsolete.replace(b"From :", b"From:").replace(b"SUBJECT\t :", b"Subject:")
    assert verified(keys, prefix + usual) == [True, True]


@pytest.mark.parametrize("line", [b"no field", b"X-\xc3\xa9: y", b": x"])
def test_what_cannot_be_read_is_not_signed(keys: Keys, line: bytes) -> None:
    unreadable = MESSAGE.replace(b"\r\n\r\n", b"\r\n" + line + b"\r\n\r\n", 1)
    assert Signer(keys).sign(unreadable, "example.org") == b""


def test_whose_key_signs(keys: Keys) -> None:
    signer = Signer(keys)

    def domains(author: bytes, sender: str) -> list[str]:
        return [key.domain for key in signer.keys_for(
            b"From: " + author + b"\r\n\r\nFrom: x@example.org\r\n", sender)]

    assert domains(b"a@example.org", "other.example") == ["example.org"] * 2
    assert domains(b"a@sub.Example.org", "") == ["example.org"] * 2
    assert domains(b"a@other.example", "example.org") == ["example.org"] * 2
    assert domains(b"a@other.example", "other.example") == []
    assert domains(b"nonsense", "") == domains(b"a@../../etc", "") == []
    assert domains(b"\"unfinished <a@example.org>", "") == domains(b"undisclosed:;", "") == []
    assert signer.sign(b"Subject: no author\r\n\r\n", "") == b""
    # A message that is nothing but its header has an author all the same.
    assert len(signer.keys_for(b"Subject: x\r\nFrom: a@example.org\r\n", "")) == 2
    assert signer.has_keys()


def test_without_active_keys_there_is_nothing_to_sign_with(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "dkim")
    assert not Signer(keys).has_keys()
    assert list(keys.all()) == keys.of("example.org") == []
    keys.add("example.org", "ed25519", "e1")
    assert not Signer(keys).has_keys()
    assert Signer(keys).sign(MESSAGE, "") == b""


def test_a_key_that_the_disk_has_no_room_for(tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left of it that would keep other keys from being used."""
    keys = Keys(tmp_path)

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            keys.add("example.org", "ed25519", "s1")
    assert list(keys.all()) == []
    assert keys.add("example.org", "ed25519", "s1").selector == "s1"


def test_names_of_keys(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "dkim")
    # By default of the date, and told apart.
    names = [keys.add("example.org", "ed25519").selector for _ in range(3)]
    assert re.fullmatch(r"e\d{8}", names[0])
    assert names[1:] == [f"{names[0]}-2", f"{names[0]}-3"]
    with pytest.raises(DirectoryError, match=f"there is a key {names[0]} for"):
        keys.add("example.org", "ed25519", names[0])
    for none in "A", "-a", "a-", "a.b", "a/b", "é", "x" * 64:
        with pytest.raises(DirectoryError, match="is no selector"):
            keys.add("example.org", "ed25519", none)
    for act in keys.remove, lambda domain, selector: keys.use(domain, [selector]):
        with pytest.raises(DirectoryError, match="there is no key 'x' for"):
            act("example.org", "x")


@pytest.mark.parametrize("domain", ["", ".", "..", "../dkim/example.org", "example.org/",
                                    ".example.org"])
def test_no_domain_leads_out_of_the_directory(keys: Keys, domain: str) -> None:
    assert keys.of(domain) == []


@pytest.mark.parametrize(("content", "complaint"), [
    (b"", "holds no private key"), (b"-----BEGIN PRIVATE KEY-----\nAAAA\n", "holds no private key"),
    (ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption()), "is neither an RSA nor an Ed25519 key")])
def test_a_file_that_holds_no_such_key(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "example.org").mkdir()
    (tmp_path / "example.org" / "s1.pem").write_bytes(content)
    with pytest.raises(DirectoryError, match=rf"s1\.pem {complaint}"):
        Keys(tmp_path).of("example.org")


def test_keys_change_without_a_gap(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "dkim")
    keys.add("example.org", "ed25519", "old")
    keys.use("example.org", ["old"])
    sent = Signer(keys).sign(MESSAGE, "") + MESSAGE
    keys.add("example.org", "ed25519", "new")
    assert b"s=old" in Signer(keys).sign(MESSAGE, "")
    keys.use("example.org", ["new"])
    assert b"s=new" in Signer(keys).sign(MESSAGE, "")
    assert verified(keys, sent) == [True]
    with pytest.raises(DirectoryError, match="signs the mail"):
        keys.remove("example.org", "new")
    keys.remove("example.org", "old")
    assert [key.selector for key in keys.all()] == ["new"]
    assert (tmp_path / "dkim/example.org/new.pem").stat().st_mode & 0o777 == 0o600


def test_long_records_are_cut_for_zone_files() -> None:
    key = Key("example.org", "s", "rsa", "A" * 392, True)
    strings = re.findall(r'"([^"]*)"', key.zone_line)
    assert "".join(strings) == key.record and max(map(len, strings)) == 255
    assert key.zone_line.startswith("s._domainkey.example.org. 3600 IN TXT ( ")


def test_the_command(tmp_path: Path) -> None:
    run = CommandLine(tmp_path)
    out = run("dkim", "add", "example.org", "--bits", "1024")
    assert run.notes.startswith("Note: example.org is not served here")
    run("domain", "add", "example.net")
    run("dkim", "add", "example.net", "--algorithm", "ed25519")
    assert "Note:" not in run.notes
    run("dkim", "remove", "example.net", json.loads(run("dkim", "list", "--json"))[0]["selector"])
    assert "_domainkey.example.org." in out and "k=rsa" in out and "k=ed25519" in out
    listed = json.loads(run("dkim", "list", "--json"))
    assert [(key["algorithm"], key["active"]) for key in listed] == [
        ("ed25519", False), ("rsa", False)]
    assert run("dkim", "use", "example.org").startswith("Signing example.org with e")
    assert all(key["active"] for key in json.loads(run("dkim", "list", "--json")))
    assert run("dkim", "records", "example.org").count("IN TXT") == 2
    assert "signs the mail of example.org" in run.fails(
        "dkim", "remove", "example.org", listed[0]["selector"])
    assert run("dkim", "use", "example.org", "--none") == "Not signing example.org\n"
    assert run("dkim", "remove", "example.org", listed[0]["selector"]).startswith("Removed e")
    assert "has no keys" in run.fails("dkim", "records", "example.net")
    assert "no key 'x'" in run.fails("dkim", "use", "example.org", "x")
    assert "is no selector" in run.fails(
        "dkim", "add", "example.org", "--algorithm", "rsa", "--selector", "../x")


def test_what_root_makes_belongs_to_the_owner_of_the_data(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: set[Path] = set()

    def chown(path: Path, user: int, group: int) -> None:
        assert (user, group) == (os.stat(tmp_path).st_uid, os.stat(tmp_path).st_gid)
        given.add(Path(path))

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "chown", chown)
    keys = Keys(tmp_path / "dkim")
    keys.add("example.org", "ed25519", "e1")
    keys.use("example.org", ["e1"])
    folder = tmp_path / "dkim" / "example.org"
    assert given == {folder.parent, folder, folder / "e1.pem", folder / "active.new"}
    assert {path.name for path in folder.iterdir()} == {"e1.pem", "active"}


def test_keys_that_cannot_be_looked_at_are_not_no_keys(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would leave mail unsigned, and nobody would know."""
    run = CommandLine(tmp_path)
    run("dkim", "add", "example.org", "--algorithm", "ed25519", "--use")
    folder, real = tmp_path / "dkim" / "example.org", os.listdir

    def listdir(path: Path) -> list[str]:
        if Path(path) == folder:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)
    keys = Keys(tmp_path / "dkim")
    for look in (lambda: keys.of("example.org"), lambda: list(keys.all()), Signer(keys).has_keys,
                 lambda: Signer(keys).sign(b"From: a@example.org\r\n\r\n", "")):
        with pytest.raises(PermissionError):
            look()
    said = run.fails("dkim", "list")
    assert said.startswith(f"{folder} cannot be used: Permission denied; run as the user who owns")


#: Verifies a message with OpenDKIM, which asks the DNS of this machine: in a namespace of its own.
_OPENDKIM = """
import json, subprocess, sys
from tests.nameserver import NameServer
resolv, zone, message = sys.argv[1:]
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
subprocess.run(["mount", "--bind", resolv, "/etc/resolv.conf"], check=True)
with NameServer(json.loads(zone), 53), open(message, "rb") as stream:
    sys.exit(subprocess.run(["opendkim-testmsg"], stdin=stream).returncode)
"""


@pytest.mark.parametrize("changed", [False, True])
def test_opendkim_verifies(
    keys: Keys, tmp_path: Path, program: Callable[[str], str], changed: bool
) -> None:
    program("opendkim-testmsg")
    key = next(key for key in keys.all() if key.algorithm == "rsa")
    text = b"Date: Thu, 26 Nov 2026 10:00:00 +0000\r\n" + MESSAGE  # which OpenDKIM insists on
    signed = Signer(keys).sign(text, "example.org") + text
    (tmp_path / "message").write_bytes(signed.replace(b"last", b"lost") if changed else signed)
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    done = subprocess.run(
        ["unshare", *([] if os.geteuid() == 0 else ["--map-root-user"]), "--net", "--mount",
         sys.executable, "-c", _OPENDKIM, str(tmp_path / "resolv.conf"),
         json.dumps({key.name: [f"TXT {key.record}"]}), str(tmp_path / "message")],
        capture_output=True, timeout=60, check=False)
    assert (done.returncode != 0) is changed, done


def test_messages_that_leave_together_look_once_at_the_keys(
    keys: Keys, monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked: list[str] = []
    of = keys.of

    def watched(domain: str) -> list[Key]:
        looked.append(domain)
        return of(domain)

    with monkeypatch.context() as patch:
        patch.setattr(keys, "of", watched)
        sign = Signer(keys).at_once()
        signed = [sign(MESSAGE, "example.org") + MESSAGE for _ in range(2)]
    assert looked == ["example.org"]
    assert [verified(keys, each) for each in signed] == [[True, True]] * 2
