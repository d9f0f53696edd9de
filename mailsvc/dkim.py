"""DKIM signatures of what our users send (RFC 6376; RFC 8463 for Ed25519).

**Keys.**  Those of a domain are files of their own, ``dkim/DOMAIN/SELECTOR.pem``, in the data
directory; ``dkim/DOMAIN/active`` names the selectors that are signed with, one a line.  A new key
signs nothing before it is put to use, so its record can be published first; an old one stays until
it is removed, so that what it signed can be verified.  Neither needs a restart.

**Signatures.**  One by each active key, over the message as it is sent, octet by octet: it is made
when the message leaves, from the file that is sent.  ``relaxed/relaxed``.  The fields of
:data:`SIGNED` are named once more than they are there (oversigned), so that none can be added.  The
domain is that of the first mailbox in From, which DMARC (RFC 7489 §3.1) asks for; without a key for
it, a parent domain's, else the reverse-path's.  Mail of others that we only forward is not signed,
nor is what has no header that could be read.
"""

from __future__ import annotations

import base64
import functools
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import dkim as dkimpy
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from twisted.logger import Logger

from mailsvc.names import DirectoryError, check_domain, fold_domain
from mailsvc.ownership import give_to_owner_of, make_folders
from mailsvc.submission.mailboxes import mailboxes

#: The fields that are signed (RFC 6376 §5.4.1), each once more than it is there.
SIGNED = (b"from", b"sender", b"reply-to", b"to", b"cc", b"subject", b"date", b"message-id",
          b"in-reply-to", b"references", b"mime-version", b"content-type",
          b"content-transfer-encoding", b"list-unsubscribe", b"list-unsubscribe-post")

#: RFC 5322 §4.5: obsolete, and nothing to the relaxed form (RFC 6376 §3.4.2); dkimpy takes none.
_BEFORE_COLON = re.compile(rb"^([!-9;-~]+)[ \t]+:", re.MULTILINE)

_log = Logger("mailsvc.queue")

_SELECTOR = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a domain.

    :ivar algorithm: "rsa" or "ed25519".
    :ivar public: what the record publishes, base64.
    :ivar active: whether it signs.
    """

    domain: str
    selector: str
    algorithm: str
    public: str
    active: bool

    @property
    def name(self) -> str:
        """Where its record belongs."""
        return f"{self.selector}._domainkey.{self.domain}"

    @property
    def record(self) -> str:
        """The text of its TXT record (RFC 6376 §3.6.1)."""
        return f"v=DKIM1; k={self.algorithm}; p={self.public}"

    @property
    def zone_line(self) -> str:
        """The record as a line of a zone file, in strings of at most 255 octets (§3.6.2.2)."""
        text = self.record
        strings = " ".join(f'"{text[start:start + 255]}"' for start in range(0, len(text), 255))
        return f"{self.name}. 3600 IN TXT ( {strings} )"


class Keys:
    """The keys below the directory *root*."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def add(self, domain: str, algorithm: str, selector: str = "", *, bits: int = 2048) -> Key:
        """Make a key, which is not active yet.

        :param selector: by default one of the date and the algorithm, such as ``r20261126``.
        :raises DirectoryError: the name will not do, or is taken.
        """
        domain = check_domain(domain)
        stem = selector or f"{algorithm[0]}{time.strftime('%Y%m%d')}"
        if not _SELECTOR.fullmatch(stem):
            raise DirectoryError(f"{stem!r} is no selector",
                                 "expected letters, digits and hyphens, in lower case")
        directory = self._root / domain
        make_folders(directory)
        private: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey = (
            rsa.generate_private_key(65_537, bits) if algorithm == "rsa"
            else ed25519.Ed25519PrivateKey.generate())
        text = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                     serialization.NoEncryption())
        for name in [stem] if selector else [stem, *(f"{stem}-{n}" for n in range(2, 100))]:
            path = directory / f"{name}.pem"
            try:
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            except FileExistsError:
                continue
            try:
                with open(fd, "wb") as stream:
                    stream.write(text)
                    stream.flush()
                    os.fsync(fd)
                give_to_owner_of(directory, path)
            except BaseException:
                # As on a full disk: one that cannot be read would keep others from being used.
                path.unlink()
                raise
            return self._key(domain, name)
        raise DirectoryError(f"there is a key {stem} for {domain} already",
                             "choose another selector, or remove that key")

    def all(self) -> Iterator[Key]:
        """Every key, by domain and selector; raises as :meth:`of` does."""
        for name in _names(self._root):
            yield from self.of(name)

    def of(self, domain: str) -> list[Key]:
        """The keys of *domain*, by selector.

        :raises OSError: they cannot be looked at, which is not the same as that there are none.
        """
        if not domain or "/" in domain or domain.startswith("."):
            return []
        return [self._key(domain, name.removesuffix(".pem"))
                for name in _names(self._root / domain) if name.endswith(".pem")]

    def use(self, domain: str, selectors: list[str]) -> list[Key]:
        """Sign with these keys of *domain* from now on, and with no others.

        :raises DirectoryError: there is no such key.
        """
        known = {key.selector for key in self.of(domain)}
        for selector in selectors:
            if selector not in known:
                raise DirectoryError(f"there is no key {selector!r} for {domain}",
                                     "see `mailsvc dkim list`")
        new = self._root / domain / "active.new"
        new.write_text("".join(f"{selector}\n" for selector in selectors))
        give_to_owner_of(new.parent, new)
        new.replace(self._root / domain / "active")
        return [key for key in self.of(domain) if key.active]

    def remove(self, domain: str, selector: str) -> Key:
        """Forget a key that is not active.

        :raises DirectoryError: there is no such key, or it signs.
        """
        key = next((each for each in self.of(domain) if each.selector == selector), None)
        if key is None:
            raise DirectoryError(f"there is no key {selector!r} for {domain}",
                                 "see `mailsvc dkim list`")
        if key.active:
            raise DirectoryError(f"{selector} signs the mail of {domain}",
                                 "first put others to use: mailsvc dkim use")
        (self._root / domain / f"{selector}.pem").unlink()
        return key

    def private(self, key: Key) -> bytes:
        """The private key as dkimpy wants it."""
        path = self._root / key.domain / f"{key.selector}.pem"
        return _private(path, path.stat().st_mtime_ns)[1]

    def _key(self, domain: str, selector: str) -> Key:
        path = self._root / domain / f"{selector}.pem"
        public, _ = _private(path, path.stat().st_mtime_ns)
        try:
            active = (self._root / domain / "active").read_text().split()
        except FileNotFoundError:
            active = []
        algorithm = "ed25519" if len(public) == 44 else "rsa"
        return Key(domain, selector, algorithm, public, selector in active)


