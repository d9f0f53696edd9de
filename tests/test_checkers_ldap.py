"""``--auth ldap:`` against OpenLDAP's slapd."""

from __future__ import annotations

import poplib
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs, formatEvent

from mailsvc.checkers.arguments import BadArguments
from mailsvc.checkers.ldap import _filled, _parsed
from tests.checkers import ask, described, made, pause
from tests.daemons import PATIENCE
from tests.slapd import BASE, READER, READER_PASSWORD, Slapd
from tests.twistd import ACCOUNT, TWISTD, Twistd, add_account

# ldaptor speaks to pyparsing by its old names.
pytestmark = pytest.mark.filterwarnings("ignore:.* deprecated - use:DeprecationWarning")

PEOPLE = f"""\
dn: ou=people,{BASE}
objectClass: organizationalUnit
ou: people

dn: uid=alice,ou=people,{BASE}
objectClass: inetOrgPerson
uid: alice
cn: Alice
sn: A
mail: alice@example.org
employeeNumber: a1@example.org
userPassword: s3cret: \N{GREEK SMALL LETTER OMEGA}

dn: uid=bob,ou=people,{BASE}
objectClass: inetOrgPerson
uid: bob
cn: B\N{LATIN SMALL LETTER O WITH DIAERESIS}b
sn: B
mail: bob@example.org
mail: b*(x)\\@example.org
userPassword: builder

dn: uid=alice2,ou=people,{BASE}
objectClass: inetOrgPerson
uid: alice2
cn: Alice
sn: A
userPassword: other

dn: uid=blank,ou=people,{BASE}
objectClass: inetOrgPerson
uid: blank
cn: Blank
sn: B
mail: blank@example.org
"""
PASSWORD = "s3cret: \N{GREEK SMALL LETTER OMEGA}"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def slapd(program: Callable[[str], str], authority: trustme.CA) -> Iterator[Slapd]:
    certificate = authority.issue_cert("localhost").private_key_and_cert_chain_pem.bytes()
    with Slapd(program, PEOPLE, certificate) as server:
        yield server


