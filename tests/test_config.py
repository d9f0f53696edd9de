"""The configuration: what may be in it, what is said about mistakes, what it looks like."""

from __future__ import annotations

import dataclasses
import json
import re
import socket
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from mailsvc import config
from mailsvc.cli.config import config as command
from mailsvc.config import KEYS, ConfigurationError, Settings, load, reference
from mailsvc.mistakes import MOST, read
from mailsvc.toml import literal, locate
from tests.tls_talk import MX

EXAMPLE = Path(__file__).parent.parent / "etc" / "mailsvc.toml"


def problems(path: Path, text: str, *overrides: str) -> list[str]:
    """What is wrong with *text*, without the name of the file it is in."""
    path = path / "x.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigurationError) as caught:
        load(path, overrides)
    return [problem.removeprefix(f"{path}:") for problem in caught.value.problems]


# ---- the keys -----------------------------------------------------------------------------------


def test_every_key_is_explained() -> None:
    for key in KEYS.values():
        assert re.fullmatch(r"[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*", str(key))
        assert key.sentence.endswith("."), key
        assert key.type
        assert key.expected(key.default) is None, key


def test_every_section_is_there() -> None:
    assert list(dict.fromkeys(key.section for key in KEYS.values())) == [
        "service", "listeners", "tls", "acme", "smtp", "submission", "pop3", "maildir", "accounts",
        "passwords", "auth", "brakes", "proxy", "routing", "queue", "relay", "webhooks",
        "trace", "console", "log"]


def test_the_example_is_the_reference() -> None:
    assert EXAMPLE.read_text() == reference()


def test_the_example_sets_nothing() -> None:
    assert not load(EXAMPLE).given
    assert load(EXAMPLE) == Settings()


def test_the_example_uncommented_is_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "all.toml"
    path.write_text(re.sub(r"(?m)^#(?=\w+ = )", "", reference()))
    loaded = load(path)
    assert loaded == Settings()
    assert set(loaded.given) == set(KEYS)


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().service = None  # type: ignore[assignment,misc]


# ---- effective values ---------------------------------------------------------------------------


def test_data_is_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings.from_mapping({"service": {"data": "here"}})
    assert settings.service.data == str(tmp_path / "here")
    assert settings.service.store == f"maildir:{tmp_path}/here/mail"
    assert settings.accounts.database == str(tmp_path / "here" / "accounts.sqlite")
    assert Settings.from_mapping(
        {"accounts": {"database": "a.db"}}).accounts.database == str(tmp_path / "a.db")


def test_a_host_name_is_folded() -> None:
    assert Settings.from_mapping(
        {"service": {"hostname": "MX.Example.ORG"}}).service.hostname == "mx.example.org"


@pytest.mark.parametrize(("own", "full", "expected"), [
    ("MX.example.org", "unasked.example", "mx.example.org"),
    ("mx", "mx.example.org.", "mx.example.org"),
    ("mx", "localhost", "mx"),
    ("my_host", "my_host", "localhost"),
])
def test_an_empty_host_name_is_this_machine(
    own: str, full: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: own)
    monkeypatch.setattr(socket, "getfqdn", lambda: full)
    config._own_name.cache_clear()
    try:
        assert Settings().service.hostname == expected
    finally:
        config._own_name.cache_clear()


@pytest.mark.parametrize("name", ["a_b", "a..b", "-a", "a-", "a.", "ä.example", "a b", "x" * 64,
                                  ".".join(["abc"] * 64), "[192.0.2.1]", "a\n"])
def test_not_a_host_name(name: str) -> None:
    with pytest.raises(ConfigurationError, match="expected a domain name"):
        Settings.from_mapping({"service": {"hostname": name}})


@pytest.mark.parametrize("endpoint", [
    "tcp:25", "tcp:2525:interface=127.0.0.1", r"tcp6:25:interface=\:\:1:backlog=9",
    "unix:/run/mailsvc/smtp", "haproxy:tcp:25", "systemd:domain=INET6:index=7"])
def test_endpoints(endpoint: str) -> None:
    settings = Settings.from_mapping({"listeners": {"smtp": [endpoint], "pop3": []}})
    assert settings.listeners.smtp == [endpoint]
    assert settings.listeners.pop3 == []


@pytest.mark.parametrize("endpoint", ["", "tcp", "tcp:", "tcp:smtp", "25", "udp:25", "tcp:25:x=1"])
def test_not_endpoints(endpoint: str) -> None:
    with pytest.raises(ConfigurationError, match="expected Twisted endpoint strings such as"):
        Settings.from_mapping({"listeners": {"smtp": [endpoint]}})


