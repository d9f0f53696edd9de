"""Getting a certificate: one order at an authority, from the account to the file (RFC 8555 §7).

It blocks, and what it takes of memory is not wanted in a server: the service starts it as a program
of its own, ``python -m mailsvc.acme``.  Of the protocol itself certbot's library takes care.

When a certificate is to be renewed the authority says (ACME Renewal Information, RFC 9773); one
that does not is asked when a third of the certificate's time is left.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import josepy
import requests
from acme import crypto_util, errors, messages
from acme.client import ClientNetwork, ClientV2
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mailsvc import __version__
from mailsvc.acme.challenges import certificate_for, offered
from mailsvc.acme.files import Files
from mailsvc.acme.limits import CHALLENGES, ACMESettings
from mailsvc.certificates import Certificate, CertificateProblem, certificate_at

#: How long the authority may take for one answer, and for the whole order, seconds.
_ANSWER, _ORDER = 30, 180
#: How often the authority is asked when to renew, at most and at least, seconds.
_SOONEST, _LATEST = 3600, 12 * 3600
#: How often an order is begun at most.
_TRIES = 3
#: Which part of a certificate's time is left when it is renewed, if the authority does not say.
_LEFT = 1 / 3


class Refused(Exception):
    """There is no certificate to be had now; the text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it.

    :ivar got: whether there is a new certificate.
    :ivar until: when the certificate that there is ends, seconds since 1970.
    :ivar again: in how many seconds to look again.
    """

    got: bool
    until: float
    again: float


def renew(settings: ACMESettings, files: Files, *, at_once: bool = False,
          tell: Callable[[str], object] = lambda step: None) -> Outcome:
    """See to it that there is a good certificate.

    :param at_once: get another one even if the one that there is will do.
    :param tell: is told each step.
    :raises Refused: or OSError, when a file cannot be written.
    """
    try:
        with files.locked(), _explained(settings):
            # What was killed has left them.
            files.drop_answers()
            tries = 1
            while True:
                try:
                    return _renew(settings, files, at_once, tell)
                except messages.Error as error:
                    # RFC 8555 §6.5: that the nonce was no good says nothing of the request.  The
                    # library has tried it twice.
                    if error.code != "badNonce" or tries == _TRIES:
                        raise
                tries += 1
    except BlockingIOError:
        raise Refused("somebody else asks for a certificate just now; wait for that") from None


def _renew(settings: ACMESettings, files: Files, at_once: bool,
           tell: Callable[[str], object]) -> Outcome:
    present = _present(files)
    client, key = _client(settings, files)
    if not at_once and present is not None and _is_for(present, settings.names):
        due, look = _when(client, present)
        if due > _now():
            return Outcome(False, present.not_after.timestamp(), min(
                max(_SOONEST, (look - _now()).total_seconds()), _LATEST,
                max(60.0, (due - _now()).total_seconds())))
    _register(client, key, settings, files, tell)
    tell(f"asking {settings.directory} for {', '.join(settings.names)}")
    private = (present.key if present is not None and settings.keep_key
               else ec.generate_private_key(ec.SECP256R1()))
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    order = client.new_order(crypto_util.make_csr(pem, [name.lower() for name in settings.names]))
    try:
        for authorization in order.authorizations:
            if authorization.body.status != messages.STATUS_VALID:
                _answer(client, key, authorization, settings.challenge, files, tell)
        order = client.poll_and_finalize(
            # The library compares it with the time of this machine's zone.
            order, datetime.datetime.now() + datetime.timedelta(seconds=_ORDER))
    finally:
        files.drop_answers()
    files.keep("certificate.pem", order.fullchain_pem.encode("ascii") + pem)
    found = certificate_at(str(files.certificate)).load()
    tell(f"got a certificate until {found.not_after:%Y-%m-%d}")
    return Outcome(True, found.not_after.timestamp(), _LATEST)


def _answer(client: ClientV2, key: josepy.JWK, authorization: messages.AuthorizationResource,
            kind: str, files: Files, tell: Callable[[str], object]) -> None:
    """Let the authority look whether a name is ours."""
    name = authorization.body.identifier.value
    challenge = offered(authorization, kind)
    if challenge is None:
        other, = CHALLENGES.keys() - {kind}
        raise Refused(f"the authority does not offer {kind.upper()} for {name}; set acme.challenge "
                      f'to "{other}", choose another authority in acme.directory, or get the '
                      "certificate with another program and name it in tls.certificates")
    if kind == "tls-alpn-01":
        files.keep_answer(name, certificate_for(name, challenge.chall.validation(key)))
    tell(f"answering for {name} on port {CHALLENGES[kind]}")
    client.answer_challenge(challenge, challenge.chall.response(key))


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _present(files: Files) -> Certificate | None:
    try:
        return certificate_at(str(files.certificate)).load()
    except CertificateProblem:
        # Nothing is lost by getting another one.
        return None


def _is_for(certificate: Certificate, names: list[str]) -> bool:
    return set(certificate.names) == {name.lower() for name in names}


def _when(client: ClientV2, certificate: Certificate
          ) -> tuple[datetime.datetime, datetime.datetime]:
    """When to renew it, and when to ask that again."""
    life = certificate.not_after - certificate.not_before
    due, look = certificate.not_after - life * _LEFT, _now()
    try:
        told, again = client.renewal_time(certificate.chain[0].public_bytes(Encoding.PEM))
    except errors.ARIError as error:
        told, again = None, error.retry_after
    # A mistake of the authority's must not let the certificate end.
    latest = certificate.not_after - life / 10
    return min(told or due, latest), max(look, again.astimezone(datetime.UTC))


# ---- the account ---------------------------------------------------------------------------------


def _client(settings: ACMESettings, files: Files) -> tuple[ClientV2, josepy.JWK]:
    """A client with the key of our account, which is made if need be."""
    saved = _saved(settings, files)
    key: Any = josepy.JWK.from_json(saved["key"]) if saved else josepy.JWKEC(
        key=josepy.ComparableECKey(ec.generate_private_key(ec.SECP256R1())))
    network = ClientNetwork(key, alg=josepy.ES256, user_agent=f"mailsvc/{__version__}",
                            timeout=_ANSWER)
    if settings.authorities:
        network.verify_ssl = settings.authorities  # type: ignore[assignment]
    client = ClientV2(ClientV2.get_directory(settings.directory, network), network)
    if saved and saved.get("url"):
        network.account = messages.RegistrationResource(
            uri=saved["url"], body=messages.Registration())
    return client, key


def _saved(settings: ACMESettings, files: Files) -> dict[str, Any] | None:
    try:
        saved: dict[str, Any] = json.loads(files.account.read_bytes())
        # An account is one authority's.
        return saved if saved["directory"] == settings.directory and saved["key"] else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _register(client: ClientV2, key: josepy.JWK, settings: ACMESettings, files: Files,
              tell: Callable[[str], object]) -> None:
    if client.net.account is None:
        tell(f"opening an account at {settings.directory}")
        # First, so that whatever comes of it, no account is left without its key.
        _save(settings, files, key, "")
        try:
            account = client.new_account(messages.NewRegistration.from_data(
                email=settings.email or None, terms_of_service_agreed=settings.agreed))
            url = account.uri
        except errors.ConflictError as there:
            url = there.location
            client.net.account = messages.RegistrationResource(
                uri=url, body=messages.Registration())
        _save(settings, files, key, url)
    thumbprint = josepy.b64encode(key.thumbprint())
    if files.thumbprint != thumbprint:
        files.keep("thumbprint", thumbprint)


def _save(settings: ACMESettings, files: Files, key: josepy.JWK, url: str) -> None:
    files.keep("account.json", json.dumps(
        {"directory": settings.directory, "url": url, "key": key.to_json()}).encode("ascii"))


# ---- what may go wrong ---------------------------------------------------------------------------


@contextmanager
def _explained(settings: ACMESettings) -> Iterator[None]:
    """What the library raises, in words that say what to do."""
    try:
        yield
    except errors.ValidationError as error:
        raise Refused("; ".join(
            _failed(each, settings.challenge) for each in error.failed_authzrs)) from error
    except errors.TimeoutError as error:
        raise Refused(f"{settings.directory} did not come to an end in {_ORDER} seconds; it will "
                      "be asked again") from error
    except errors.IssuanceError as error:
        raise Refused(f"{settings.directory} issues no certificate: {_said(error.error)}; mend "
                      "what it names, and `mailsvc acme renew` asks again") from error
    except messages.Error as error:
        raise Refused(f"{settings.directory} refuses: {_said(error)}; mend what it names, and "
                      "`mailsvc acme renew` asks again") from error
    except requests.exceptions.SSLError as error:
        raise Refused(f"{settings.directory} cannot be verified; name whoever vouches for it in "
                      f"acme.authorities ({error})") from error
    except requests.exceptions.RequestException as error:
        raise Refused(f"{settings.directory} cannot be reached; see whether this host may connect "
                      f"to it ({error})") from error
    except (errors.Error, josepy.errors.Error, ValueError) as error:
        raise Refused(f"{settings.directory} answers what cannot be understood; see whether it is "
                      f"the directory of an ACME authority ({type(error).__name__}: {error})"
                      ) from error


def _said(error: messages.Error) -> str:
    """What the authority says, on one line."""
    parts = [error.detail or error.description or error.typ or "without a reason"]
    parts += [f"{each.identifier.value}: {each.detail}" for each in error.subproblems or ()
              if each.identifier is not None]
    return " ".join("; ".join(parts).split())


def _failed(authorization: messages.AuthorizationResource, kind: str) -> str:
    name = authorization.body.identifier.value
    said = "; ".join(_said(each.error) for each in authorization.body.challenges
                     if each.error is not None)
    lead = (f"port 80 to listeners.acme: from elsewhere, "
            f"http://{name}/.well-known/acme-challenge/ is answered with 404"
            if kind == "http-01" else
            "port 443 to listeners.acme or listeners.console, without another program that ends "
            "TLS before it")
    return (f"the authority could not see that {name} is this host ({said}); its A and AAAA "
            f"records have to lead here, and {lead}")
