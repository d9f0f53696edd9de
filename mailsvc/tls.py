"""TLS for every listener: which certificate a client gets, and what is agreed to.

:class:`ServerTLS` serves ``transport.startTLS(tls)`` (STARTTLS, RFC 3207; STLS, RFC 2595) and
``TLSMemoryBIOFactory(tls, False, factory)`` (implicit TLS, RFC 8314).

**Certificates** are at the places that ``tls.certificates`` names (:mod:`mailsvc.certificates`).
The one whose subjectAltName has the server name that the client asks for (SNI, RFC 6066 §3) is
shown, by the whole name first, then by a wildcard for its leftmost label.  A client that asks for
no name, or for an unknown one, gets the first of all.  Where several have the name, the first of
each kind of key is offered, and what the client can do decides: so an RSA certificate may stand
beside an ECDSA one for clients that know nothing else.

**Changes** of the files are picked up by themselves: new sessions get the new certificate within
``tls.check_seconds``, sessions that are open go on undisturbed.  A new pair that cannot be used, or
that is not valid now where the old one is, is refused and the old one stays; the error is logged
once, two seconds after it was seen, because whoever copies two files copies one of them first.
What was refused for its dates is tried again each day.  From the last two weeks of a certificate on
a warning is logged each day.

**Policy.**  "intermediate" and "modern" of Mozilla's guideline, of which the numbers stand below.
All of the ciphers are good, so their order matters little: ours holds, but for a client that would
rather have ChaCha20, as those do that have no AES in hardware.  No compression, no renegotiation.
Session tickets, if they are on, are encrypted under keys of this process that are thrown away each
day, and whenever a certificate changes.  No session is kept on the server's side.

**Client certificates** are asked for when ``tls.client_ca`` is set.  A client may have none, or one
that we do not know: it gets its session all the same, as mail from strangers has to; only its
names do not count.  Nothing is resumed then: each handshake verifies anew.  With ``tls.client_crl``
a certificate counts only if a list of its issuer that is valid now does not name it.

**Limits.**  Of a client's chain the certificate itself is looked for in the lists, not its issuers:
take an issuer out of ``tls.client_ca``.  Nothing is fetched: neither the issuer's lists nor OCSP.
OCSP responses for our own certificates are not stapled (RFC 6066 §8): mail programs and servers do
not ask for them, and the largest issuers have stopped to answer.
"""

from __future__ import annotations

import datetime
import functools
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cryptography import x509
from cryptography.hazmat.bindings.openssl.binding import Binding
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL
from OpenSSL.crypto import X509, X509StoreFlags
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from zope.interface import implementer

from mailsvc.certificates import (
    Certificate,
    CertificateProblem,
    Watched,
    authorities_in,
    certificate_at,
    certificate_until,
    revocations_in,
    self_signed,
)
from mailsvc.handshake import (
    TLS_1_2_CIPHERS,
    TLS_1_3_CIPHERS,
    Contexts,
    ServerConnection,
    choose_context,
    note_verification,
)
from mailsvc.settings import OneOf, at_least, setting

# Mozilla's "Server Side TLS" guideline, version 6.0 (2026).  Against 5.7 it lacks the DHE ciphers
# and has the hybrid group.  Its ciphers are those of TLS_1_2_CIPHERS and TLS_1_3_CIPHERS.
_GROUPS = ("X25519", "prime256v1", "secp384r1")
_HYBRID_GROUP = "X25519MLKEM768"
#: SSL_OP_PRIORITIZE_CHACHA, of which pyOpenSSL knows nothing.
_OP_PRIORITIZE_CHACHA = 1 << 21
#: The least version of each policy.
_POLICIES = {"intermediate": SSL.TLS1_2_VERSION, "modern": SSL.TLS1_3_VERSION}

#: How long, in seconds, a new pair may be out of order before it is complained about.
PATIENCE = 2.0
DAY = 86_400.0
#: From when on the end of a certificate is warned of.
_WARNING = datetime.timedelta(days=14)

_log = Logger("mailsvc.tls")


def _places(values: list[str]) -> str | None:
    if all(part.startswith(("/", "{data}")) for value in values for part in value.split(":")):
        return None
    return 'absolute paths such as "/etc/letsencrypt/live/mail.example.org" or "/a.pem:/b.key"'