# ---- mistakes -----------------------------------------------------------------------------------


def test_all_mistakes_are_listed_with_their_lines(tmp_path: Path) -> None:
    assert problems(tmp_path, """\
hostname = "mx.example.org"
smtp.recipient = 3

[service]
hostnam = "x"
grace_seconds = "long"
store = '''
'''

[pop3]
recipients = [
  1,
]
autologout_seconds = 10
apop = 1
[smpt]
[smtp.limits]
[log]
format = "xml"
"levels" = { a.b = 1 }
""", "smtp.recipients=0", "nothing", "log.loud=true") == [
        '1: hostname = "mx.example.org": no such key; did you mean service.hostname?',
        "2: smtp.recipient = 3: no such key; did you mean smtp.recipients?",
        '5: service.hostnam = "x": no such key; did you mean service.hostname?',
        '6: service.grace_seconds = "long": expected a number (seconds)',
        "7: service.store = \"\": expected scheme:argument, beginning with one of maildir:, "
        "memory:",
        "11: pop3.recipients = [1]: no such key; did you mean smtp.recipients?",
        "14: pop3.autologout_seconds = 10: expected 600 or more (seconds)",
        "15: pop3.apop = 1: expected true or false",
        "16: [smpt]: no such section; did you mean smtp?",
        "17: [smtp.limits]: no such section; `mailsvc config reference` lists them all",
        '19: log.format = "xml": expected one of text, json',
        "20: log.levels = { a = { b = 1 } }: expected a table of strings",
        "--set: smtp.recipients = 0: expected 1 or more",
        "--set: nothing: expected KEY=VALUE, such as smtp.recipients=100",
        "--set: log.loud = true: no such key; `mailsvc config reference` lists them all",
    ]


@pytest.mark.parametrize(("key", "value", "expected"), [
    ("smtp.recipients", "1.0", "expected an integer"),
    ("smtp.recipients", "true", "expected an integer"),
    ("smtp.command_seconds", "inf", "expected a number (seconds)"),
    ("smtp.command_seconds", "nan", "expected a number (seconds)"),
    ("smtp.command_seconds", "false", "expected a number (seconds)"),
    ("smtp.disclose_mailboxes", "0", "expected true or false"),
    ("service.data", "1979-05-27", "expected a string"),
    ("service.data", '""', "expected at least one character"),
    ("listeners.smtp", '"tcp:25"', "expected an array of strings"),
    ("listeners.smtp", "[25]", "expected an array of strings"),
    ("listeners.smtp", "{}", "expected an array of strings"),
    ("log.levels", "{ a = 1 }", "expected a table of strings"),
    ("log.levels", '{ a = "loud" }', "expected a = one of debug, info, warn, error, critical"),
    ("log.level", '"loud\\nx"', "expected one of debug, info, warn, error, critical"),
    ("pop3.allow_cleartext_auth", "true", "expected one of no, loopback, yes"),
])
def test_a_wrong_value(tmp_path: Path, key: str, value: str, expected: str) -> None:
    section, _, name = key.partition(".")
    shown = literal(tomllib.loads(f"x = {value}")["x"])
    assert problems(tmp_path, f"[{section}]\n{name} = {value}\n") == [
        f"2: {key} = {shown}: {expected}"]


def test_a_section_that_is_no_table(tmp_path: Path) -> None:
    assert problems(tmp_path, "smtp = 25\n[[pop3]]\n") == [
        "1: smtp = 25: expected a table, [smtp]",
        "2: pop3 = [{}]: expected a table, [pop3]"]


def test_a_long_value_is_cut(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, f'[log]\nformat = "{"x" * 1000}"\n')
    assert len(problem) < 130
    assert "xxx...: expected one of" in problem


