"""TLS on the server's side: policy, names, the start, and changes under open sessions."""

from __future__ import annotations

import datetime
import hashlib
import os
import shutil
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL
from twisted.logger import LogLevel

from mailsvc import tls
from mailsvc.tls import DAY, PATIENCE, ServerTLS, TLSSettings, TLSUnusable
from tests import tls_talk
from tests.authority import Authority, Issued, pem, rsa_key, self_issued
from tests.tls_talk import (
    AUTHORITY,
    CLIENTS,
    MX,
    OTHER,
    RENEWED,
    Session,
    World,
    careless,
    pyopenssl_session,
    resumed,
    trusting,
)

world = tls_talk.world
live = tls_talk.live

# ---- policy -------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_intermediate_takes_tls_1_2_and_1_3(
    world: World, live: Path, version: ssl.TLSVersion
) -> None:
    session = Session(world.start(live), trusting(version=version))
    assert session.talks()
    assert session.state.version == version.name.replace("_", ".")
    assert session.client.compression() is None


def test_modern_takes_tls_1_3_only(world: World, live: Path) -> None:
    server = world.start(live, policy="modern")
    assert Session(server).state.version == "TLSv1.3"
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
        Session(server, trusting(version=ssl.TLSVersion.TLSv1_2))


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_nothing_older_than_tls_1_2(world: World, live: Path) -> None:
    context = careless("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
        Session(world.start(live), context)


def accepted(server: ServerTLS) -> set[str]:
    """The TLS 1.2 ciphers, of all that a client could wish, that are agreed to."""
    everything = careless("ALL:COMPLEMENTOFALL:@SECLEVEL=0")
    agreed = set()
    for cipher in everything.get_ciphers():
        if cipher["protocol"] == "TLSv1.3":
            continue
        context = careless(f"{cipher['name']}:@SECLEVEL=0")
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        try:
            Session(server, context)
        except ssl.SSLError:
            continue
        agreed.add(cipher["name"])
    return agreed


def test_the_ciphers_are_those_of_the_guideline(world: World, tmp_path: Path) -> None:
    kinds = {"ECDSA": MX, "RSA": AUTHORITY.issue("mx.example.org", key=rsa_key(2048))}
    for kind, issued in kinds.items():
        server = world.start(issued.write(tmp_path / kind))
        assert accepted(server) == {f"ECDHE-{kind}-AES128-GCM-SHA256",
                                    f"ECDHE-{kind}-AES256-GCM-SHA384",
                                    f"ECDHE-{kind}-CHACHA20-POLY1305"}
        server.stopService()


@pytest.mark.parametrize(("wished", "agreed"), [
    (("AES128-GCM-SHA256", "CHACHA20-POLY1305"), "AES_128_GCM_SHA256"),
    (("CHACHA20-POLY1305", "AES128-GCM-SHA256"), "CHACHA20_POLY1305_SHA256"),
    (("AES256-GCM-SHA384", "AES128-GCM-SHA256"), "AES_128_GCM_SHA256")])
def test_our_order_of_ciphers_holds_but_for_chacha20(
    world: World, live: Path, wished: tuple[str, str], agreed: str
) -> None:
    context = trusting(version=ssl.TLSVersion.TLSv1_2)
    context.set_ciphers(":".join(f"ECDHE-ECDSA-{cipher}" for cipher in wished))
    assert Session(world.start(live), context).state.cipher == f"TLS_ECDHE_ECDSA_WITH_{agreed}"


@pytest.mark.parametrize(("group", "name"), [
    (b"X25519MLKEM768", "X25519MLKEM768"), (b"X25519", "x25519"), (b"P-256", "secp256r1"),
    (b"P-384", "secp384r1")])
def test_the_groups_of_the_guideline(
    world: World, live: Path, group: bytes, name: str
) -> None:
    if group == b"X25519MLKEM768" and SSL.OPENSSL_VERSION_NUMBER < 0x30500000:
        name, group = "x25519", b"X25519"
    _, echo = pyopenssl_session(world.start(live), groups=group)
    assert echo.state is not None
    assert echo.state.group == name


@pytest.mark.parametrize("group", [b"P-521", b"X448", b"ffdhe2048"])
def test_no_other_groups(world: World, live: Path, group: bytes) -> None:
    with pytest.raises(SSL.Error):
        pyopenssl_session(world.start(live), groups=group)


def test_renegotiation_is_off(world: World, live: Path) -> None:
    server = world.start(live)
    client, echo = pyopenssl_session(server, version=SSL.TLS1_2_VERSION)
    transport: Any = echo.transport
    client.renegotiate()
    with pytest.raises(SSL.WantReadError):
        client.do_handshake()
    transport.dataReceived(client.bio_read(1 << 16))
    client.bio_write(transport.transport.value())
    with pytest.raises(SSL.Error, match=r"(?i)renegotiation"):
        client.do_handshake()


# ---- tickets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("tickets", [True, False])
def test_session_tickets_by_option(
    world: World, live: Path, version: ssl.TLSVersion, tickets: bool
) -> None:
    _, second = resumed(world.start(live, session_tickets=tickets), version)
    assert second.client.session_reused is tickets
    assert second.talks()


def test_a_change_and_a_day_end_all_tickets(world: World, live: Path) -> None:
    server, context = world.start(live), trusting()
    first = Session(server, context)
    assert first.talks()
    RENEWED.write(live)
    world.pass_time(1)
    second = Session(server, context, session=first.client.session)
    assert not second.client.session_reused
    assert second.serial == RENEWED.serial
    assert second.talks()
    world.pass_time(DAY, 600)
    assert not Session(server, context, session=second.client.session).client.session_reused


# ---- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "shown"), [
    ("mx.example.org", MX), ("MX.Example.ORG", MX), ("mail.example.net", OTHER),
    ("x.example.net", OTHER), ("X.EXAMPLE.NET", OTHER), ("a.b.example.net", MX),
    ("example.net", MX), ("unknown.example.com", MX), ("", MX), ("special.example.net", None)])