@dataclass(frozen=True, slots=True)
class TLSSettings:
    """``[tls]``."""

    certificates: list[str] = setting(
        [], "Certificates with their keys, each a directory with fullchain.pem and privkey.pem (or "
        "tls.crt and tls.key), CHAIN.pem:KEY.pem, or one PEM file with both; a client gets the one "
        "for the name it asks for, or the first.  [] for a self-signed one in {data}/tls.  Renewed "
        "files are picked up by themselves.", check=_places)
    policy: str = setting(
        "intermediate", "What is agreed to, after Mozilla's guideline: intermediate (TLS 1.2 and "
        "1.3) or modern (TLS 1.3 only).", check=OneOf(*_POLICIES))
    session_tickets: bool = setting(
        True, "Whether clients may resume a session without a full handshake.")
    client_ca: str = setting(
        "", "PEM file of the authorities whose client certificates may log in by AUTH EXTERNAL; "
        "empty to ask for none.", check=lambda value: _places([value]) if value else None)
    client_crl: str = setting(
        "", "PEM file of revocation lists of those that issue client certificates: with it, no "
        "certificate logs in that a list names, or whose issuer has no list there that is valid "
        "now.  Empty to look at none.",
        check=lambda value: _places([value]) if value else None)
    check_seconds: float = setting(
        0.5, "How often the files are looked at.", unit="seconds", check=at_least(0.05))


def certificate_places(settings: TLSSettings) -> list[str]:
    """Where there are certificates, each once; none if there is but our own."""
    return list(dict.fromkeys(settings.certificates))


class TLSUnusable(Exception):
    """TLS cannot be offered; the text has a line for each problem and says what to do.

    :ivar problems: keys of the configuration, and what is wrong.
    """

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        self.problems = problems
        super().__init__("\n".join(f"{key}: {problem}" for key, problem in problems))


# ---- contexts -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Clients:
    """Whose client certificates log in: the authorities, and the lists of what they revoked."""

    authorities: tuple[x509.Certificate, ...] = ()
    revocations: tuple[x509.CertificateRevocationList, ...] = ()


def _context(
    certificates: Iterable[Certificate], settings: TLSSettings, clients: _Clients,
    choose_protocol: Callable[[Any, list[bytes]], Any] | None = None,
) -> SSL.Context:
    """The context that shows one of *certificates*, whose keys are of different kinds.

    :raises CertificateProblem: when OpenSSL will not have one of them.
    """
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(_POLICIES[settings.policy])
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION
                        | SSL.OP_CIPHER_SERVER_PREFERENCE | _OP_PRIORITIZE_CHACHA)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_session_id(b"mailsvc")
    if clients.authorities or not settings.session_tickets:
        context.set_options(SSL.OP_NO_TICKET)
    if clients.authorities:
        _ask_clients(context, clients, settings)
    context.set_tlsext_servername_callback(choose_context)
    if choose_protocol is not None:
        context.set_alpn_select_callback(choose_protocol)
    _set_groups(context)
    context.set_tls13_ciphersuites(":".join(TLS_1_3_CIPHERS).encode())
    # Not before these: it counts as the context's first use.
    for certificate in certificates:
        try:
            _show(context, certificate)
        except SSL.Error as error:
            reasons = ", ".join(reason for *_, reason in error.args[0]) if error.args else ""
            raise CertificateProblem(
                f"{certificate.path}: OpenSSL refuses this certificate ({reasons or 'unknown'}); "
                "get one for a P-256 key, or an RSA key of 2048 bits or more, signed with SHA-256 "
                "or better") from error
    return context


def _show(context: SSL.Context, certificate: Certificate) -> None:
    # Of a chain that is added to a context there can be one for all its certificates; one that
    # comes by a file is the certificate's own.
    with tempfile.NamedTemporaryFile(suffix=".pem") as file:
        file.write(b"".join(each.public_bytes(Encoding.PEM) for each in certificate.chain))
        file.flush()
        context.use_certificate_chain_file(file.name)
    context.use_privatekey(certificate.key)
    context.check_privatekey()
    # Level 2 wants 112 bits of security, which is 2048 bits of RSA, and no SHA-1.
    context.set_cipher_list(":".join([*TLS_1_2_CIPHERS, "@SECLEVEL=2"]).encode())


def _ask_clients(context: SSL.Context, clients: _Clients, settings: TLSSettings) -> None:
    store = context.get_cert_store()
    assert store is not None
    for authority in clients.authorities:
        store.add_cert(X509.from_cryptography(authority))
        context.add_client_ca(authority)
    for revocations in clients.revocations:
        store.add_crl(revocations)
    if settings.client_crl:
        store.set_flags(X509StoreFlags.CRL_CHECK)
    context.set_verify(SSL.VERIFY_PEER, note_verification)


def _set_groups(context: Any) -> None:
    # pyOpenSSL can set a single group only, but its binding has the call.  Without it OpenSSL's
    # own choice remains, which is wider, and good too.
    set_groups = getattr(Binding.lib, "SSL_CTX_set1_curves_list", None)
    if set_groups is not None:
        # An unknown name would make it refuse all; the hybrid group came with OpenSSL 3.5.
        hybrid = [_HYBRID_GROUP] if SSL.OPENSSL_VERSION_NUMBER >= 0x30500000 else []
        set_groups(context._context, ":".join([*hybrid, *_GROUPS]).encode())