@pytest.mark.parametrize(("text", "said"), [
    ("[service]\nhostname = mx.example.org\n", '2:12: service.hostname = mx.example.org: expected '
     'a string, in quotation marks: hostname = "mx.example.org"'),
    ('[service]\ndata = "/srv/mail\n', '2:18: service.data = "/srv/mail: expected a string, in '
     'quotation marks: data = "/srv/mail"'),
    ("[service]\ndata = “/srv/mail” # here\n", "2:8: service.data = “/srv/mail”: expected a string,"
     ' in quotation marks: data = "/srv/mail"'),
    ("[service]\nworkers 3\n",
     "2:9: Expected '=' after a key in a key/value pair, as in workers = 0"),
    ("workers: 3\n", "1:8: Expected '=' after a key in a key/value pair, as in workers = ..."),
    ("[service]\nworkers = 3\nworkers = 4\n",
     "3:12: service.workers stands on line 2 already; write it once"),
    ("[log]\nlevel = 'info'\n[smtp]\n[log]\nlevel = 'x'\n",
     "4:5: log stands on line 1 already; write it once"),
    ("[smtp]\nstarttls = True\n", "2:12: smtp.starttls = True: expected true or false"),
    ("[pop3]\nallow_cleartext_auth = yes\n", "2:24: pop3.allow_cleartext_auth = yes: expected one "
     'of no, loopback, yes, in quotation marks: allow_cleartext_auth = "yes"'),
    ("smtp.message_octets = 25M", "1:25: smtp.message_octets = 25M: expected an integer (octets)"),
    ("[smtp]\nmessage_octets =\n", "2:17: smtp.message_octets = : expected an integer (octets)"),
    ("[listeners]\nsmtp = tcp:25, tcp:26\n", "2:8: listeners.smtp = tcp:25, tcp:26: expected an "
     'array of strings, in quotation marks: smtp = ["tcp:25", "tcp:26"]'),
    ("[listeners]\nsmtp = [\n  tcp:25,\n]\n",
     "3:3: Invalid value; strings stand in quotation marks"),
    ('[listeners]\nsmtp = [\n  "tcp:25",\n[smtp]\nrecipients = 3\n',
     "4:1: Unclosed array, inline table or text: what begins on line 2 has no end"),
    ("[listeners]\nsmtp = [tcp:25,\n  'tcp:26']\n", "2:9: listeners.smtp = [tcp:25,: expected an "
     'array of strings, in quotation marks: smtp = ["tcp:25"]'),
    ("; no comment\n", "1:1: Invalid statement; a comment begins with #"),
    ("[log]\nformat = '''text\n[smtp]\n",
     "4:1: Expected \"'''\": what begins on line 2 has no end"),
])
def test_what_is_no_toml(tmp_path: Path, text: str, said: str) -> None:
    """The usual slips: what was expected, and nothing about what follows from them."""
    assert problems(tmp_path, text) == [said]


def test_all_that_is_no_toml_is_listed_with_the_rest(tmp_path: Path) -> None:
    assert problems(tmp_path, """\
[service]
hostname = mx.example.org
grace_seconds = "long"
workers 3

[smtp]
starttls = off
recipients = 0
[smpt]
[log]
level = "info
""", "log.loud=true") == [
        '2:12: service.hostname = mx.example.org: expected a string, in quotation marks: '
        'hostname = "mx.example.org"',
        '3: service.grace_seconds = "long": expected a number (seconds)',
        "4:9: Expected '=' after a key in a key/value pair, as in workers = 0",
        "7:12: smtp.starttls = off: expected true or false",
        "8: smtp.recipients = 0: expected 1 or more",
        "9: [smpt]: no such section; did you mean smtp?",
        '11:14: log.level = "info: expected one of debug, info, warn, error, critical, in '
        'quotation marks: level = "info"',
        "--set: log.loud = true: no such key; `mailsvc config reference` lists them all",
    ]


def test_what_is_no_configuration_at_all(tmp_path: Path) -> None:
    said = problems(tmp_path, "To whom it may concern\n" * 500)
    assert len(said) == MOST
    assert said[0].startswith("1:4: Expected '='")


@given(st.lists(st.sampled_from([
    "[smtp]", "[log]", "[[x]]", "recipients = 3", "recipients 3", "level = info", "level = 'info",
    'text = """', "list = [", "]", "a.b = { c = 1", "}", "# a comment", "", "\t", "x = [[1], 2",
    '"quoted" = yes', "= 3", "[", "]]", ",", "é = 1", "y = 'a\\'", "'''", "z = {}", "z.y.x = 1",
    "\x00", "x = 1\r"]), max_size=12))
def test_whatever_is_misread_is_read_to_its_end(lines: list[str]) -> None:
    text = "\n".join(lines)
    content, where, mistakes = read(text)
    try:
        expected = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        assert mistakes, error
        assert all(1 <= mistake.line <= len(lines) + 1 for mistake in mistakes)
    else:
        assert (content, where, mistakes) == (expected, locate(text), [])


@pytest.mark.parametrize(("text", "place"), [
    ("[smtp]\nrecipients 3\n", "2:12"),
    ("[smtp]\nrecipients = 1\nrecipients = 2\n", "3:15"),
    ("a = [1,\n  2", "2:4"),
    ("a = [1,\n", "2:1"),
])
def test_a_syntax_error(tmp_path: Path, text: str, place: str) -> None:
    (problem,) = problems(tmp_path, text)
    assert problem.startswith(f"{place}: ")
    assert "(at line" not in problem
    assert len(problem) > len(place) + 10