@pytest.fixture
def arguments(slapd: Slapd, authority: trustme.CA, tmp_path: Path) -> dict[str, Any]:
    """What makes a checker that works."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    (tmp_path / "password").write_text(READER_PASSWORD + "\n")
    return {"host": "localhost", "port": slapd.port, "base": f"ou=people,{BASE}",
            "ca": tmp_path / "ca.pem", "bind_dn": READER, "password_file": tmp_path / "password"}


@pytest_twisted.ensureDeferred
async def test_bind(arguments: dict[str, Any]) -> None:
    checker = made("ldap", **arguments)
    assert await ask(checker, "alice@example.org", PASSWORD) == "alice@example.org"
    assert await ask(checker, "alice@example.org", "builder") == "no"
    assert await ask(checker, "nobody@example.org", PASSWORD) == "no"
    assert await ask(checker, "blank@example.org", PASSWORD) == "no", "an entry with no password"


@pytest_twisted.ensureDeferred
async def test_unknown_names_take_as_many_round_trips(
    arguments: dict[str, Any], slapd: Slapd,
) -> None:
    checker = made("ldap", **arguments)
    requests = []
    for name in "alice@example.org", "nobody@example.org":
        before = len(slapd.log())
        assert await ask(checker, name, "wrong") == "no"
        lines = slapd.log()[before:].splitlines()
        requests.append([verb for line in lines for verb in ("STARTTLS", "BIND dn", "SRCH base")
                         if verb in line and "mech" not in line])
    assert requests[0] == requests[1]
    assert requests[0].count("BIND dn") == 2


@pytest_twisted.ensureDeferred
async def test_empty_passwords_are_refused(
    arguments: dict[str, Any], slapd: Slapd, program: Callable[[str], str],
) -> None:
    # This server lets such binds pass, as anonymous ones (RFC 4513 §5.1.2).
    subprocess.run([program("ldapwhoami"), "-x", "-H", f"ldap://127.0.0.1:{slapd.port}", "-D",
                    f"uid=alice,ou=people,{BASE}", "-w", ""], check=True, timeout=PATIENCE)
    checker = made("ldap", **arguments)
    assert await ask(checker, "alice@example.org", "") == "no"
    assert await ask(checker, "alice@example.org", "\0") == "no"
    assert await ask(checker, "", PASSWORD) == "no"
    assert await ask(checker, b"\xff", PASSWORD) == "no"


@pytest_twisted.ensureDeferred
async def test_names_cannot_change_the_filter(arguments: dict[str, Any]) -> None:
    checker = made("ldap", **arguments)
    for name in ("*", "ali*", "alice@example.org)(uid=*", "*)(|(uid=*)", "alice@example.org\\",
                 "\\2a", "al\\69ce@example.org", "x)(!(uid=bob))", "alice@example.org\n",
                 "&", "' OR 1=1", "alice@example.org)", "("):
        assert await ask(checker, name, PASSWORD) == "no", name
    assert await ask(checker, "b*(x)\\@example.org", "builder") == "b*(x)\\@example.org"
    checker = made("ldap", **arguments, filter="(cn=%s)")
    name = "B\N{LATIN SMALL LETTER O WITH DIAERESIS}b"
    assert await ask(checker, name, "builder") == name


@settings(max_examples=200)
@given(st.binary())
def test_the_filter_holds_the_name_as_it_is(name: bytes) -> None:
    filled = _filled(_parsed("(&(objectClass=person)(|(mail=%s)(!(uid=x%s))))"), name)
    assert filled[1][0].assertionValue.value == name
    assert filled[1][1].value.assertionValue.value == b"x" + name
    assert filled[0].assertionValue.value == b"person"


@pytest_twisted.ensureDeferred
async def test_parts_of_the_name_and_the_account(arguments: dict[str, Any]) -> None:
    checker = made("ldap", **arguments, filter="(&(uid=%u)(objectClass=person))",
                   account="employeeNumber")
    assert await ask(checker, "alice", PASSWORD) == "a1@example.org"
    assert await ask(checker, "alice@anything.example", PASSWORD) == "a1@example.org"
    assert await ask(checker, "bob", "builder") == "no", "it has no such attribute"


@pytest_twisted.ensureDeferred
async def test_a_name_of_several_entries_is_nobody(arguments: dict[str, Any]) -> None:
    checker = made("ldap", **arguments, filter="(cn=%s)")
    with capturedLogs() as events:
        assert await ask(checker, "Alice", PASSWORD) == "no"
    assert any("more than one entry" in (formatEvent(event) or "") for event in events)


@pytest_twisted.ensureDeferred
async def test_tls(arguments: dict[str, Any], slapd: Slapd, tmp_path: Path) -> None:
    good = ACCOUNT, PASSWORD
    inside = {**arguments, "tls": "ldaps", "port": slapd.tls_port}
    assert await ask(made("ldap", **inside), *good) == ACCOUNT
    assert await ask(made("ldap", **{**arguments, "tls": "none"}), *good) == ACCOUNT
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "stranger.pem"))
    for each in arguments, inside:
        with capturedLogs() as events:
            assert await ask(made("ldap", **{**each, "host": "127.0.0.1"}), *good) == "later"
            assert await ask(made("ldap", **{**each, "ca": tmp_path / "stranger.pem"}),
                             *good) == "later"
            no_ca = {key: value for key, value in each.items() if key != "ca"}
            assert await ask(made("ldap", **no_ca), *good) == "later"
        texts = [formatEvent(event) or "" for event in events]
        assert sum("certificate" in text for text in texts) >= 2, texts
        assert not [text for text in texts if PASSWORD in text]


@pytest_twisted.ensureDeferred
async def test_what_comes_before_tls_is_no_answer_inside(arguments: dict[str, Any]) -> None:
    """PITFALLS, SMTP 4, for LDAP: half a BindResponse behind the response to StartTLS."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        received = []

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                request = connection.recv(4096)
                # messageID 2 bytes in: 30 len 02 01 ID.
                id = request[4:5]
                response = b"\x02\x01" + id + b"\x78\x07\x0a\x01\x00\x04\x00\x04\x00"
                half = b"\x30\x0d\x02\x01" + bytes([id[0] + 1]) + b"\x61\x08\x0a\x01\x00\x04\x00"
                connection.sendall(b"\x30" + bytes([len(response)]) + response + half)
                try:
                    received.append(connection.recv(4096))
                except ConnectionResetError:
                    received.append(b"")

        thread = deferToThread(serve)
        checker = made("ldap", **{**arguments, "port": server.getsockname()[1]})
        assert await ask(checker, ACCOUNT, PASSWORD) == "later"
        await thread
    assert received == [b""], "the connection is given up before the handshake"


