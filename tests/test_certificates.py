"""Certificates in files: the places, what is wrong with them, changes, and one of our own."""

from __future__ import annotations

import datetime
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from mailsvc import certificates
from mailsvc.certificates import (
    CertificateProblem,
    authorities_in,
    certificate_at,
    revocations_in,
    self_signed,
)
from tests.authority import Authority, pem, rsa_key, self_issued

AUTHORITY = Authority()
MX = AUTHORITY.issue("mx.example.org", "*.Example.ORG")
OTHER = AUTHORITY.issue("other.example.net")

# ---- places -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("chain", "key"), [("fullchain.pem", "privkey.pem"),
                                            ("tls.crt", "tls.key")])
def test_a_directory(tmp_path: Path, chain: str, key: str) -> None:
    found = certificate_at(str(MX.write(tmp_path / "live", chain, key))).load()
    assert found.path == str(tmp_path / "live" / chain)
    assert found.chain == (MX.certificate, MX.between)
    assert found.names == ("mx.example.org", "*.example.org")
    assert found.key.private_numbers() == MX.key.private_numbers()
    assert "mx.example.org, *.example.org; until 20" in str(found)


def test_two_files(tmp_path: Path) -> None:
    MX.write(tmp_path, "a.pem", "b.pem")
    assert certificate_at(f"{tmp_path}/a.pem:{tmp_path}/b.pem").load().chain[0] == MX.certificate


def test_one_file_whatever_its_order(tmp_path: Path) -> None:
    file = tmp_path / "both:of.them.pem"
    parameters = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    for content in (MX.combined, pem(MX.key) + MX.chain, b"subject=CN = mx\n" + parameters
                    + pem(MX.key) + b"\r\n\r\nissuer=x\n" + MX.chain):
        file.write_bytes(content)
        assert certificate_at(str(file)).load().chain == (MX.certificate, MX.between)


def test_the_kinds_of_key(tmp_path: Path) -> None:
    for key in (rsa_key(2048), ec.generate_private_key(ec.SECP384R1()),
                ed25519.Ed25519PrivateKey.generate()):
        (tmp_path / "x.pem").write_bytes(pem(self_issued(key), key))
        assert certificate_at(str(tmp_path / "x.pem")).load().names == ("mx.example.org",)


def test_the_older_form_of_a_key(tmp_path: Path) -> None:
    key = MX.key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    assert b"BEGIN EC PRIVATE KEY" in key
    (tmp_path / "x.pem").write_bytes(MX.chain + key)
    assert certificate_at(str(tmp_path / "x.pem")).load().chain[0] == MX.certificate


def test_a_certificate_without_names(tmp_path: Path) -> None:
    nameless = AUTHORITY.issue(subject="only a CN")
    (tmp_path / "x.pem").write_bytes(nameless.combined)
    found = certificate_at(str(tmp_path / "x.pem")).load()
    assert found.names == ()
    assert "CN=only a CN" in str(found)


# ---- what is wrong ------------------------------------------------------------------------------


def problem(place: object) -> str:
    with pytest.raises(CertificateProblem) as caught:
        certificate_at(str(place)).load()
    return str(caught.value)


def der(directory: Path) -> None:
    (directory / "fullchain.pem").write_bytes(MX.certificate.public_bytes(Encoding.DER))


def cut_short(name: str, octets: int) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        content = (directory / name).read_bytes()
        (directory / name).write_bytes(content[:octets])
    return change


def content(name: str, value: bytes) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        (directory / name).write_bytes(value)
    return change


def garbled(name: str) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        lines = (directory / name).read_bytes().splitlines()
        (directory / name).write_bytes(b"\n".join([lines[0], b"AAAA" + lines[1][4:], *lines[2:]]))
    return change


