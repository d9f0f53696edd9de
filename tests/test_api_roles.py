"""mailsvc.api.routes: every operation by every role; what is another's is nobody else's."""

from __future__ import annotations

import itertools
import json
import re
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mailsvc.api.routes import ROUTES
from tests.api import ROOT, Api, serving
from tests.console import ALICE, BOB, PASSWORD
from tests.service import Service, submit

CAROL = "carol@example.org"

NOBODY, OWNER, OTHER, ADMINISTRATOR, LOCAL = ROLES = (
    "no login", "the user", "another user", "an administrator", "the Unix socket")

#: What each operation answers to each of them.  The paths are of Bob's account: he is the user,
#: Carol another, Alice administers.  Where something is meant that is not there, who may gets 404.
USER = (401, 200, 200, 200, 200)
BOTH = (401, 200, 403, 200, 200)
ADMINISTRATORS = (401, 403, 403, 200, 200)
OWNERS = (401, 200, 403, 403, 200)


def instead(statuses: tuple[int, ...], status: int) -> tuple[int, ...]:
    """The same, with another answer to those who may."""
    return tuple(status if each == 200 else each for each in statuses)


Asked = tuple[str, str, Any, tuple[int, ...]]

#: Method, path, body and what is answered.  Nothing here changes what others see.
TABLE: list[Asked] = [
    ("GET", "/health", None, USER),
    ("GET", "/accounts", None, ADMINISTRATORS),
    ("POST", "/accounts", {"name": BOB}, instead(ADMINISTRATORS, 409)),
    ("GET", f"/accounts/{BOB}", None, BOTH),
    ("PATCH", f"/accounts/{BOB}", {"role": "both"}, ADMINISTRATORS),
    ("DELETE", "/accounts/nobody@example.org", None, instead(ADMINISTRATORS, 404)),
    ("PUT", f"/accounts/{BOB}/password", {"password": PASSWORD}, instead(BOTH, 204)),
    ("GET", f"/accounts/{BOB}/app-passwords", None, BOTH),
    ("POST", f"/accounts/{BOB}/app-passwords", {"label": " wrong"}, instead(BOTH, 409)),
    ("DELETE", f"/accounts/{BOB}/app-passwords/none", None, instead(BOTH, 404)),
    ("GET", f"/accounts/{BOB}/messages", None, OWNERS),
    ("GET", f"/accounts/{BOB}/messages/{{message}}", None, OWNERS),
    ("DELETE", f"/accounts/{BOB}/messages/none", None, instead(OWNERS, 404)),
    ("GET", f"/accounts/{BOB}/deleted", None, OWNERS),
    ("POST", f"/accounts/{BOB}/deleted/none/restore", None, instead(OWNERS, 404)),
    ("POST", f"/accounts/{BOB}/submissions", {"to": [CAROL]}, OWNERS),
    ("POST", f"/accounts/{BOB}/submissions/raw?to={CAROL}", b"Subject: x\n\nx\n", OWNERS),
    ("GET", f"/accounts/{BOB}/trace", None, OWNERS),
    ("GET", "/domains", None, ADMINISTRATORS),
    ("POST", "/domains", {"name": "example.org"}, instead(ADMINISTRATORS, 409)),
    ("GET", "/domains/example.org", None, ADMINISTRATORS),
    ("GET", "/domains/example.org/records", None, ADMINISTRATORS),
    ("PATCH", "/domains/example.org", {"catch_all": None}, ADMINISTRATORS),
    ("DELETE", "/domains/example.org", None, instead(ADMINISTRATORS, 409)),
    ("GET", "/aliases", None, ADMINISTRATORS),
    ("GET", "/aliases/sales@example.org", None, ADMINISTRATORS),
    ("PUT", "/aliases/sales@example.org", {"targets": [BOB]}, ADMINISTRATORS),
    ("DELETE", "/aliases/none@example.org", None, instead(ADMINISTRATORS, 404)),
    ("GET", "/queue", None, ADMINISTRATORS),
    ("POST", "/queue", {"action": "hold", "filter": "to:@nowhere.example"}, ADMINISTRATORS),
    ("GET", "/queue/none", None, instead(ADMINISTRATORS, 404)),
    ("DELETE", "/queue/none", None, instead(ADMINISTRATORS, 404)),
    ("GET", f"/trace?of={BOB}", None, ADMINISTRATORS),
    ("GET", "/sessions", None, ADMINISTRATORS),
    ("DELETE", "/sessions/none", None, instead(ADMINISTRATORS, 404)),
    ("GET", "/bans", None, ADMINISTRATORS),
    ("PUT", "/bans/192.0.2.7", {"seconds": 600}, ADMINISTRATORS),
    ("DELETE", "/bans/198.51.100.1", None, instead(ADMINISTRATORS, 404)),
    ("DELETE", "/bans", None, ADMINISTRATORS),
    ("GET", "/configuration", None, ADMINISTRATORS),
    ("GET", "/configuration/smtp.recipients", None, ADMINISTRATORS),
    ("GET", "/webhooks", None, ADMINISTRATORS),
    ("GET", "/webhooks/waiting", None, ADMINISTRATORS),
    ("POST", "/webhooks/test", None, instead(ADMINISTRATORS, 409)),
    ("GET", "/figures", None, ADMINISTRATORS),
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("api"), accounts=tuple(
            f"{name}:{PASSWORD}" for name in (ALICE, BOB, CAROL))) as running:
        local = Api(running, local=True)
        local.ask("PUT", "/aliases/sales@example.org", {"targets": [BOB]})
        local.ask("PUT", "/bans/192.0.2.7", {})
        submit(running, b"Subject: for Bob alone\r\n\r\nHello.\r\n", (BOB,))
        yield running