def test_the_certificate_for_a_name(
    world: World, tmp_path: Path, asked: str, shown: Issued | None
) -> None:
    special = AUTHORITY.issue("special.example.net", "mx.example.org")
    server = world.start(MX.write(tmp_path / "mx"), OTHER.write(tmp_path / "other"),
                         special.write(tmp_path / "special"))
    session = Session(server, careless(), asked)
    assert session.serial == (shown or special).serial
    assert session.state.server_name == asked.lower()
    assert session.talks()


def test_names_that_are_none(world: World, tmp_path: Path) -> None:
    server = world.start(MX.write(tmp_path / "mx"), OTHER.write(tmp_path / "other"))
    for name in (b"\xff\xfe x", b"x" * 255, b"*.example.net", b".", b"mail.example.net."):
        client, _ = pyopenssl_session(server, name=name)
        shown = client.get_peer_certificate(as_cryptography=True)
        assert shown is not None
        expected = OTHER if name in {b"*.example.net", b"mail.example.net."} else MX
        assert shown.serial_number == expected.serial


# ---- several for one name ------------------------------------------------------------------------

RSA = AUTHORITY.issue("mx.example.org", key=rsa_key(2048))


@pytest.fixture
def both(world: World, tmp_path: Path) -> ServerTLS:
    """A server with a certificate of each kind for one name, and one of RSA for another."""
    second = AUTHORITY.issue("mx.example.org", key=rsa_key(2048))
    return world.start(*(issued.write(tmp_path / str(number)) for number, issued in enumerate(
        (MX, RSA, second, OTHER))))


@pytest.mark.parametrize("asked", ["mx.example.org", "", "unknown.example.com"])
def test_a_client_gets_the_kind_that_it_can_do(both: ServerTLS, asked: str) -> None:
    for kind, issued in ("ECDSA", MX), ("RSA", RSA):
        context = careless(f"ECDHE-{kind}-AES128-GCM-SHA256")
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        session = Session(both, context, asked)
        assert session.serial == issued.serial
        assert session.talks()
        assert session.state.channel_bindings["tls-server-end-point"] == hashlib.sha256(
            issued.certificate.public_bytes(Encoding.DER)).digest()


