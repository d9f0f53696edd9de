"""What an installation on a host consists of, made piece by piece: ``mailsvc quickstart``.

Each piece is made if it is not there, and left alone if it is: what is already there is never
changed, so that all of it can be done again at any time, and goes on where it was interrupted.
What made a piece says so with :class:`Made`; what was found, with :class:`There`.

* the user that the service runs as;
* the data directory, of that user alone;
* the configuration: the commented example with the keys that are set;
* the domain and its first account;
* the keys that sign what is sent, in use at once: mail signed before its record is published is
  taken as unsigned, no worse;
* the self-signed certificate;
* the systemd units: those of ``etc/``, with the places that are used here.

It asks nobody and prints nothing.  What cannot be made is :class:`Impossible`.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from mailsvc.certificates import CertificateProblem, self_signed
from mailsvc.config import Settings, reference
from mailsvc.directory import SqliteDirectory
from mailsvc.dkim import Keys
from mailsvc.mail import Address
from mailsvc.ownership import make_folders
from mailsvc.passwords import PasswordHasher, check_password, scram_salt

UNITS = ("mailsvc.service", "mailsvc.socket")

_HEADING = """\
# The configuration of mailsvc, in TOML; written by `mailsvc quickstart`.
#
# Every other key is here too, commented out, with its default.  To change one, remove its "#" and
# edit the value; the line above it says of what type it is, and in what unit.
#
#   mailsvc config check FILE    lists every mistake in a file
#   mailsvc config show FILE     shows the values in effect
#   mailsvc config why KEY FILE  says which line makes one so, and what it means
"""

#: Where a package of mailsvc has its units; those in /etc go before them.
PACKAGED = Path("/usr/lib/systemd/system")

#: What a systemd unit takes as a path without any quoting.
_PLAIN = re.compile(r"/[A-Za-z0-9_./+@-]*")


class Impossible(Exception):
    """A piece that cannot be made; the text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Made:
    """A piece that was made; *text* says what."""

    text: str


@dataclass(frozen=True, slots=True)
class There:
    """A piece that was there already, and was left as it is."""

    text: str


Piece = Made | There