def _names(directory: Path) -> list[str]:
    """What is in *directory*, which need not be there."""
    # Not Path.glob, which finds nothing in what it may not read.
    try:
        return sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []


@functools.lru_cache(maxsize=1000)
def _private(path: Path, changed: int) -> tuple[str, bytes]:
    """The public key of the file in base64, and the private one in dkimpy's form."""
    try:
        private = serialization.load_pem_private_key(path.read_bytes(), None)
    except ValueError as error:
        raise DirectoryError(f"{path} holds no private key", "restore or remove it") from error
    if isinstance(private, ed25519.Ed25519PrivateKey):
        public = private.public_key().public_bytes_raw()
        return base64.b64encode(public).decode(), base64.b64encode(private.private_bytes_raw())
    if not isinstance(private, rsa.RSAPrivateKey):
        raise DirectoryError(f"{path} is neither an RSA nor an Ed25519 key", "remove it")
    der = private.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(der).decode(), private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption())


class Signer:
    """Signs with *keys*.  Blocks: some milliseconds for a signature; for threads."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def at_once(self) -> Callable[[bytes, str], bytes]:
        """As :meth:`sign`, for messages that leave together: looks at a domain's keys but once."""
        return functools.partial(self.sign, of=functools.cache(self._keys.of))

    def keys_for(self, message: bytes, reverse_domain: str,
                 of: Callable[[str], list[Key]] | None = None) -> list[Key]:
        """The active keys for *message*, whose reverse-path is of *reverse_domain*.

        :param of: tells the keys of a domain; by default whoever has them now.
        :raises OSError: keys cannot be looked at.
        """
        of = of or self._keys.of
        for domain in dict.fromkeys((_author_domain(message), fold_domain(reverse_domain))):
            labels = domain.split(".")
            # A registry's own suffix has no keys here, so going up is harmless.
            for start in range(len(labels) - 1):
                active = [key for key in of(".".join(labels[start:])) if key.active]
                if active:
                    return active
        return []

    def has_keys(self) -> bool:
        """Whether any domain is signed for; raises as :meth:`Keys.of` does."""
        return any(key.active for key in self._keys.all())

    def sign(self, message: bytes, reverse_domain: str,
             of: Callable[[str], list[Key]] | None = None) -> bytes:
        """The signature fields to send before *message*; empty when there is no key for it.

        Parameters as of :meth:`keys_for`.
        """
        fields = []
        keys = self.keys_for(message, reverse_domain, of)
        end = message.find(b"\r\n\r\n")
        end = end if end >= 0 else len(message)
        if keys and _BEFORE_COLON.search(message, 0, end):
            message = _BEFORE_COLON.sub(rb"\1:", message[:end]) + message[end:]
        for key in keys:
            try:
                signing = dkimpy.DKIM(
                    message, signature_algorithm=f"{key.algorithm}-sha256".encode())
            except dkimpy.MessageFormatError:
                # It would not be readable tomorrow either; without a signature it may arrive.
                _log.warn("a message of {domain} is not signed: its header cannot be read",
                          domain=key.domain)
                return b""
            there = [name.lower() for name, _ in signing.headers]
            included = [name for name in SIGNED for _ in range(there.count(name) + 1)]
            fields.append(signing.sign(
                key.selector.encode(), key.domain.encode(), self._keys.private(key),
                canonicalize=(b"relaxed", b"relaxed"), include_headers=included))
        return b"".join(fields)


def _author_domain(message: bytes) -> str:
    header = message.partition(b"\r\n\r\n")[0]
    match = re.search(rb"(?im)^from[ \t]*:((?:[^\r\n]|\r\n[ \t])*)", header)
    try:
        authors = mailboxes(match[1]) if match else []
    except ValueError:
        return ""
    return fold_domain(authors[0].domain) if authors else ""