def unlink(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


@pytest.mark.parametrize(("change", "file", "said"), [
    (der, "fullchain.pem", "openssl x509 -inform der"),
    (content("fullchain.pem", b""), "fullchain.pem", "no certificate in PEM"),
    (content("fullchain.pem", pem(MX.key)), "fullchain.pem", "no certificate in PEM"),
    (cut_short("fullchain.pem", 300), "fullchain.pem", "copy the whole file again"),
    (garbled("fullchain.pem"), "fullchain.pem", "copy the whole file again"),
    (content("fullchain.pem", pem(MX.between, MX.certificate)), "fullchain.pem",
     "put the server's own certificate (CN=mx.example.org) before its issuers"),
    (content("privkey.pem", b""), "privkey.pem", "no private key in PEM"),
    (content("privkey.pem", MX.chain), "privkey.pem", "no private key in PEM"),
    (cut_short("privkey.pem", 100), "privkey.pem", "no private key in PEM"),
    (garbled("privkey.pem"), "privkey.pem", "copy the whole file again"),
    (content("privkey.pem", pem(OTHER.key)), "privkey.pem",
     "does not belong to the certificate in"),
    (content("privkey.pem", pem(MX.key, password=b"secret")), "privkey.pem",
     "is encrypted, and nobody is there to type its password; take it off: openssl pkey -in"),
    (content("privkey.pem", pem(dsa.generate_private_key(1024))), "privkey.pem",
     "kind of key that TLS does not use"),
    (content("privkey.pem", b"\n" * (1 << 20) + pem(MX.key)), "privkey.pem", "longer than"),
    (unlink("privkey.pem"), "", "holds neither fullchain.pem and privkey.pem nor tls.crt"),
])
def test_problems_name_the_file_and_the_remedy(
    tmp_path: Path, change: Callable[[Path], None], file: str, said: str
) -> None:
    directory = MX.write(tmp_path / "live")
    change(directory)
    text = problem(directory)
    assert text.startswith(f"{directory / file if file else directory}: ")
    assert said in text


def test_the_same_is_said_of_the_older_form_of_an_encrypted_key(tmp_path: Path) -> None:
    key = MX.key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL,
                               BestAvailableEncryption(b"secret"))
    assert b"Proc-Type: 4,ENCRYPTED" in key
    (tmp_path / "x.pem").write_bytes(MX.chain + key)
    assert "is encrypted" in problem(tmp_path / "x.pem")


def test_a_certificate_that_cannot_be_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise ValueError("garbage")

    monkeypatch.setattr(certificates, "_names", fail)
    text = problem(MX.write(tmp_path / "live"))
    assert "fullchain.pem: not a certificate for TLS (garbage); get it issued again" in text


def test_files_that_are_not_there_or_are_none(tmp_path: Path) -> None:
    assert problem(tmp_path / "x.pem").startswith(f"{tmp_path}/x.pem: no such file")
    MX.write(tmp_path / "live")
    assert f"{tmp_path}/b.key: no such file" in problem(
        f"{tmp_path}/live/fullchain.pem:{tmp_path}/b.key")
    assert "Not a directory; name a PEM file" in problem(
        tmp_path / "live" / "fullchain.pem" / "x.pem")
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in problem(tmp_path / "pipe")
    (tmp_path / "live" / "fullchain.pem").unlink()
    (tmp_path / "live" / "fullchain.pem").symlink_to("../nowhere")
    assert "links that lead nowhere" in problem(tmp_path / "live")