def test_it_is_chosen_in_tls_1_3_as_well(both: ServerTLS) -> None:
    for algorithm, issued in (b"ecdsa_secp256r1_sha256", MX), (b"rsa_pss_rsae_sha256", RSA):
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        lib = tls.Binding.lib
        assert lib.SSL_CTX_set1_sigalgs_list(context._context, algorithm) == 1
        client, echo = pyopenssl_session(both, context=context)
        shown = client.get_peer_certificate(as_cryptography=True)
        assert shown is not None
        assert shown.serial_number == issued.serial
        assert echo.state is not None
        assert echo.state.version == "TLSv1.3"


def test_another_name_has_its_own_alone(both: ServerTLS) -> None:
    context = careless("ECDHE-RSA-AES128-GCM-SHA256")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        Session(both, context, "mail.example.net")
    assert Session(both, careless(), "mail.example.net").serial == OTHER.serial


def test_each_is_shown_with_its_own_chain(world: World, tmp_path: Path) -> None:
    other = Authority("others")
    rsa = other.issue("mx.example.org", key=rsa_key(2048))
    server = world.start(MX.write(tmp_path / "mx"), rsa.write(tmp_path / "rsa"))
    for cipher, issued in (b"ECDHE-ECDSA-AES128-GCM-SHA256", MX), (
            b"ECDHE-RSA-AES128-GCM-SHA256", rsa):
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_max_proto_version(SSL.TLS1_2_VERSION)
        context.set_cipher_list(cipher)
        client, _ = pyopenssl_session(server, context=context)
        assert client.get_peer_cert_chain(as_cryptography=True) == [
            issued.certificate, issued.between]


def test_one_of_the_kinds_is_renewed(world: World, both: ServerTLS, tmp_path: Path) -> None:
    RENEWED.write(tmp_path / "0")
    world.pass_time(5)
    for kind, issued in ("ECDSA", RENEWED), ("RSA", RSA):
        context = careless(f"ECDHE-{kind}-AES128-GCM-SHA256")
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        assert Session(both, context).serial == issued.serial


# ---- start --------------------------------------------------------------------------------------


def test_all_problems_at_once(world: World, tmp_path: Path) -> None:
    good = MX.write(tmp_path / "good")
    mixed = MX.write(tmp_path / "mixed")
    (mixed / "privkey.pem").write_bytes(pem(OTHER.key))
    weak = tmp_path / "weak.pem"
    weak.write_bytes(pem(self_issued(rsa_key(1024)), rsa_key(1024)))
    with pytest.raises(TLSUnusable) as caught:
        world.start(good, mixed, tmp_path / "none.pem", weak, client_ca=str(mixed / "privkey.pem"))
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    for line, start, said in zip(lines, (
        f"tls.certificates: {mixed}/privkey.pem: ", f"tls.certificates: {tmp_path}/none.pem: ",
        f"tls.certificates: {weak}: ", f"tls.client_ca: {mixed}/privkey.pem: ",
    ), ("does not belong", "no such file", "key too small); get one for a P-256 key",
        "no certificate in PEM"), strict=True):
        assert line.startswith(start)
        assert said in line


def test_what_is_in_use_is_logged(world: World, live: Path) -> None:
    world.start(live)
    assert world.said(LogLevel.warn) == []
    assert world.said(LogLevel.info) == [
        f"certificate {live}/fullchain.pem (mx.example.org; "
        f"until {MX.certificate.not_valid_after_utc:%Y-%m-%d})"]


def test_without_a_certificate_one_is_made_and_named(world: World) -> None:
    server = world.start()
    path = world.directory / "data" / "tls" / "self-signed.pem"
    session = Session(server, trusting(roots=path.read_bytes().partition(b"-----BEGIN PRIV")[0]))
    assert session.talks()
    fingerprint = hashlib.sha256(session.client.getpeercert(binary_form=True) or b"").hexdigest()
    [line] = world.said(LogLevel.warn)
    assert str(path) in line
    assert ":".join(fingerprint[n:n + 2] for n in range(0, 64, 2)).upper() in line
    assert 'tls.certificates, as in ["/etc/letsencrypt/live/mx.example.org"]' in line
    for name in ("localhost", "127.0.0.1", "::1"):
        Session(server, trusting(roots=path.read_bytes()), name)
    server.stopService()
    again = world.start()
    assert Session(again, careless()).serial == session.serial


