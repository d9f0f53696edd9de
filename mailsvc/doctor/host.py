"""What can be told of the host and the data directory without asking anybody elsewhere.

These block: they are for threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mailsvc.config import Settings
from mailsvc.directory import SqliteDirectory
from mailsvc.doctor.facts import Fact, fail, note, ok, warn
from mailsvc.errors import MailFailure
from mailsvc.localsocket import NoService
from mailsvc.monitor import ask
from mailsvc.names import DirectoryError
from mailsvc.ownership import name_of

#: Of a file system, what is little and what is next to nothing: a share, and octets or files.
_LITTLE, _NOTHING = 0.10, 0.02
_LITTLE_OCTETS, _NOTHING_OCTETS = 1 << 30, 100 << 20

#: How long mail may wait to leave, in seconds, before somebody should look.
_WAITS = 4 * 3600.0

#: What to do where we may not look.
_AS_USER = "run this as root, or as the user that runs the service"

#: adjtimex(2): the clock is not synchronised.
_TIME_ERROR = 5


def data_directory(settings: Settings) -> list[Fact]:
    """Whether it is there, and whose it is."""
    what, data = "data directory", Path(settings.service.data)
    try:
        status = data.stat()
    except FileNotFoundError:
        return [fail(what, f"there is no {data}", "`mailsvc quickstart` makes it; or name the "
                     "right place with --config or --dir")]
    except OSError as error:
        return [fail(what, f"{data}: {error.strerror}", _AS_USER)]
    owner = name_of(status.st_uid)
    if not stat.S_ISDIR(status.st_mode):
        return [fail(what, f"{data} is no directory", "name another in service.data")]
    if status.st_mode & 0o007:
        return [warn(what, f"{data} is open to every user of this machine "
                     f"(mode {stat.S_IMODE(status.st_mode):o})", f"chmod 700 {data}")]
    try:
        strangers = [path for path in _inside(data) if _owner(path) not in (None, status.st_uid)]
    except OSError as error:
        return [note(what, f"{data} belongs to {owner}; what is in it cannot be looked at: "
                     f"{error.strerror}", _AS_USER)]
    if strangers:
        more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
        return [fail(what, f"{strangers[0]}{more} in it does not belong to {owner}, who runs the "
                     "service and may not be able to use it", f"chown -R {owner}: {data}")]
    return [ok(what, f"{data} belongs to {owner}")]


def _inside(data: Path) -> Iterator[Path]:
    """What lies in *data*, two levels deep; mail itself may be millions of files."""
    for path in data.iterdir():
        yield path
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(FileNotFoundError):
                yield from path.iterdir()


def _owner(path: Path) -> int | None:
    """Whose *path* is; None if it is gone, as files of a service that runs go."""
    try:
        return path.lstat().st_uid
    except FileNotFoundError:
        return None


def room(settings: Settings) -> list[Fact]:
    """How much room there is where data and mail are, in octets and in files."""
    scheme, _, argument = settings.service.store.partition(":")
    places = [settings.service.data, *([argument] if scheme == "maildir" else [])]
    facts: dict[int, Fact] = {}
    for named in map(Path, places):
        # Not Path.exists, which fails where we may not look.
        place = next(each for each in (named, *named.parents) if os.path.exists(each))
        try:
            device, disk = place.stat().st_dev, os.statvfs(place)
        except OSError as error:
            facts[-1] = fail("disk", f"{place}: {error.strerror}", "see `dmesg` and `df`")
            continue
        facts.setdefault(device, _room(place, disk))
    return list(facts.values())


def _room(place: Path, disk: os.statvfs_result) -> Fact:
    free, size = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
    files, most = disk.f_favail, disk.f_files
    text = f"{free / (1 << 30):.1f} GiB of {size / (1 << 30):.1f} free at {place}"
    share = free / size if size else 1.0
    # File systems without a table of inodes say 0.
    files_share = files / most if most else 1.0
    if most:
        text += f", {files} more files"
    remedy = "make room, or move service.data to a larger disk"
    if (share < _NOTHING and free < _LITTLE_OCTETS) or free < _NOTHING_OCTETS \
            or files_share < _NOTHING:
        return fail("disk", text, remedy)
    if (share < _LITTLE and free < 10 * _LITTLE_OCTETS) or free < _LITTLE_OCTETS \
            or files_share < _LITTLE:
        return warn("disk", text, remedy)
    return ok("disk", text)


def accounts(settings: Settings) -> list[Fact]:
    """Whether there is anybody to get mail."""
    what = "accounts"
    folder = os.path.dirname(settings.accounts.database)
    if os.path.exists(folder) and not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        return [note(what, f"{folder} may not be looked at", _AS_USER)]
    try:
        with SqliteDirectory(settings.accounts.database, create=False) as directory:
            domains = len(list(directory.domains()))
            people = sum(1 for _ in directory.accounts())
    except DirectoryError as error:
        return [fail(what, error.problem, error.remedy)]
    except (MailFailure, OSError) as error:
        return [fail(what, f"{settings.accounts.database}: {error}",
                     "see to that file, or restore it")]
    if not domains:
        return [fail(what, "no domain is served", "mailsvc domain add DOMAIN")]
    text = f"{people} account{'' if people == 1 else 's'} in {domains} domain" + (
        "" if domains == 1 else "s")
    if not people:
        return [fail(what, text, "mailsvc account add NAME@DOMAIN")]
    return [ok(what, text)]


def service(settings: Settings) -> tuple[list[Fact], list[tuple[str, str]]]:
    """Whether the service runs and is ready; and where it listens: kinds and addresses."""
    what = "service"
    try:
        told = ask(Path(settings.service.data))
    except NoService as problem:
        text, _, remedy = str(problem).partition(": ")
        if isinstance(problem.__cause__, PermissionError):
            return [note(what, "whether it runs may not be asked", _AS_USER)], []
        return [fail(what, text, remedy or "start it: systemctl start mailsvc")], []
    listening = [(each["kind"], each["address"]) for each in told.get("listeners", ())]
    facts = [ok(what, "runs and is ready") if told["ready"] else
             fail(what, f"runs and is not ready: {told['unready']}",
                  "see its log: journalctl -u mailsvc")]
    waits = _sample(told, "mailsvc_queue_oldest_age_seconds")
    count = sum(each["value"] for figure in told["figures"]
                if figure["name"] == "mailsvc_queue_messages" for each in figure["samples"])
    text = f"{count:.0f} messages wait to leave" + (
        f", the oldest for {waits / 3600:.1f} hours" if count else "")
    facts.append(warn("queue", text, "mailsvc queue list") if count and waits > _WAITS
                 else ok("queue", text))
    return facts, listening


def _sample(told: dict[str, Any], name: str) -> float:
    values = [each["value"] for figure in told["figures"] if figure["name"] == name
              for each in figure["samples"]]
    return float(values[0]) if values else 0.0


def clock() -> list[Fact]:
    """Whether the kernel says that something keeps the clock right.

    What the time really is cannot be told from here.
    """
    what = "clock"
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "adjtimex"):
        return [note(what, "this system does not tell whether it is kept right")]
    # struct timex has 208 octets at most; zeros ask and change nothing.
    state = libc.adjtimex(ctypes.create_string_buffer(512))
    if state == -1:
        return [note(what, "the kernel does not tell whether it is kept right "
                     f"({os.strerror(ctypes.get_errno())})")]
    if state == _TIME_ERROR:
        return [warn(what, "nothing keeps it right, as far as the kernel knows; signatures, "
                     "certificates and logins depend on it",
                     "run systemd-timesyncd, chrony or ntpd; in a container, on its host")]
    return [ok(what, "kept right (NTP)")]