@pytest.mark.parametrize("closed", ["privkey.pem", "."])
def test_permission_denied_names_the_user(
    tmp_path: Path, closed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = MX.write(tmp_path / "live")
    # Root may read everything: what others meet is put on.
    real = os.stat

    def refuse(path: Any, **options: Any) -> os.stat_result:
        if str(path).startswith(str(directory / closed)):
            raise PermissionError(13, "Permission denied", path)
        return real(path, **options)

    monkeypatch.setattr(certificates.os, "stat", refuse)
    monkeypatch.setattr(certificates.os, "geteuid", lambda: 1)
    text = problem(directory)
    assert "permission denied for user daemon" in text
    assert "`namei -l`" in text
    monkeypatch.setattr(certificates.os, "geteuid", lambda: 54_321)
    assert "permission denied for user id 54321" in problem(directory)


def test_authorities(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes(pem(AUTHORITY.root, Authority("another").root))
    watched = authorities_in(str(file))
    assert watched.load()[0] == AUTHORITY.root
    assert len(watched.load()) == 2
    file.write_bytes(b"nothing")
    assert watched.look()
    with pytest.raises(CertificateProblem, match="no certificate in PEM"):
        watched.load()


def test_revocation_lists(tmp_path: Path) -> None:
    path = tmp_path / "crl.pem"
    first, second = Authority("first"), Authority("second")
    revoked = first.issue("a.example.org")
    path.write_bytes(b"comment\n" + first.revoked(revoked) + second.revoked())
    lists = revocations_in(str(path)).load()
    assert [len(each) for each in lists] == [1, 0]
    assert lists[0][0].serial_number == revoked.serial


@pytest.mark.parametrize(("content", "said"), [
    (b"", "needs a block"), (b"\x30\x82", "openssl crl -inform der"),
    (b"-----BEGIN X509 CRL-----\nMIIB\n-----END X509 CRL-----\n", "cannot be read"),
    (b"-----BEGIN X509 CRL-----\nMIIB\n", "no revocation list")])
def test_no_revocation_lists(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "crl.pem"
    path.write_bytes(content)
    with pytest.raises(CertificateProblem, match=f"{path}: .*{said}"):
        revocations_in(str(path)).load()


# ---- changes ------------------------------------------------------------------------------------


def settle(*paths: Path) -> None:
    """Make the last change of *paths* look long ago, as far as anybody can."""
    for path in paths:
        os.utime(path, ns=(0, 0))


def test_nothing_changes(tmp_path: Path) -> None:
    watched = certificate_at(str(MX.write(tmp_path / "live")))
    assert watched.look()
    assert not watched.look()
    MX.write(tmp_path / "live")
    assert not watched.look(), "written again, but the same"


def test_old_files_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = certificate_at(str(MX.write(tmp_path / "live")))
    reads = []
    real = certificates._read

    def read(path: str) -> bytes:
        reads.append(path)
        return real(path)

    monkeypatch.setattr(certificates, "_read", read)
    later = certificates.time.time() + 10
    monkeypatch.setattr(certificates.time, "time", lambda: later)
    for _ in range(5):
        watched.look()
    assert len(reads) == 2
    OTHER.write(tmp_path / "live")
    assert watched.look()
    assert len(reads) == 4


def test_overwritten_in_place(tmp_path: Path) -> None:
    watched = certificate_at(str(MX.write(tmp_path / "live")))
    watched.look()
    OTHER.write(tmp_path / "live")
    assert watched.look()
    assert watched.load().chain[0] == OTHER.certificate


def test_overwritten_within_the_same_second_in_the_same_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.stat

    def coarse(path: Any, **options: Any) -> Any:
        """A file system that knows whole seconds."""
        status = real(path, **options)
        return os.stat_result((*status[:7], *(int(x) for x in status[7:10])), {
            "st_atime_ns": 0, "st_mtime_ns": 0, "st_ctime_ns": 0,
            "st_mtime": float(int(status.st_mtime)), "st_ctime": float(int(status.st_ctime))})

    monkeypatch.setattr(certificates.os, "stat", coarse)
    file = tmp_path / "x.pem"
    first, second = (issued.combined.ljust(4000) for issued in (MX, OTHER))
    file.write_bytes(first)
    watched = certificate_at(str(file))
    assert watched.look()
    mark = certificates._mark(str(file))
    file.write_bytes(second)
    assert certificates._mark(str(file)) == mark, "nothing shows outside"
    assert watched.look()
    assert watched.load().chain[0] == OTHER.certificate


def test_renamed_over(tmp_path: Path) -> None:
    file = tmp_path / "x.pem"
    file.write_bytes(MX.combined)
    watched = certificate_at(str(file))
    watched.look()
    (tmp_path / "new").write_bytes(OTHER.combined)
    settle(tmp_path / "new")
    os.replace(tmp_path / "new", file)
    assert watched.look()
    assert watched.load().chain[0] == OTHER.certificate


def test_links_as_certbot_moves_them(tmp_path: Path) -> None:
    live, archive = tmp_path / "live", tmp_path / "archive"
    live.mkdir()
    for number, issued in enumerate((MX, OTHER), 1):
        issued.write(archive, f"fullchain{number}.pem", f"privkey{number}.pem")
    for name in ("fullchain", "privkey"):
        (live / f"{name}.pem").symlink_to(f"../archive/{name}1.pem")
    watched = certificate_at(str(live))
    watched.look()
    for name in ("fullchain", "privkey"):
        (live / f"{name}.pem").unlink()
        (live / f"{name}.pem").symlink_to(f"../archive/{name}2.pem")
    assert watched.look()
    assert watched.load().chain[0] == OTHER.certificate


def test_the_directory_link_that_kubernetes_swaps(tmp_path: Path) -> None:
    for number, issued in enumerate((MX, OTHER), 1):
        issued.write(tmp_path / f"..{number}", "tls.crt", "tls.key")
    (tmp_path / "..data").symlink_to("..1")
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    watched = certificate_at(str(tmp_path))
    watched.look()
    assert watched.load().chain[0] == MX.certificate
    (tmp_path / "..new").symlink_to("..2")
    os.replace(tmp_path / "..new", tmp_path / "..data")
    assert watched.look()
    assert watched.load().chain[0] == OTHER.certificate


def test_gone_and_back(tmp_path: Path) -> None:
    directory = MX.write(tmp_path / "live")
    watched = certificate_at(str(directory))
    watched.look()
    directory.rename(tmp_path / "away")
    assert watched.look()
    with pytest.raises(CertificateProblem, match="no such file"):
        watched.load()
    assert not watched.look()
    (tmp_path / "away").rename(directory)
    assert watched.look()
    assert watched.load().chain[0] == MX.certificate


# ---- one of our own -----------------------------------------------------------------------------


def test_self_signed(tmp_path: Path) -> None:
    path = Path(self_signed(str(tmp_path / "tls"), "mail.Example.org"))
    found = certificate_at(str(path)).load()
    certificate = found.chain[0]
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["mail.example.org", "localhost"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert isinstance(found.key, ec.EllipticCurvePrivateKey)
    assert found.key.curve.name == "secp256r1"
    assert found.not_after - found.not_before > datetime.timedelta(days=3650)
    assert found.is_valid(datetime.datetime.now(datetime.UTC))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == ["self-signed.pem"]
    assert self_signed(str(tmp_path / "tls"), "mail.example.org") == str(path)
    assert certificate_at(str(path)).load() == found, "kept"


def test_self_signed_for_hosts_with_odd_names(tmp_path: Path) -> None:
    for hostname in ("localhost", "192.0.2.7", ("a" * 60 + ".") * 3 + "example.org"):
        path = self_signed(str(tmp_path / "tls"), hostname)
        found = certificate_at(path).load()
        assert self_signed(str(tmp_path / "tls"), hostname) == path
        assert certificate_at(path).load() == found, "kept"


def test_self_signed_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = self_signed(str(tmp_path), "mail.example.org")
    first = certificate_at(path).load()
    self_signed(str(tmp_path), "mx.example.org")
    second = certificate_at(path).load()
    assert "mx.example.org" in second.names, "the host has another name"
    assert second != first
    monkeypatch.setattr(certificates, "OWN_VALIDITY", datetime.timedelta(days=29))
    Path(path).unlink()
    self_signed(str(tmp_path), "mx.example.org")
    monkeypatch.undo()
    short = certificate_at(path).load()
    self_signed(str(tmp_path), "mx.example.org")
    assert certificate_at(path).load().not_after > short.not_after


def test_self_signed_replaces_one_for_nobody(tmp_path: Path) -> None:
    (tmp_path / "self-signed.pem").write_bytes(AUTHORITY.issue().combined)
    path = self_signed(str(tmp_path), "mx.example.org")
    assert certificate_at(path).load().names == ("mx.example.org", "localhost")


def test_what_root_makes_belongs_to_the_owner_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[str, int, int]] = []
    tmp_path.chmod(0o755)
    real = os.stat

    def owned(path: Any, **options: Any) -> os.stat_result:
        status = list(real(path, **options))
        if Path(path) in (tmp_path, tmp_path / "tls"):
            status[4:6] = [1234, 2345]
        return os.stat_result(status)

    monkeypatch.setattr(certificates.os, "stat", owned)
    monkeypatch.setattr(certificates.os, "geteuid", lambda: 0)
    monkeypatch.setattr(certificates.os, "chown", lambda path, uid, gid, follow_symlinks=True:
                        given.append((Path(path).name, uid, gid)))
    monkeypatch.setattr(certificates.os, "fchown", lambda descriptor, uid, gid:
                        given.append(("file", uid, gid)))
    self_signed(str(tmp_path / "tls"), "mail.example.org")
    assert given == [("tls", 1234, 2345), ("file", 1234, 2345)]


def test_self_signed_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(CertificateProblem, match=r"tls/self-signed.pem: a self-signed certificate "
                       r"cannot be made there \(No such file or directory\); let mailsvc write"):
        self_signed(str(tmp_path / "missing" / "tls"), "mail.example.org")


def test_a_broken_file_of_our_own_is_named(tmp_path: Path) -> None:
    (tmp_path / "self-signed.pem").write_bytes(b"")
    with pytest.raises(CertificateProblem, match=r"self-signed.pem: no certificate in PEM.*"
                       "; or delete it, and mailsvc makes a new one"):
        self_signed(str(tmp_path), "mail.example.org")


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(certificates.os, "fsync", full)
    with pytest.raises(CertificateProblem, match="No space left on device"):
        self_signed(str(tmp_path), "mail.example.org")
    assert os.listdir(tmp_path) == []


def test_ed448_is_a_key_for_tls() -> None:
    assert isinstance(ed448.Ed448PrivateKey.generate(), tuple(certificates._KEY_TYPES))
