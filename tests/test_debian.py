"""The Debian package: built from the tree, and used in a Debian that has nothing else.

That is a directory which mmdebstrap fills from where this machine's own packages come from.  What
runs there has a network of its own, with loopback alone, and so the usual ports.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.apparmor import Profile, Seen
from tests.conftest import absent

ROOT = Path(__file__).parent.parent
PACKAGING = ROOT / "etc" / "debian"
ALICE = "alice@example.org"

pytestmark = pytest.mark.slow


def run(*command: str | Path, timeout: int = 300, **variables: str) -> str:
    """Its standard output and error; it must succeed."""
    done = subprocess.run([str(word) for word in command], env={**os.environ, **variables},
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, (command, done.stdout[-4000:])
    return done.stdout


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory, program: Callable[[str], str]) -> Path:
    """The package; building it needs no root."""
    program("dpkg-deb")
    program("dpkg-shlibdeps")
    if not Path("/usr/bin/python3").exists():
        absent("there is no /usr/bin/python3, Debian's own")
    made = tmp_path_factory.mktemp("deb")
    run(PACKAGING / "build", made, PIP=f"{sys.executable} -m pip")
    (found,) = made.glob("*.deb")
    return found


class Debian:
    """A directory with a Debian in it."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __call__(self, script: str, *around: str | Path) -> str:
        """What *script* prints when a shell runs it there; *around* may watch that."""
        inner = (f"ip link set lo up && mount --rbind /proc {self.place}/proc && "
                 f"exec chroot {self.place} /bin/sh -e -c {shlex.quote(script)}")
        return run(*around, "unshare", "--mount", "--net", "sh", "-e", "-c", inner,
                   PATH="/usr/sbin:/usr/bin:/sbin:/bin", LC_ALL="C.UTF-8")

    def holds(self, path: str) -> bool:
        return os.path.lexists(self.place / path.lstrip("/"))


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory,
           program: Callable[[str], str]) -> Iterator[Debian]:
    """One of this machine's release, with Python and logrotate."""
    if os.geteuid() != 0:
        pytest.skip("another root directory needs root")
    for name in "unshare", "ip", "strace":
        program(name)
    release = platform.freedesktop_os_release()
    codename = release.get("VERSION_CODENAME", "")
    listed = run(program("apt-get"), "indextargets", "--format",
                 "deb $(REPO_URI) $(CODENAME) $(COMPONENT)", "Created-By: Packages",
                 f"Origin: {release['ID'].capitalize()}")
    sources = [line for line in dict.fromkeys(listed.splitlines())
               if line.split()[2].partition("-")[0] == codename]
    if not sources:
        absent("apt knows no packages of this release: run apt-get update")
    place = tmp_path_factory.mktemp("debian") / "root"
    try:
        run(program("mmdebstrap"), "--mode=root", "--variant=essential",
            "--include=python3,logrotate", "--dpkgopt=path-exclude=/usr/share/doc/*", codename,
            place, *sources, timeout=600)
        yield Debian(place)
    finally:
        # Nothing is mounted there: each run had its mounts for itself.
        shutil.rmtree(place, ignore_errors=True)


SESSION = f"""
printf 'secret\\n' | mailsvc quickstart {ALICE} --hostname mx.example.org --offline \
    --address 192.0.2.7 --password-stdin \
    --set passwords.memory_kib=64 --set passwords.passes=1 --set service.workers=2 >/dev/null
/usr/lib/mailsvc/bin/twistd --uid mailsvc --gid mailsvc --pidfile /run/mailsvc/pid \
    --logfile /var/log/mailsvc/log mailsvc --config /etc/mailsvc.toml
python3 - <<'END'
import poplib, smtplib, ssl, time
from itertools import repeat
for _ in range(300):
    try:
        smtplib.SMTP("127.0.0.1").close()
        break
    except OSError:
        time.sleep(0.1)
context = ssl.create_default_context(cafile="/var/lib/mailsvc/tls/self-signed.pem")
context.check_hostname = False
with smtplib.SMTP("127.0.0.1") as sender:
    sender.sendmail("bob@example.net", ["{ALICE}"], "Subject: one\\r\\n\\r\\nOne.\\r\\n")
with smtplib.SMTP_SSL("127.0.0.1", context=context) as sender:
    sender.login("{ALICE}", "secret")
    sender.sendmail("{ALICE}", ["{ALICE}", "x@example.invalid"],
                    "From: {ALICE}\\r\\nSubject: two\\r\\n\\r\\nTwo.\\r\\n")
fetcher = poplib.POP3_SSL("127.0.0.1", context=context)
fetcher.user("{ALICE}")
fetcher.pass_("secret")
print(fetcher.stat()[0], sorted(fetcher.retr(n)[1][-1] for n in (1, 2)))
fetcher.dele(1)
fetcher.quit()
END
"""

STOP = """
kill $(cat /run/mailsvc/pid)
for each in $(seq 100); do [ -e /run/mailsvc/pid ] || break; sleep 0.1; done
[ ! -e /run/mailsvc/pid ]
"""