def user(name: str, home: Path) -> Piece:
    """The user *name* of this system."""
    try:
        pwd.getpwnam(name)
        return There(f"user {name}")
    except KeyError:
        pass
    program = shutil.which("useradd", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if program is None:
        raise Impossible(f"there is no user {name}, and no `useradd` to make one: make it by the "
                         "means of this system, or name another with --user")
    done = subprocess.run([program, "--system", "--home-dir", str(home), "--no-create-home",
                           "--shell", "/usr/sbin/nologin", name], capture_output=True, text=True,
                          timeout=60, check=False)
    if done.returncode:
        raise Impossible(f"`useradd` could not make the user {name}: {done.stderr.strip()}")
    return Made(f"user {name}")


def group_of(name: str) -> str:
    """The group that the user *name* belongs to first."""
    return grp.getgrgid(pwd.getpwnam(name).pw_gid).gr_name


def data_directory(place: Path, owner: str) -> Piece:
    """The directory *place*, of the user *owner*, or of who made the one above it if that is "".

    :raises Impossible: it cannot be made, or belongs to somebody else.
    """
    try:
        if place.is_dir():
            found = place.stat().st_uid
            if owner and found != pwd.getpwnam(owner).pw_uid:
                raise Impossible(f"{place} belongs to user id {found}, not to {owner}, who is to "
                                 f"run the service: chown -R {owner}: {place}, or name the right "
                                 "user with --user")
            return There(f"data directory {place}")
        place.mkdir(mode=0o700, parents=True)
        if owner:
            entry = pwd.getpwnam(owner)
            os.chown(place, entry.pw_uid, entry.pw_gid)
    except OSError as error:
        raise Impossible(f"cannot make {place}: {error.strerror}; name a directory that you can "
                         "write to with --dir") from error
    return Made(f"data directory {place}")


def configuration(place: Path, given: Mapping[str, Any]) -> Piece:
    """The file *place* in which the keys of *given* are set; one that is there is not read."""
    if os.path.lexists(place):
        return There(f"configuration {place}")
    _write(place, reference(given, _HEADING), 0o644)
    return Made(f"configuration {place}")


def domain(settings: Settings, name: str) -> Piece:
    """The domain *name* among those that are served."""
    with SqliteDirectory(settings.accounts.database) as directory:
        if directory.domain(name) is not None:
            return There(f"domain {name}")
        directory.add_domain(name)
    return Made(f"domain {name}")


def account(settings: Settings, address: Address, password: Callable[[], str]) -> Piece:
    """The account *address*; *password* is asked only if it is to be made."""
    with SqliteDirectory(settings.accounts.database) as directory:
        if directory.account(address.local_part, address.domain) is not None:
            return There(f"account {address}, with its password as it was")
        address = directory.check_new_account(address)  # before anybody types a password
        prepared = check_password(password())
        hasher = PasswordHasher(settings.passwords, None)
        salt = scram_salt(directory, f"{address.local_part}@{address.domain}")
        directory.add_account(address, verifier=hasher.hash(prepared),
                              scram=hasher.derive_scram(prepared, salt))
    return Made(f"account {address}")


def keys(settings: Settings, name: str) -> Piece:
    """Keys that sign the mail of the domain *name*: one of each kind."""
    root = Keys(Path(settings.service.data) / "dkim")
    there = root.of(name)
    if not there:
        made = [root.add(name, algorithm) for algorithm in ("rsa", "ed25519")]
        root.use(name, [key.selector for key in made])
        return Made("DKIM keys " + " and ".join(key.selector for key in made))
    return There("DKIM keys " + ", ".join(
        key.selector + ("" if key.active else " (does not sign)") for key in there))


def certificate(settings: Settings) -> Piece:
    """A certificate: one that the configuration names, or a self-signed one."""
    if settings.tls.certificates:
        return There("certificate " + ", ".join(settings.tls.certificates))
    folder = os.path.join(settings.service.data, "tls")
    there = os.path.lexists(os.path.join(folder, "self-signed.pem"))
    try:
        path = self_signed(folder, settings.service.hostname)
    except CertificateProblem as problem:
        raise Impossible(str(problem)) from problem
    return (There if there else Made)(f"self-signed certificate {path}")


def records(settings: Settings, name: str, text: str) -> tuple[Path, Piece]:
    """The file with the records of the domain *name*, which says *text*: where, and what it is.

    It is written anew whenever they have changed, since it is made from all the rest.
    """
    folder = Path(settings.service.data) / "dns"
    place = folder / f"{name}.zone"
    try:
        if place.exists() and place.read_text() == text:
            return place, There(f"DNS records {place}")
        make_folders(folder)
    except OSError as error:
        raise Impossible(f"cannot write {place}: {error.strerror}; see that the disk has room, and "
                         "that this user may write there") from error
    _write(place, text, 0o600, replace=True)
    return place, Made(f"DNS records {place}")


def units(folder: Path, texts: Mapping[str, str]) -> list[Piece]:
    """The unit files *texts* in *folder*, but for those that a package has brought as they are."""
    pieces: list[Piece] = []
    for name, text in texts.items():
        place = folder / name
        if os.path.lexists(place):
            pieces.append(There(f"unit {place}" + (
                "" if _says(place, text) else ", other than this version's")))
        elif _says(PACKAGED / name, text):
            pieces.append(There(f"unit {PACKAGED / name}"))
        else:
            _write(place, text, 0o644)
            pieces.append(Made(f"unit {place}"))
    return pieces


def _says(place: Path, text: str) -> bool:
    """Whether the file *place* can be read and holds *text*."""
    try:
        return place.read_text() == text
    except OSError:
        return False


def check_unit_places(*places: Path) -> None:
    """Refuse *places* that a unit could not use.

    :raises Impossible: one of them is such.
    """
    for place in places:
        if not _PLAIN.fullmatch(str(place)):
            raise Impossible(f"{place}: systemd would want quotation marks in this name; choose "
                             "one of letters, digits and . _ - + @ /")
    # The units are sandboxed: ProtectHome=yes hides these.
    hidden = [place for place in places
              if place.is_relative_to("/home") or place.is_relative_to("/root")]
    if hidden:
        raise Impossible(f"the service could not reach {hidden[0]}, since its unit hides home "
                         "directories from it: install mailsvc into /opt/mailsvc, as README.rst "
                         "says, by a Python that is in no home, and keep its files out of homes; "
                         "or leave the units out: --units none")


def unit_texts(config: Path, data: Path, owner: str, programs: Path, *,
               acme: int = 0) -> dict[str, str]:
    """The units of ``etc/`` for these places, by their names; raises as check_unit_places does.

    :param owner: the user that the service runs as.
    :param acme: the port that it answers an authority on; 0 for none.
    """
    check_unit_places(config, data, programs)
    found = {name: (resources.files("mailsvc") / "etc" / name).read_text() for name in UNITS}
    changes = [
        ("Environment=PATH=/opt/mailsvc/bin:", f"Environment=PATH={programs}:"),
        ("--config /etc/mailsvc.toml", f"--config {config}"),
        ("User=mailsvc\nGroup=mailsvc\n", f"User={owner}\nGroup={group_of(owner)}\n")]
    if str(data) != "/var/lib/mailsvc":
        changes.append((
            "StateDirectory=mailsvc\nStateDirectoryMode=0700\nWorkingDirectory=/var/lib/mailsvc\n",
            f"ReadWritePaths={data}\nWorkingDirectory={data}\n"))
    if acme:
        ports = found["mailsvc.socket"].count("\nListenStream=")
        found["mailsvc.socket"] = _changed(found["mailsvc.socket"], [
            ("ListenStream=995\n", f"ListenStream=995\nListenStream={acme}\n")])
        last = f"--pop3s systemd:domain=INET6:index={ports - 1}\n"
        changes.append((last, last.replace(
            "\n", f" \\\n    --acme systemd:domain=INET6:index={ports}\n")))
    return {**found, "mailsvc.service": _changed(found["mailsvc.service"], changes)}


def _changed(text: str, changes: list[tuple[str, str]]) -> str:
    for old, new in changes:
        if old not in text:
            raise AssertionError(f"the units of etc/ lost {old!r}")
        text = text.replace(old, new)
    return text


def _write(place: Path, text: str, mode: int, *, replace: bool = False) -> None:
    """Write a file, whole or not at all, which belongs to the owner of its directory.

    :param replace: whether it may be there already.
    """
    new: Path | None = None
    try:
        # A name that nobody can have put a link at.
        descriptor, name = tempfile.mkstemp(prefix=f".{place.name}-", dir=place.parent)
        new = Path(name)
        with open(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), mode)
            file.write(text)
            file.flush()
            if os.geteuid() == 0:
                folder = place.parent.stat()
                os.fchown(file.fileno(), folder.st_uid, folder.st_gid)
            os.fsync(file.fileno())
        if replace:
            new.replace(place)
        else:
            # Unlike a rename, a link does not replace what somebody else has put there meanwhile.
            os.link(new, place)
    except OSError as error:
        raise Impossible(f"cannot write {place}: {error.strerror}; see that the disk has room, and "
                         "that this user may write there") from error
    finally:
        if new is not None:
            new.unlink(missing_ok=True)