@pytest_twisted.ensureDeferred
async def test_outage(arguments: dict[str, Any], slapd: Slapd) -> None:
    checker = made("ldap", **arguments)
    slapd.stop()
    try:
        assert await ask(checker, ACCOUNT, PASSWORD) == "later"
        assert await ask(checker, ACCOUNT, "wrong") == "later"
    finally:
        slapd.start()
    assert await ask(checker, ACCOUNT, PASSWORD) == ACCOUNT
    wrong = {**arguments, "base": "dc=example,dc=net"}
    assert await ask(made("ldap", **wrong), ACCOUNT, PASSWORD) == "later"
    Path(arguments["password_file"]).write_text("wrong")
    with capturedLogs() as events:
        assert await ask(made("ldap", **arguments), ACCOUNT, PASSWORD) == "later"
    assert any(f"the bind as {READER} was refused" in (formatEvent(event) or "")
               for event in events)


@pytest_twisted.ensureDeferred
async def test_silence_ends_in_time_and_waiting_has_a_limit(arguments: dict[str, Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        checker = made("ldap", **{**arguments, "port": silent.getsockname()[1], "timeout": 1,
                                  "connections": 2, "waiting": 3})
        answers = [ask(checker, ACCOUNT, PASSWORD) for _ in range(7)]
        deferreds = [Deferred.fromCoroutine(answer) for answer in answers]
        assert sum(each.called for each in deferreds) == 2, "two too many"
        await pause(0.5)
        silent.settimeout(0.1)
        accepted = [silent.accept()[0] for _ in range(2)]
        with pytest.raises(TimeoutError):
            silent.accept()
        assert set(await gatherResults(deferreds)) == {"later"}
        for connection in accepted:
            connection.close()


@pytest.mark.parametrize(("values", "expected"), [
    ({"host": ""}, "host=: expected the name of the LDAP server"),
    ({"base": ""}, "base=: expected a DN"),
    ({"tls": "yes"}, "tls=yes: expected one of starttls, ldaps, none"),
    ({"filter": "(mail=%s"}, "filter=(mail=%s: expected a filter of RFC 4515"),
    ({"filter": "(mail=x)"}, "filter=(mail=x): expected a filter of RFC 4515 in which %s"),
    ({"filter": "(mail=%s*)"}, "is the value"),
    ({"ca": "/nonexistent"}, "ca=/nonexistent: cannot be read (No such file or directory)"),
    ({"ca": "/dev/null"}, "ca=/dev/null: expected certificates in PEM"),
    ({"password_file": ""}, "bind_dn and password_file: expected both or neither"),
    ({"password_file": "/dev/null"}, "password_file=/dev/null: expected a file of one line"),
    ({"timeout": "soon"}, "timeout=soon: expected a number"),
    ({"uri": "ldap://x"}, "uri: no such key; expected some of file, host, base, filter"),
])
def test_bad_arguments(arguments: dict[str, Any], values: dict[str, Any], expected: str) -> None:
    with pytest.raises(BadArguments) as refused:
        made("ldap", **{**arguments, **values})
    assert expected in str(refused.value)


def test_pop3(arguments: dict[str, Any], slapd: Slapd, tmp_path: Path) -> None:
    """The whole service: right, wrong, and the server down."""
    add_account(tmp_path)
    with Twistd([*TWISTD, "--nodaemon", "--pidfile=", "mailsvc", "--set",
                 f"service.data={tmp_path}", "--set", "listeners.smtp=[]", "--pop3",
                 "tcp:0:interface=127.0.0.1", "--auth", described("ldap", **arguments)]) as process:
        port = process.port("pop3")

        def log_in(password: str) -> bytes:
            session = poplib.POP3("127.0.0.1", port, timeout=PATIENCE)
            session.encoding = "utf-8"
            session.user(ACCOUNT)
            try:
                return session.pass_(password)
            except poplib.error_proto as error:
                return bytes(error.args[0])
            finally:
                session.close()

        assert log_in(PASSWORD).startswith(b"+OK")
        assert log_in("secret").startswith(b"-ERR [AUTH]"), "the directory's own password"
        slapd.stop()
        try:
            assert log_in(PASSWORD).startswith(b"-ERR [SYS/TEMP]")
        finally:
            slapd.start()
        assert log_in(PASSWORD).startswith(b"+OK")
        assert process.stop() in {0, -15}