def test_lintian_has_nothing_to_say(package: Path, program: Callable[[str], str]) -> None:
    said = run(program("lintian"), "--allow-root", "--fail-on", "error,warning", package)
    assert not re.search(r"^[EW]:", said, re.MULTILINE)


def test_apparmor_takes_the_profile(program: Callable[[str], str]) -> None:
    run(program("apparmor_parser"), "-Q", "-K", PACKAGING / "apparmor")


def test_the_units_are_those_of_quickstart(package: Path, tmp_path: Path) -> None:
    """So it writes none of its own beside them."""
    run("dpkg-deb", "--extract", package, tmp_path)
    units = tmp_path / "usr/lib/systemd/system"
    written = run(sys.executable, "-c", f"""
from pathlib import Path
from mailsvc import installation
installation.group_of = lambda name: name
texts = installation.unit_texts(Path("/etc/mailsvc.toml"), Path("/var/lib/mailsvc"), "mailsvc",
                                Path("/usr/lib/mailsvc/bin"))
print([name for name, text in texts.items() if (Path({str(units)!r}) / name).read_text() == text])
""")
    assert written == "['mailsvc.service', 'mailsvc.socket']\n"


def test_from_installing_to_purging(package: Path, debian: Debian, tmp_path: Path,
                                    program: Callable[[str], str]) -> None:
    shutil.copy(package, debian.place / "mailsvc.deb")

    said = debian("dpkg --install /mailsvc.deb; mailsvc --version; mailsvc-sendmail --help")
    assert "mailsvc quickstart NAME@DOMAIN" in said and "mailsvc, version" in said
    assert debian("stat -c '%U %G %a %n' /var/lib/mailsvc /var/log/mailsvc /run/mailsvc") == (
        "mailsvc mailsvc 700 /var/lib/mailsvc\nmailsvc adm 750 /var/log/mailsvc\n"
        "mailsvc mailsvc 755 /run/mailsvc\n")
    assert debian("getent passwd mailsvc").endswith(":/var/lib/mailsvc:/usr/sbin/nologin\n")

    # Mail in and out, seen by strace; then a new log file by logrotate.
    trace = tmp_path / "trace"
    said = debian(
        SESSION + """
mailsvc reload
logrotate --debug /etc/logrotate.d/mailsvc
logrotate --force /etc/logrotate.d/mailsvc
python3 -c 'import smtplib; smtplib.SMTP("127.0.0.1").quit()'
""" + STOP,
        program("strace"), "--follow-forks", "--seccomp-bpf", "--decode-fds=path",
        "--trace=file,process,flock", "--output", trace)
    assert "2 [b'One.', b'Two.']" in said and "2 workers serve" in said
    old, new = sorted((debian.place / "var/log/mailsvc").iterdir(), reverse=True)
    assert (new.name, old.name[:4]) == ("log", "log-")
    assert "logged in" in old.read_text() and "workers: stopped" not in old.read_text()
    assert "workers: stopped" in new.read_text()
    assert new.stat().st_mode & 0o777 == 0o640

    # Whatever the service did with files, its AppArmor profile lets it.
    profile = Profile(run(program("apparmor_parser"), "--preprocess", PACKAGING / "apparmor"))
    seen = Seen(trace.read_text(), "/usr/lib/mailsvc/bin/twistd", debian.place)
    assert {"/etc/mailsvc.toml", "/var/lib/mailsvc/accounts.sqlite"} <= {
        path for path, _ in seen.uses}
    assert [use for use in seen.uses if not profile.allows(*use)] == []
    assert not profile.allows("/etc/shadow", "r") and not profile.allows("/usr/bin/env", "w")

    # Over itself: the configuration and the mail are as they were.
    mail = sorted(map(str, (debian.place / "var/lib/mailsvc/mail").rglob("new/*")))
    before = (debian.place / "etc/mailsvc.toml").read_bytes()
    assert len(mail) == 1
    assert "quickstart" not in debian("dpkg --install /mailsvc.deb")
    assert (debian.place / "etc/mailsvc.toml").read_bytes() == before
    assert debian(f"mailsvc account list; mailsvc account show {ALICE}").count(ALICE) >= 2

    debian("dpkg --remove mailsvc")
    assert not debian.holds("/usr/lib/mailsvc") and not debian.holds("/usr/bin/mailsvc")
    assert debian.holds("/etc/logrotate.d/mailsvc") and debian.holds("/etc/mailsvc.toml")

    said = debian("dpkg --purge mailsvc")
    assert "stay in /var/lib/mailsvc" in said
    for gone in ("/etc/mailsvc.toml", "/etc/logrotate.d/mailsvc", "/etc/apparmor.d/mailsvc",
                 "/var/log/mailsvc", "/run/mailsvc"):
        assert not debian.holds(gone), gone
    assert sorted(map(str, (debian.place / "var/lib/mailsvc/mail").rglob("new/*"))) == mail
    assert "One." in Path(mail[0]).read_text() or "Two." in Path(mail[0]).read_text()
    assert debian("stat -c %U /var/lib/mailsvc") == "mailsvc\n", "whose mail it is, stays known"
