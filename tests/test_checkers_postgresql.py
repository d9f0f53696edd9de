"""``--auth postgresql:`` against a PostgreSQL server."""

from __future__ import annotations

import base64
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import argon2
import bcrypt
import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import capturedLogs, formatEvent

from mailsvc.checkers import verifiers
from mailsvc.checkers.arguments import BadArguments
from mailsvc.checkers.verifiers import UnknownVerifier, decoy, matches
from mailsvc.sasl.scram import scram_keys
from tests.checkers import ask, made
from tests.postgres import Postgres

CHEAP = argon2.PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
ARGON2 = CHEAP.hash("s3cret")
BCRYPT = bcrypt.hashpw(b"s3cret", bcrypt.gensalt(4)).decode()
_KEYS = scram_keys(b"s3cret", 4096, b"0123456789abcdef")
SCRAM = "SCRAM-SHA-256$4096:{}${}:{}".format(*(
    base64.b64encode(part).decode() for part in (_KEYS.salt, _KEYS.stored_key, _KEYS.server_key)))
QUERY = "SELECT verifier FROM login WHERE name = %s"
SQL = f"""
CREATE TABLE login (name text, verifier text, account text);
INSERT INTO login VALUES
    ('argon2', '{ARGON2}', 'alice@example.org'), ('bcrypt', '{BCRYPT}', NULL),
    ('scram', '{SCRAM}', NULL), ('none', NULL, NULL), ('odd', 'md5abc', NULL),
    ('it''s %s; --', '{ARGON2}', NULL), ('twice', '{ARGON2}', NULL), ('twice', '{ARGON2}', NULL);
CREATE ROLE person LOGIN PASSWORD 's3cret';
"""


def test_a_server_that_is_not_installed_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.postgres._programs", lambda: pytest.skip("not installed"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(pytest.skip.Exception):
        Postgres(SQL)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with Postgres(SQL) as server:
        yield server


@pytest.fixture
def checker(postgres: Postgres) -> Iterator[Any]:
    made_one = made("postgresql", conninfo=postgres.conninfo, query=QUERY)
    yield made_one
    made_one._threads.stop()


@pytest.mark.parametrize("name", ["argon2", "bcrypt", "scram", "it's %s; --"])
@pytest_twisted.ensureDeferred
async def test_verifiers(name: str, checker: Any) -> None:
    assert await ask(checker, name, "s3cret") == name
    assert await ask(checker, name, "wrong") == "no"
    assert await ask(checker, name, "s3cret") == name, "from memory"
    assert await ask(checker, name, "") == "no"


@pytest_twisted.ensureDeferred
async def test_the_keys_that_postgresql_itself_keeps(postgres: Postgres) -> None:
    checker = made("postgresql", conninfo=postgres.conninfo,
                   query="SELECT rolpassword FROM pg_authid WHERE rolname = %s")
    assert await ask(checker, "person", "s3cret") == "person"
    assert await ask(checker, "person", "wrong") == "no"
    assert await ask(checker, "postgres", "wrong") == "no"
    checker._threads.stop()


@pytest_twisted.ensureDeferred
async def test_no_verifier(checker: Any) -> None:
    with capturedLogs() as events:
        for name in "nobody", "none", "odd", "twice":
            assert await ask(checker, name, "s3cret") == "no", name
    texts = [formatEvent(event) or "" for event in events]
    assert any("the verifier of odd cannot be used: expected $argon2id$" in text for text in texts)
    assert any("more than one row for twice" in text for text in texts)
    assert not any("md5abc" in text or "s3cret" in text for text in texts)


@pytest_twisted.ensureDeferred
async def test_names_are_parameters(checker: Any) -> None:
    for name in ("' OR '1'='1", "argon2'--", "%s", "%", "argon2\n", "ARGON2", "argon2\0", b"\xff",
                 "", "$1", "\\'", "*"):
        assert await ask(checker, name, "s3cret") == "no", name


@pytest_twisted.ensureDeferred
async def test_the_account_may_have_another_name(postgres: Postgres) -> None:
    query = "SELECT verifier, account FROM login WHERE name = %s AND name LIKE '%%g%%'"
    checker = made("postgresql", conninfo=postgres.conninfo, query=query)
    assert await ask(checker, "argon2", "s3cret") == "alice@example.org"
    assert await ask(checker, "argon2", "s3cret") == "alice@example.org", "from memory"
    assert await ask(checker, "scram", "s3cret") == "no"
    checker._threads.stop()


@pytest_twisted.ensureDeferred
async def test_only_reading(postgres: Postgres) -> None:
    checker = made("postgresql", conninfo=postgres.conninfo,
                   query="UPDATE login SET verifier = 'x' WHERE name = %s RETURNING account")
    with capturedLogs() as events:
        assert await ask(checker, "argon2", "s3cret") == "later"
    assert any("read-only transaction" in (formatEvent(event) or "") for event in events)
    checker._threads.stop()