def test_not_utf_8(tmp_path: Path) -> None:
    assert problems(tmp_path, "[smtp]\n# \udcff\n") == [
        "2: not UTF-8, which TOML has to be; save it in that encoding"]


def test_nested_too_deep(tmp_path: Path) -> None:
    assert problems(tmp_path, "a = " + "[" * 100_000) == [
        " arrays or tables are nested too deep; no key needs it, see `mailsvc config reference`"]


def test_a_byte_order_mark_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xef\xbb\xbf[smtp]\r\nrecipients = 7\r\n")
    assert load(path).smtp.recipients == 7


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path / "none.toml")
    (problem,) = caught.value.problems
    assert problem.startswith(f"{tmp_path}/none.toml: cannot be read: No such file or directory;")


def test_the_default_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "DEFAULT_PATH", str(tmp_path / "mailsvc.toml"))
    assert load() == Settings()
    (tmp_path / "mailsvc.toml").write_text("smtp.recipients = 8")
    assert load().smtp.recipients == 8
    assert load(overrides=["smtp.recipients=9"]).smtp.recipients == 9
    (tmp_path / "mailsvc.toml").unlink()
    (tmp_path / "mailsvc.toml").symlink_to(tmp_path / "gone")
    with pytest.raises(ConfigurationError):
        load()


# ---- overrides ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("override", "value"), [
    ("smtp.recipients=7", 7),
    ("smtp.recipients = 0x10", 16),
    ("'smtp'.\"recipients\"=7", 7),
    ("smtp.disclose_mailboxes=true", True),
    ("smtp.command_seconds=1.5", 1.5),
    ("smtp.command_seconds=2", 2),
    ("smtp.exempt_networks=[]", []),
    ("listeners.smtp=['tcp:25']", ["tcp:25"]),
    ("log.level=debug", "debug"),
    ('log.level="debug"', "debug"),
    ("service.hostname=1.2", "1.2"),
    ("service.hostname=true", "true"),
    ("routing.separators=", ""),
    ("routing.separators=+=", "+="),
    ("log.levels={}", {}),
    ("log.levels.a.b=warn",
     {"twisted": "warn", "log_legacy": "warn", "a.b": "warn"}),
    ('log.levels."twisted"=info', {"twisted": "info", "log_legacy": "warn"}),
])
def test_an_override(override: str, value: object) -> None:
    settings = Settings.from_mapping({}, [override])
    (given_key,) = settings.given
    section, _, name = given_key.partition(".")
    found = getattr(getattr(settings, section), name)
    assert found == value
    assert type(found) is type(value)