# ---- the whole ----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Doubt:
    """A new pair that cannot be used, or not yet."""

    problem: str
    since: float
    told: bool = False


@implementer(IOpenSSLServerConnectionCreator)
class ServerTLS(Service):
    """The server's side of TLS, by the certificates as they are now.

    :param directory: where a self-signed certificate is kept when none is set; its parent is there.
    :param hostname: what a self-signed certificate is for.
    :param reactor: the reactor, or a Clock.
    :param issued: the file of a certificate that somebody gets for us; while it is not there, a
        self-signed one stands in for it.
    :param choose_protocol: is asked when a client offers protocols (ALPN), as pyOpenSSL asks; it
        may set another context than ours.

    :meth:`load` comes first, as the user that the service goes on to run as: who may read the files
    then may read them when they are renewed.  While the service runs, the files are watched.
    """

    def __init__(self, settings: TLSSettings, directory: str, hostname: str, reactor: Any,
                 issued: str = "",
                 choose_protocol: Callable[[Any, list[bytes]], Any] | None = None) -> None:
        self._settings = settings
        self._choose_protocol = choose_protocol
        self._issued = issued
        self._directory = os.path.abspath(directory)
        self._hostname = hostname
        self._clock = reactor
        self._watched: list[Watched[Certificate]] = []
        self._certificates: dict[Watched[Certificate], Certificate] = {}
        #: What tells whose client certificates log in, and which of _Clients it makes.
        self._client_files: dict[Watched[Any], str] = {}
        self._clients = _Clients()
        self._doubts: dict[Watched[Any], _Doubt] = {}
        self._contexts: Contexts | None = None
        self._next_day = 0.0
        self._aloud = True
        self._looking = LoopingCall(self._look)
        self._looking.clock = reactor

    # ---- starting ----

    def load(self, *, aloud: bool = True) -> None:
        """Read every certificate, and make one if none is set.

        :param aloud: log which they are, and when they end: for one of several processes.
        :raises TLSUnusable: names all that is wrong with any of them.
        """
        self._aloud = aloud
        problems: list[tuple[str, str]] = []
        self._watched = [certificate_at(place) for place in certificate_places(self._settings)]
        if not self._watched:
            try:
                own = self_signed(self._directory, self._hostname)
            except CertificateProblem as problem:
                problems.append(("tls.certificates", str(problem)))
            else:
                self._watched = [certificate_until(self._issued, own)]
        for watched in self._watched:
            try:
                self._certificates[watched] = self._usable(watched)
            except CertificateProblem as problem:
                problems.append(("tls.certificates", str(problem)))
        if self._settings.client_ca:
            self._client_files[authorities_in(self._settings.client_ca)] = "authorities"
        if self._settings.client_crl:
            self._client_files[revocations_in(self._settings.client_crl)] = "revocations"
        for file, what in self._client_files.items():
            try:
                self._clients = replace(self._clients, **{what: file.load()})
            except CertificateProblem as problem:
                key = "client_ca" if what == "authorities" else "client_crl"
                problems.append((f"tls.{key}", str(problem)))
        if problems:
            raise TLSUnusable(problems)
        self._renew_contexts()
        if aloud:
            for certificate in self._certificates.values():
                if self._settings.certificates:
                    _log.info("certificate {certificate}", certificate=str(certificate))
                else:
                    self._name_own(certificate)
            self._warn_of_ends()
        self._next_day = self._clock.seconds() + DAY

    def _name_own(self, certificate: Certificate) -> None:
        if certificate.path == self._issued:
            _log.info("certificate {certificate}", certificate=str(certificate))
            return
        if self._issued:
            _log.info("until there is a certificate, clients get a self-signed one ({path}, "
                      "SHA-256 {fingerprint})", path=certificate.path,
                      fingerprint=certificate.fingerprint)
            return
        _log.warn(
            "no certificate is set: clients get a self-signed one, which they do not trust unless "
            "told to ({path}, SHA-256 {fingerprint}); have mailsvc get one for {hostname} "
            "(acme.names), or get it and name it in tls.certificates, as in "
            "[\"/etc/letsencrypt/live/{hostname}\"]",
            path=certificate.path, fingerprint=certificate.fingerprint, hostname=self._hostname)

    @property
    def ends(self) -> list[float]:
        """When each certificate ends, in seconds since the epoch, in the order of its place."""
        return [self._certificates[each].not_after.timestamp() for each in self._watched]

    def startService(self) -> None:
        super().startService()
        self._looking.start(self._settings.check_seconds, now=False)

    def stopService(self) -> Deferred[Any] | None:
        if self._looking.running:
            self._looking.stop()
        return super().stopService()

    # ---- a session ----

    def serverConnectionForTLS(self, protocol: object) -> SSL.Connection:
        """A new connection, for Twisted."""
        assert self._contexts is not None, "load() comes first"
        return ServerConnection(self._contexts)

    # ---- changes ----

    def _look(self) -> None:
        try:
            self._pick_up()
        except Exception:
            # A failure would end the looking, and with it all renewal.
            _log.failure("certificates could not be looked at")

    def _pick_up(self) -> None:
        """Take what has changed, and once a day what has only become older."""
        changed = False
        if self._clock.seconds() >= self._next_day:
            self._next_day = self._clock.seconds() + DAY
            self._begin_day()
            changed = True
        for watched in self._watched:
            if watched.look():
                changed = self._consider(watched) or changed
        for file in self._client_files:
            if file.look():
                changed = self._consider_clients(file) or changed
        if changed:
            self._renew_contexts()
        self._complain()

    def _begin_day(self) -> None:
        if not self._settings.certificates:
            try:
                self_signed(self._directory, self._hostname)
            except CertificateProblem as problem:
                _log.error("{problem}", problem=str(problem))
        for watched in [each for each in self._watched if each in self._doubts]:
            self._consider(watched)
        if self._aloud:
            self._warn_of_ends()

    def _consider(self, watched: Watched[Certificate]) -> bool:
        """Take the certificate that is there now; return whether it is another one, and good."""
        current = self._certificates[watched]
        try:
            found = self._usable(watched)
            now = _now()
            if found != current and current.is_valid(now) and not found.is_valid(now):
                raise CertificateProblem(
                    f"{found.path}: valid only from {found.not_before} to {found.not_after}; put a "
                    "certificate there that is valid today, or set this machine's clock right")
        except CertificateProblem as problem:
            self._doubt(watched, problem)
            return False
        self._doubts.pop(watched, None)
        if found == current:
            return False
        self._certificates[watched] = found
        _log.info("new certificate {certificate}", certificate=str(found))
        return True

    def _consider_clients(self, file: Watched[Any]) -> bool:
        what = self._client_files[file]
        try:
            self._clients = replace(self._clients, **{what: file.load()})
        except CertificateProblem as problem:
            self._doubt(file, problem)
            return False
        self._doubts.pop(file, None)
        _log.info("new client {what} from {path}", what=what, path=file.place)
        return True

    def _doubt(self, watched: Watched[Any], problem: CertificateProblem) -> None:
        doubt = self._doubts.get(watched)
        if doubt is None or doubt.problem != str(problem):
            self._doubts[watched] = _Doubt(str(problem), self._clock.seconds())

    def _complain(self) -> None:
        for doubt in self._doubts.values():
            if not doubt.told and self._clock.seconds() >= doubt.since + PATIENCE:
                doubt.told = True
                _log.error("refused, and the old one stays in use: {problem}",
                           problem=doubt.problem)

    def _usable(self, watched: Watched[Certificate]) -> Certificate:
        certificate = watched.load()
        _context([certificate], self._settings, _Clients())
        return certificate

    def _renew_contexts(self) -> None:
        """New contexts, and with them new keys for session tickets."""
        in_order = [self._certificates[watched] for watched in self._watched]
        by_name: dict[str, dict[str, Certificate]] = {}
        for certificate in in_order:
            for name in certificate.names:
                by_name.setdefault(name, {}).setdefault(certificate.kind, certificate)

        @functools.cache
        def context(*certificates: Certificate) -> SSL.Context:
            return _context(certificates, self._settings, self._clients,
                            self._choose_protocol)

        first = in_order[0]
        beside = by_name[first.names[0]].values() if first.names else [first]
        self._contexts = Contexts(context(*beside), {
            name: context(*found.values()) for name, found in by_name.items()})

    def _warn_of_ends(self) -> None:
        now = _now()
        for certificate in self._certificates.values():
            left = certificate.not_after - now
            if certificate.not_before > now:
                _log.error("certificate {certificate} is valid only from {since}: clients refuse "
                           "it; see whether this machine's clock is right",
                           certificate=str(certificate), since=certificate.not_before)
            elif left < datetime.timedelta():
                _log.error("certificate {certificate} has expired: clients refuse it; renew it",
                           event="certificate.old", certificate=str(certificate), days=left.days)
            elif left < _WARNING:
                _log.warn("certificate {certificate} expires in {days} days; see why it was not "
                          "renewed", event="certificate.old", certificate=str(certificate),
                          days=left.days)
        for revocations in self._clients.revocations:
            until = revocations.next_update_utc
            if until is not None and until < now:
                _log.error("the revocation list of {issuer} in {path} was valid until {until}: "
                           "nobody can log in by a certificate of that issuer; fetch a new one",
                           issuer=revocations.issuer.rfc4514_string(),
                           path=self._settings.client_crl, until=until)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