@pytest_twisted.ensureDeferred
async def test_memory(checker: Any, postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hash is spared, the look-up is not: a change counts at once."""
    assert await ask(checker, "argon2", "s3cret") == "argon2"
    hashed = []
    monkeypatch.setattr("mailsvc.checkers.postgresql.matches",
                        lambda *arguments: hashed.append(arguments) or matches(*arguments))
    assert await ask(checker, "argon2", "s3cret") == "argon2"
    assert not hashed
    postgres.execute(f"UPDATE login SET verifier = '{CHEAP.hash('new')}' WHERE name = 'argon2'")
    try:
        assert await ask(checker, "argon2", "s3cret") == "no"
        assert await ask(checker, "argon2", "new") == "argon2"
        assert len(hashed) == 2
    finally:
        postgres.execute(f"UPDATE login SET verifier = '{ARGON2}' WHERE name = 'argon2'")


@pytest_twisted.ensureDeferred
async def test_outage(checker: Any, postgres: Postgres) -> None:
    assert await ask(checker, "argon2", "s3cret") == "argon2"
    postgres.stop()
    try:
        assert await ask(checker, "argon2", "s3cret") == "later"
        assert await ask(checker, "nobody", "s3cret") == "later"
    finally:
        postgres.start()
    assert await ask(checker, "argon2", "s3cret") == "argon2"
    # A restart between two logins costs none of them.
    postgres.stop()
    postgres.start()
    assert await ask(checker, "argon2", "s3cret") == "argon2"


@pytest_twisted.ensureDeferred
async def test_as_many_connections_as_threads(checker: Any, postgres: Postgres) -> None:
    before = postgres.log().count("connection authorized")
    postgres.execute("ALTER SYSTEM SET log_connections = on")
    postgres.execute("SELECT pg_reload_conf()")
    answers = [Deferred.fromCoroutine(ask(checker, "argon2", "s3cret")) for _ in range(30)]
    assert set(await gatherResults(answers)) == {"argon2"}
    made_now = postgres.log().count("application_name=mailsvc")
    assert before == 0
    assert 1 <= made_now <= 4


@pytest_twisted.ensureDeferred
async def test_silence_ends_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        checker = made("postgresql", query=QUERY, timeout=1, threads=1, waiting=1,
                       conninfo=f"host=127.0.0.1 port={silent.getsockname()[1]} user=x")
        begun = time.monotonic()
        answers = [Deferred.fromCoroutine(ask(checker, "argon2", "s3cret")) for _ in range(3)]
        assert [answer.called for answer in answers] == [False, False, True]
        assert set(await gatherResults(answers)) == {"later"}
        assert time.monotonic() - begun < 1.9
        silent.accept()[0].close()
        checker._threads.stop()


@pytest.mark.parametrize(("values", "expected"), [
    ({}, "query is missing: expected a SELECT of one verifier, with one %s"),
    ({"query": "SELECT 1"}, "query=SELECT 1: expected a SELECT of one verifier"),
    ({"query": QUERY + " AND x LIKE '%'"}, "and %% for any other"),
    ({"query": QUERY, "conninfo": "hots=x"}, 'conninfo: expected what libpq takes'),
    ({"file": "/nonexistent.toml"}, "file=/nonexistent.toml: cannot be read (No such file"),
])
def test_bad_arguments(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(BadArguments) as refused:
        made("postgresql", **values)
    assert expected in str(refused.value)


@pytest.mark.parametrize("verifier", [ARGON2, BCRYPT, SCRAM, verifiers._USUAL],
                         ids=["argon2", "bcrypt", "scram", "usual"])
def test_a_decoy_is_as_much_work(verifier: str) -> None:
    other = decoy(verifier)
    assert len(other) == len(verifier) or verifier == verifiers._USUAL
    assert other != verifier
    assert other.split("$")[1:3] == verifier.split("$")[1:3] or verifier == SCRAM
    assert other.startswith("SCRAM-SHA-256$4096:") or verifier != SCRAM
    assert not matches(other, b"s3cret"), "and can be checked"


@pytest.mark.parametrize("verifier", [
    "", "s3cret", "$argon2id$", "$2b$04$short",
    "SCRAM-SHA-256$0:c2FsdA==$" + "A" * 44 + ":" + "A" * 44,
    "SCRAM-SHA-256$9999999999:c2FsdA==$" + "A" * 44 + ":" + "A" * 44,
    "SCRAM-SHA-256$4096:c2FsdA==$" + "!" * 44 + ":" + "A" * 44,
    "$argon2id$v=19$m=1,t=1,p=1$A$A"])
def test_unknown_verifiers(verifier: str) -> None:
    with pytest.raises(UnknownVerifier):
        matches(verifier, b"s3cret")
