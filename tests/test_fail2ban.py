"""fail2ban reads our log: who failed to log in, and nothing that a name or a host makes up."""

from __future__ import annotations

import configparser
import io
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import Logger, LogPublisher

from mailsvc.brakes import log_failed_login
from mailsvc.log import LogSettings, observer

FAIL2BAN = Path(__file__).parent.parent / "etc" / "fail2ban"
FILTER = FAIL2BAN / "filter.d" / "mailsvc.conf"
#: What somebody would like to see banned.
VICTIM = "203.0.113.9"
FORGED = (f"2026-11-21T04:00:00.000+00:00 warn  mailsvc.pop3: 0abc login failed user=x "
          f"client={VICTIM} protocol=pop3 reason=x")
FORGED_JSON = ('{"time": "2026-11-21T04:00:00.000000Z", "level": "warn", "namespace": '
               f'"mailsvc.pop3", "message": "0abc login failed user=x client={VICTIM} '
               'protocol=pop3 reason=x"}')
NAMES = ["bob@example.org", "bob", "", "bürger@example.org", "two words", "a'b\"c\\d", "%41",
         f"x client={VICTIM} protocol=pop3 reason=x", f" client={VICTIM} ", FORGED, FORGED_JSON,
         f"x\n{FORGED}", f"x\r\n{FORGED}", f"x\u2028{FORGED}", f"x\u00a0client={VICTIM}",
         f"x\x1b[2K\r{FORGED}", f'"\n{FORGED_JSON}', "\x00\x85\ud800\u202e", "x" * 20_000,
         "<ADDR>", "{client}", "٣٤@example.org"]


def log(form: str, write: Callable[[Logger], object]) -> str:
    stream = io.StringIO()
    write(Logger("mailsvc.smtp", observer=LogPublisher(observer(LogSettings(format=form),
                                                                stream))))
    return stream.getvalue()


def failed(user: str, client: str = "192.0.2.7", protocol: str = "submission",
           reason: str = "wrong name or password") -> Callable[[Logger], object]:
    return lambda log: log_failed_login(log, connection="0abc", user=user, client=client,
                                        protocol=protocol, reason=reason)


@pytest.fixture
def found(program: Callable[[str], str], tmp_path: Path) -> Callable[[str], list[str]]:
    """``found(log)``: the addresses that fail2ban sees fail."""
    def read(text: str) -> list[str]:
        path = tmp_path / "log"
        path.write_text(text)
        done = subprocess.run(
            [program("fail2ban-regex"), "--out", "<ip>", str(path), str(FILTER)],
            capture_output=True, text=True, timeout=60, check=False)
        assert not done.stderr and done.returncode in {0, 255}, done.stderr
        return done.stdout.split()

    return read


def test_the_line_is_as_it_is_documented() -> None:
    line = log("text", failed("Bob Miller@example.org"))
    assert re.sub(r"^\S+", "TIME", line) == (
        "TIME warn  mailsvc.smtp: 0abc login failed user=Bob%20Miller@example.org "
        "client=192.0.2.7 protocol=submission reason=wrong name or password\n")


@pytest.mark.parametrize("form", ["text", "json"])
def test_every_failed_login_is_found_and_nothing_else(form: str,
                                                      found: Callable[[str], list[str]]) -> None:
    # PITFALLS, SMTP row 18.
    text = "".join(log(form, failed(name)) for name in NAMES)
    assert text.count("\n") == len(NAMES)
    assert found(text) == ["192.0.2.7"] * len(NAMES)


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize(("client", "protocol"), [
    ("192.0.2.7", "pop3"), ("2001:db8::7", "smtp"), ("::1", "lmtp")])
def test_addresses(form: str, client: str, protocol: str,
                   found: Callable[[str], list[str]]) -> None:
    assert found(log(form, failed("bob", client, protocol))) == [client]


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_unix_socket_cannot_be_banned(form: str, found: Callable[[str], list[str]]) -> None:
    assert found(log(form, failed("bob", ""))) == []


@pytest.mark.parametrize("form", ["text", "json"])
def test_other_lines_make_up_nothing(form: str, found: Callable[[str], list[str]]) -> None:
    def write(log: Logger) -> None:
        for said in (FORGED, FORGED_JSON, f"\n{FORGED}", f"x {FORGED}", f'"}}\n{FORGED_JSON}',
                     FORGED.partition(": ")[2]):
            for level in (log.info, log.warn, log.error, log.debug):
                level("{connection} refused hello={hello}: {reason}", connection="0abc",
                      hello=said, reason=said)
                level("warn said {hello}", hello=said)

    assert found(log(form, write)) == []


@pytest.mark.parametrize("form", ["text", "json"])
def test_from_the_journal(form: str, found: Callable[[str], list[str]]) -> None:
    # So fail2ban's systemd backend writes a line, before it cuts its time out.
    lines = "".join(f"Nov 21 04:22:01 mx env[123]: {log(form, failed(name))}" for name in NAMES)
    assert found(lines) == ["192.0.2.7"] * len(NAMES)


@given(st.text(max_size=300), st.sampled_from(["text", "json"]))
def test_no_name_is_more_than_one_word(name: str, form: str) -> None:
    line = log(form, failed(name))
    assert line.count("\n") == 1
    match = re.search(r"login failed user=(\S*) client=(\S+) protocol=submission reason=wrong name "
                      r"or password", line)
    assert match is not None
    assert match[2] == "192.0.2.7"
    assert "=" not in match[1]


def test_the_jail_names_the_filter() -> None:
    jail: Any = configparser.ConfigParser(interpolation=None)
    jail.read(FAIL2BAN / "jail.d" / "mailsvc.conf")
    assert jail["mailsvc"]["filter"] == FILTER.stem
    assert jail["mailsvc"]["enabled"] == "true"


def test_fail2ban_takes_the_jail(program: Callable[[str], str], tmp_path: Path) -> None:
    """The configuration as installed, read by fail2ban itself."""
    system = Path("/etc/fail2ban")
    if not system.is_dir():
        program("fail2ban-client")
        pytest.fail("fail2ban is installed without its configuration")
    etc = tmp_path / "fail2ban"
    (etc / "filter.d").mkdir(parents=True)
    (etc / "jail.d").mkdir()
    for name in ("fail2ban.conf", "jail.conf", "paths-common.conf", "paths-debian.conf"):
        (etc / name).write_bytes((system / name).read_bytes())
    (etc / "action.d").symlink_to(system / "action.d")
    (etc / "filter.d" / "mailsvc.conf").write_bytes(FILTER.read_bytes())
    (etc / "jail.d" / "mailsvc.conf").write_bytes(
        (FAIL2BAN / "jail.d" / "mailsvc.conf").read_bytes())
    done = subprocess.run(
        [program("fail2ban-client"), "-c", str(etc), "--dp"], capture_output=True, text=True,
        timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "'mailsvc', 'addjournalmatch', '_SYSTEMD_UNIT=mailsvc.service'" in done.stdout
    assert "['add', 'mailsvc', 'systemd']" in done.stdout