def test_one_that_cannot_be_made(world: World, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tls").write_text("not a directory")
    with pytest.raises(TLSUnusable, match=r"tls.certificates: .*Not a directory.*let mailsvc"):
        world.start()


@pytest.mark.parametrize("values", [["live/mx"], ["/a.pem:b.pem"], [""], ["/a.pem:"]])
def test_places_are_absolute(values: list[str]) -> None:
    [field] = [each for each in TLSSettings.__dataclass_fields__.values()
               if each.name == "certificates"]
    check = field.metadata["check"]
    assert "absolute paths" in check(values)
    assert check(["/etc/x", "/a:/b", "{data}/x.pem"]) is None


# ---- changes ------------------------------------------------------------------------------------


def test_replaced_under_a_hundred_open_sessions(world: World, live: Path) -> None:
    server = world.start(live)
    context = trusting()
    sessions = [Session(server, context) for _ in range(100)]
    RENEWED.write(live)
    assert Session(server, context).serial == MX.serial
    world.pass_time(0.75)
    assert Session(server, context).serial == RENEWED.serial
    assert {session.serial for session in sessions} == {MX.serial}
    assert all(session.talks() for session in sessions)
    assert not any(session.echo.lost for session in sessions)
    assert len(world.said(LogLevel.info)) == 2
    assert world.said(LogLevel.error) == []


def test_a_handshake_that_began_before_the_change_ends_after_it(
    world: World, tmp_path: Path
) -> None:
    places = [MX.write(tmp_path / "mx"), OTHER.write(tmp_path / "other")]
    (tmp_path / "ca.pem").write_bytes(pem(CLIENTS.root))
    server = world.start(*places, client_ca=str(tmp_path / "ca.pem"))
    begun: list[Any] = []

    class Slow(Session):
        def carry(self) -> None:
            begun.append(None)
            if len(begun) == 2:
                RENEWED.write(places[0])
                world.pass_time(1)
            super().carry()

    session = Slow(server, careless(), "mail.example.net")
    assert session.talks()
    assert session.serial == OTHER.serial


@pytest.mark.parametrize(("spoil", "said"), [
    (lambda live: (live / "privkey.pem").write_bytes(pem(RENEWED.key)), "does not belong"),
    (lambda live: (live / "fullchain.pem").write_bytes(RENEWED.chain[:200]), "copy the whole"),
    (lambda live: (live / "fullchain.pem").write_bytes(b""), "no certificate in PEM"),
    (lambda live: (live / "privkey.pem").unlink(), "holds neither"),
    (shutil.rmtree, "no such file"),
    (lambda live: AUTHORITY.issue("mx.example.org", days=-0.5).write(live), "valid only from"),
    (lambda live: AUTHORITY.issue("mx.example.org", since=1).write(live), "valid only from"),
    (lambda live: AUTHORITY.issue("mx.example.org", key=rsa_key(1024)).write(live), "too small"),
])
def test_a_broken_pair_is_refused_and_the_old_one_stays(
    world: World, live: Path, spoil: Callable[[Path], object], said: str
) -> None:
    server = world.start(live)
    spoil(live)
    world.pass_time(10)
    [line] = world.said(LogLevel.error)
    assert line.startswith("refused, and the old one stays in use: ")
    assert str(live) in line
    assert said in line
    assert Session(server).serial == MX.serial
    RENEWED.write(live)
    world.pass_time(1)
    assert Session(server).serial == RENEWED.serial
    assert world.said(LogLevel.error) == []


def test_two_files_copied_one_after_the_other(world: World, live: Path) -> None:
    server = world.start(live)
    (live / "fullchain.pem").write_bytes(RENEWED.chain)
    world.pass_time(PATIENCE - 0.5)
    assert Session(server).serial == MX.serial
    (live / "privkey.pem").write_bytes(pem(RENEWED.key))
    world.pass_time(10)
    assert Session(server).serial == RENEWED.serial
    assert world.said(LogLevel.error) == []


def test_put_back_in_order(world: World, live: Path) -> None:
    server = world.start(live)
    (live / "fullchain.pem").write_bytes(b"")
    world.pass_time(1)
    MX.write(live)
    world.pass_time(10)
    assert Session(server).serial == MX.serial
    assert world.said(LogLevel.error) == []
    (live / "fullchain.pem").write_bytes(b"")
    world.pass_time(10)
    assert len(world.said(LogLevel.error)) == 1, "broken again is news again"


def test_one_of_several_changes(world: World, tmp_path: Path) -> None:
    mx, other = MX.write(tmp_path / "mx"), OTHER.write(tmp_path / "other")
    server = world.start(mx, other)
    new = AUTHORITY.issue("mail.example.net", "new.example.com")
    new.write(other)
    (mx / "privkey.pem").write_bytes(b"")
    world.pass_time(5)
    for name, issued in (("mail.example.net", new), ("new.example.com", new),
                         ("mx.example.org", MX), ("x.example.net", MX)):
        assert Session(server, careless(), name).serial == issued.serial
    assert len(world.said(LogLevel.error)) == 1


def test_links_that_are_moved(world: World, tmp_path: Path) -> None:
    MX.write(tmp_path / "1")
    RENEWED.write(tmp_path / "2")
    (tmp_path / "live").symlink_to("1")
    server = world.start(tmp_path / "live")
    (tmp_path / "new").symlink_to("2")
    os.replace(tmp_path / "new", tmp_path / "live")
    world.pass_time(1)
    assert Session(server).serial == RENEWED.serial


def test_one_that_is_not_valid_yet_is_taken_when_it_is(
    world: World, live: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = world.start(live)
    later = AUTHORITY.issue("mx.example.org", since=0.5)
    later.write(live)
    world.pass_time(5)
    assert Session(server).serial == MX.serial
    tomorrow = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)
    monkeypatch.setattr(tls, "_now", lambda: tomorrow)
    world.pass_time(DAY, 600)
    assert Session(server, careless()).serial == later.serial


def test_an_expired_one_gives_way_to_any(world: World, tmp_path: Path) -> None:
    live = AUTHORITY.issue("mx.example.org", since=-9, days=-2).write(tmp_path / "live")
    server = world.start(live)
    assert "has expired" in world.said(LogLevel.error)[0]
    newer = AUTHORITY.issue("mx.example.org", since=-9, days=-1)
    newer.write(live)
    world.pass_time(1)
    assert Session(server, careless()).serial == newer.serial


def test_the_end_is_warned_of_once_a_day(world: World, tmp_path: Path) -> None:
    soon = AUTHORITY.issue("mx.example.org", days=13.5).write(tmp_path / "soon")
    world.start(soon, AUTHORITY.issue("x.example.org", days=14.5).write(tmp_path / "later"))
    [line] = world.said(LogLevel.warn)
    assert line.startswith(f"certificate {soon}/fullchain.pem (mx.example.org; until 20")
    assert "expires in 13 days" in line
    world.pass_time(DAY - 60, 30)
    assert world.said(LogLevel.warn) == []
    world.pass_time(3 * DAY, 600)
    assert len(world.said(LogLevel.warn)) == 3


def test_one_that_is_not_valid_yet_is_named_at_the_start(world: World, tmp_path: Path) -> None:
    world.start(AUTHORITY.issue("mx.example.org", since=1).write(tmp_path / "live"))
    [line] = world.said(LogLevel.error)
    assert "is valid only from 20" in line
    assert "this machine's clock" in line


def test_our_own_is_renewed_while_the_service_runs(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = world.start()
    before = Session(server, careless()).serial
    monkeypatch.setattr("mailsvc.certificates.OWN_RENEWAL", datetime.timedelta(days=4000))
    world.pass_time(DAY + 600, 600)
    monkeypatch.undo()
    assert Session(server, careless()).serial != before
    path = world.directory / "data" / "tls" / "self-signed.pem"
    path.write_bytes(b"")
    world.pass_time(DAY, 600)
    assert "or delete it" in "\n".join(world.said(LogLevel.error))


def test_looking_goes_on_after_a_failure(
    world: World, live: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = world.start(live)
    monkeypatch.setattr(server, "_complain", lambda: 1 / 0)
    world.pass_time(0.5)
    monkeypatch.undo()
    assert world.said(LogLevel.critical) == ["certificates could not be looked at"]
    RENEWED.write(live)
    world.pass_time(1)
    assert Session(server).serial == RENEWED.serial


def test_a_stopped_service_looks_no_more(world: World, live: Path) -> None:
    server = world.start(live)
    server.stopService()
    assert world.clock.getDelayedCalls() == []