@pytest.fixture(scope="module")
def callers(service: Service) -> dict[str, Api]:
    return {NOBODY: Api(service), OWNER: Api(service, BOB), OTHER: Api(service, CAROL),
            ADMINISTRATOR: Api(service, ALICE), LOCAL: Api(service, local=True)}


@pytest.fixture(scope="module")
def message(callers: dict[str, Api]) -> str:
    """The unique-id of Bob's first message."""
    return str(callers[OWNER].get(f"/accounts/{BOB}/messages")["items"][-1]["id"])


def asked(caller: Api, row: Asked, message: str) -> Any:
    method, path, body, _ = row
    path = path.replace("{message}", urllib.parse.quote(message))
    if isinstance(body, bytes):
        return caller.ask(method, path, body=body, Content_Type="message/rfc822")
    return caller.ask(method, path, body)


@pytest.mark.parametrize(("row", "role"), [
    pytest.param(row, role, id=f"{row[0]} {row[1]} {ROLES[role]}")
    for row, role in itertools.product(TABLE, range(len(ROLES)))])
def test_operations_by_roles(callers: dict[str, Api], row: Asked, role: int, message: str) -> None:
    told = asked(callers[ROLES[role]], row, message)
    assert told.status == row[3][role], told
    if told.status >= 400:
        assert told.problem
        assert "for Bob alone" not in told.content.decode()
    assert ("www-authenticate" in told.headers) == (told.status == 401)


def test_the_table_has_every_operation() -> None:
    def route_of(path: str) -> str:
        steps = path.partition("?")[0].split("/")
        return next(route.path for route in ROUTES if len(route.path.split("/")) == len(steps)
                    and all(one.startswith("{") or one == other
                            for one, other in zip(route.path.split("/"), steps, strict=True)))

    listed = [(method, route_of(path)) for method, path, *_ in TABLE]
    assert sorted(listed) == sorted(
        (method, route.path) for route in ROUTES for method in route.operations)