def test_overrides_replace_the_file_and_each_other(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text('smtp.recipients = 1\nlog.levels = { a = "info" }\n')
    settings = load(path, ["smtp.recipients=2", "smtp.recipients=3", "log.levels.b=warn"])
    assert settings.smtp.recipients == 3
    assert settings.log.levels == {"a": "info", "b": "warn"}


plain = st.text(st.characters(codec="utf-8"))


@given(st.one_of(plain, st.tuples(st.sampled_from(sorted(KEYS)), plain).map("=".join)))
def test_any_override_is_taken_or_refused(text: str) -> None:
    try:
        settings = Settings.from_mapping({}, [text])
    except ConfigurationError as error:
        (problem,) = error.problems
        assert problem.startswith("--set: ")
    else:
        assert len(settings.given) == 1


@given(st.lists(st.sampled_from([key for key in KEYS.values() if key.kind in {int, float}]),
                unique=True), st.data())
def test_numbers_come_through(keys: list[config.Key], data: st.DataObject) -> None:
    values = {str(key): data.draw(st.integers(1, 10**9)) for key in keys}
    fitting = {name: value for name, value in values.items() if KEYS[name].expected(value) is None}
    mapping: dict[str, dict[str, Any]] = {}
    for name, value in fitting.items():
        section, _, key = name.partition(".")
        mapping.setdefault(section, {})[key] = value
    by_file = Settings.from_mapping(mapping)
    by_override = Settings.from_mapping({}, [f"{name}={value}" for name, value in fitting.items()])
    assert by_file == by_override
    assert {str(key): value for key, value in by_file.entries() if str(key) in fitting} == fitting


# ---- mailsvc config -----------------------------------------------------------------------------


def run(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(command, [str(argument) for argument in arguments])
    return done.exit_code, done.stdout, done.stderr


def test_check(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text("smtp.recipients = 9\n")
    bad.write_text("smtp.recipients = 0\nx = 1\n")
    note = "Note: there is no directory /var/lib/mailsvc (service.data) here; make it before "
    status, out, err = run("check", good)
    assert (status, out) == (0, f"{good}: ok\n")
    assert err.startswith(note)
    status, out, err = run("check", bad)
    assert (status, out) == (1, "")
    assert f"{bad}:1: smtp.recipients = 0: expected 1 or more\n{bad}:2: x = 1: " in err
    assert run("check", "--config", good)[:2] == (0, f"{good}: ok\n")
    assert run("check", "--dir", tmp_path) == (0, f"--dir {tmp_path}: ok\n", "")
    assert run("check", "--config", bad)[0] == 1
    assert run("check", tmp_path / "none")[0] == 1


def test_check_looks_at_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, chain = tmp_path / "x.toml", tmp_path / "chain.pem"
    chain.write_bytes(MX.combined)
    path.write_text(f"""\
[service]
data = "{tmp_path}"
[tls]
certificates = ["{chain}", "/nonexistent/a.pem:/nonexistent/a.key"]
client_ca = "{tmp_path}/ca.pem"
client_crl = "{chain}"
[relay]
authorities = "{path}"
""")
    status, out, err = run("check", path)
    assert (status, out) == (1, "")
    first, *others = err.splitlines()
    assert first == (f"Error: {path}:4: tls.certificates: /nonexistent/a.pem: no such file; put it "
                     "there, or name another place")
    assert [line.removeprefix(f"{path}:").split(":")[:2] for line in others] == [
        ["5", " tls.client_ca"], ["6", " tls.client_crl"], ["8", " relay.authorities"]]
    path.write_text(f"service.data = '{tmp_path}'\ntls.certificates = ['{chain}']\n")
    assert run("check", path) == (0, f"{path}: ok\n", "")

    def forbidden(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("mailsvc.certificates.open", forbidden, raising=False)
    status, out, err = run("check", path)
    assert (status, out) == (0, f"{path}: ok\n")
    assert err.startswith(f"Note: tls.certificates: {chain}: permission denied for user ")


def test_show(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(f"[service]\ndata = {literal(str(tmp_path))}\nhostname = 'mx.example'\n")
    status, out, _ = run("show", path)
    assert status == 0
    lines = out.splitlines()
    assert lines[:3] == ["[service]", 'hostname = "mx.example"', f"data = {literal(str(tmp_path))}"]
    assert f'database = "{tmp_path}/accounts.sqlite"  # default' in lines
    assert "recipients = 1000  # default" in lines
    shown = tmp_path / "shown.toml"
    shown.write_text(out)
    assert load(shown) == load(path)


def test_show_as_json(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text("smtp.recipients = 5\n")
    status, out, _ = run("show", "--json", path)
    assert status == 0
    sections = json.loads(out)
    assert {f"{section}.{key}" for section, keys in sections.items() for key in keys} == set(KEYS)
    assert sections["smtp"]["recipients"] == {
        "value": 5, "given": True, "where": f"{path}:1", "default": 1000, "unit": ""}
    assert sections["accounts"]["database"] == {
        "value": "/var/lib/mailsvc/accounts.sqlite", "given": False, "where": None,
        "default": "{data}/accounts.sqlite", "unit": ""}


def test_why(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text("[smtp]\n# many\nmessage_octets = 5_000\n")
    status, out, _ = run("why", "smtp.message_octets", path)
    lines = out.splitlines()
    assert (status, lines[0]) == (0, "smtp.message_octets = 5000  # octets")
    assert lines[1].startswith(f"  from {path}:3; the default is ")
    assert " ".join(line.strip() for line in lines[2:]) == KEYS["smtp.message_octets"].sentence
    status, out, _ = run("why", "service.workers", path)
    assert (status, out.splitlines()[1]) == (0, f"  the default; {path} does not set it")
    assert run("why", "smtp.mesage_octets", path)[::2] == (
        1, "Error: smtp.mesage_octets: no such key; did you mean smtp.message_octets?\n")
    path.write_text("x = 1\n")
    assert run("why", "service.workers", path)[0] == 1


def test_why_as_json(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text("smtp.recipients = 5\n")
    assert json.loads(run("why", "--json", "smtp.recipients", path)[1]) == {
        "key": "smtp.recipients", "value": 5, "where": f"{path}:1", "default": 1000, "unit": "",
        "meaning": KEYS["smtp.recipients"].sentence, "expected": "an integer"}


def test_reference_is_printed() -> None:
    assert run("reference") == (0, reference(), "")