def test_the_description_has_every_operation_and_is_for_anybody(callers: dict[str, Api]) -> None:
    told = callers[NOBODY].get("/openapi.json")
    assert told["openapi"].startswith("3.1")
    described = {(method.upper(), path) for path, methods in told["paths"].items()
                 for method in methods if method != "parameters"}
    assert described == {("GET", "/openapi.json")} | {
        (method, route.path) for route in ROUTES for method in route.operations}
    names = [each["operationId"] for methods in told["paths"].values()
             for method, each in methods.items() if method != "parameters"]
    assert len(set(names)) == len(names)
    for methods in told["paths"].values():
        for method, each in methods.items():
            assert method == "parameters" or each["summary"].endswith("."), each


@pytest.mark.parametrize("name", ["BOB@EXAMPLE.ORG", "bob%40example.org", "Bob@example.org."])
def test_other_spellings_of_an_account_are_as_much_its_owners(
        callers: dict[str, Api], name: str) -> None:
    for caller, status in (OWNER, 200), (OTHER, 403), (ADMINISTRATOR, 403), (NOBODY, 401):
        assert callers[caller].ask("GET", f"/accounts/{name}/messages").status == status, caller


@pytest.mark.parametrize("name", [
    "me", "bob", "@example.org", "..", "bob@example.org%00", "bob@example.org%2f..%2fcarol",
    "carol@example.org%2f..%2fbob@example.org", "*", "%25", "'; DROP TABLE mailbox; --"])
def test_no_name_leads_to_another_users_mail(callers: dict[str, Api], name: str) -> None:
    path = f"/accounts/{urllib.parse.quote(name, safe='%')}/messages"
    told = callers[OTHER].ask("GET", path)
    assert told.status in (200, 403, 404), told
    assert "for Bob alone" not in told.content.decode()


def test_an_account_that_is_not_there_is_told_as_one_that_is_anothers(
        callers: dict[str, Api]) -> None:
    there, missing = (callers[OTHER].ask("GET", f"/accounts/{name}@example.org")
                      for name in ("bob", "nobody"))
    assert (there.status, there.content) == (missing.status, missing.content)


def test_the_socket_takes_a_login_too(service: Service) -> None:
    bob = Api(service, BOB, local=True)
    assert bob.get("/accounts/me")["name"] == BOB
    assert bob.ask("GET", "/accounts").status == 403
    assert Api(service, BOB, "wrong", local=True).ask("GET", "/accounts").status == 401


def test_a_session_of_the_console_is_no_login(service: Service, callers: dict[str, Api]) -> None:
    from tests.console import Browser  # noqa: PLC0415 - it is only for this

    browser = Browser(service).log_in(ALICE)
    assert browser.ask(f"{ROOT}/accounts/me").status == 401
    assert browser.ask("/accounts").status == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_another_site_cannot_use_a_login_that_a_browser_remembers(
        callers: dict[str, Api], site: str) -> None:
    told = callers[OWNER].ask("GET", "/accounts/me", Sec_Fetch_Site=site)
    assert (told.status, "Another site" in told.problem) == (403, True)


def test_whoever_no_longer_administers_does_not(service: Service, callers: dict[str, Api]) -> None:
    carol, local = callers[OTHER], callers[LOCAL]
    for administers, status in (True, 200), (False, 403):
        changed = local.ask("PATCH", f"/accounts/{CAROL}", {"administrator": administers})
        assert changed.value["administrator"] is administers
        assert carol.ask("GET", "/accounts").status == status


def test_no_answer_is_kept_by_who_passes_it_on(callers: dict[str, Api]) -> None:
    for path in ("/accounts/me", "/openapi.json", "/nowhere"):
        headers = callers[OWNER].ask("GET", path).headers
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
        assert "set-cookie" not in headers
        assert "server" not in headers
    assert json.loads(callers[OWNER].ask("GET", "/nowhere").content)["title"] == "Not Found"


def test_the_documentation_has_every_operation() -> None:
    text = (Path(__file__).parent.parent / "docs" / "api.rst").read_text()
    told = re.findall(r"^   \* - ``([A-Z]+ /\S*)``$", text, re.MULTILINE)
    assert sorted(told) == sorted(
        f"{method} {route.path}" for route in ROUTES for method in route.operations)
