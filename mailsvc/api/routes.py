"""What is where: each path, what may be done with it by which method, by whom, with what.

Whoever adds an operation adds it here, and to the table of tests/test_api_roles.py; the description
is made from this.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from mailsvc.api import (
    accounts,
    configuration,
    messages,
    names,
    operating,
    sessions,
    shapes,
    webhooks,
)
from mailsvc.api.call import Answer, Call, Caller
from mailsvc.api.shapes import Schema
from mailsvc.logins import PROTOCOLS
from mailsvc.paths import match

Handler = Callable[[Call], Awaitable[Answer]]

#: Largest body, and the largest with attachments in it, octets.  To read JSON holds the
#: interpreter's lock: what is larger is sent as it is, and not as JSON.
SMALL, MEDIUM = 65_536, 1_048_576


class Who(StrEnum):
    """Whom an operation is for; in words.  The machine's own administrator may everything."""

    USER = "whoever is logged in"
    OWNER = "the account itself"
    OWNER_OR_ADMINISTRATOR = "the account itself, and administrators"
    ADMINISTRATOR = "administrators"

    def admits(self, caller: Caller, words: Mapping[str, str]) -> bool:
        """Whether *caller* is meant.

        :param words: of the path; its account is what is owned.
        """
        owns = caller.is_account(words.get("account", ""))
        return caller.local or {
            Who.USER: True, Who.OWNER: owns, Who.ADMINISTRATOR: caller.administrator,
            Who.OWNER_OR_ADMINISTRATOR: owns or caller.administrator}[self]


@dataclass(frozen=True, slots=True)
class Operation:
    """What one method does; the text that tells so is its handler's.

    :ivar takes: the shape of its body, in JSON; or the media type of one that is none.
    :ivar gives: what is answered, by status: a shape, a media type, or nothing.
    :ivar query: what may stand behind "?"; what has no default must.
    :ivar octets: how large its body may be; 0 for console.message_octets.
    :ivar key: where in the answer stands what the name in the paths below is (a JSON pointer).
    """

    handle: Handler
    who: Who
    gives: Mapping[int, Schema | str | None]
    takes: Schema | str | None = None
    query: Mapping[str, Schema] = field(default_factory=dict)
    octets: int = SMALL
    key: str = ""

    @property
    def name(self) -> str:
        """It, among all."""
        handler: Any = self.handle
        return f"{handler.__module__.rpartition('.')[2]}.{handler.__name__}"

    @property
    def summary(self) -> str:
        """What it does, in a sentence or two."""
        return " ".join((self.handle.__doc__ or "").split())


@dataclass(frozen=True, slots=True)
class Route:
    """One path, below :data:`mailsvc.api.call.ROOT`."""

    path: str
    operations: Mapping[str, Operation]

    @property
    def words(self) -> list[str]:
        """The names in its path."""
        return re.findall(r"\{(\w+)\}", self.path)

    @property
    def allowed(self) -> str:
        """As in the field Allow."""
        return ", ".join(method for name in self.operations for method in (
            ("GET", "HEAD") if name == "GET" else (name,)))


_PART: Mapping[str, Schema] = {
    "offset": {"type": "integer", "minimum": 0, "maximum": 1_000_000_000, "default": 0,
               "description": "How many of the list are left out at its beginning."},
    "limit": {"type": "integer", "minimum": 1, "maximum": 200, "default": 50,
              "description": "How many are told of at most."}}
_SINCE: Mapping[str, Schema] = {
    "seconds": {"type": "integer", "minimum": 0, "maximum": 1_000_000_000, "default": 0,
                "description": "Only what happened in the last so many seconds; 0 for all that is "
                "known."},
    "limit": {**_PART["limit"], "maximum": 100, "default": 10}}
_OF: Schema = {
    **shapes.LINE, "maxLength": 320, "description": "An id, of a message or a connection; a "
    "Message-ID in angle brackets; an address, of sender or recipient; or a client's IP address."}
_STORIES = shapes.record({"items": shapes.listed(shapes.STORY)})
_QUOTAS = {"quota_octets": shapes.QUOTA, "quota_messages": shapes.QUOTA}
#: Fewer of them in a path, which is short.
_RECIPIENTS, _FEW = (shapes.listed(shapes.ADDRESS, most, 1) for most in (100, 20))

_USER, _OWNER, _BOTH, _ADMINISTRATOR = (
    Who.USER, Who.OWNER, Who.OWNER_OR_ADMINISTRATOR, Who.ADMINISTRATOR)

ROUTES = (
    Route("/health", {"GET": Operation(operating.health, _USER, {200: shapes.HEALTH})}),
    Route("/accounts", {
        "GET": Operation(
            accounts.list_all, _ADMINISTRATOR, {200: shapes.page(shapes.ACCOUNT)},
            query={"q": {**shapes.LINE, "default": "",
                         "description": "What has to stand in the name."}, **_PART}),
        "POST": Operation(
            accounts.add, _ADMINISTRATOR, {201: shapes.ACCOUNT},
            shapes.record({"name": shapes.NAME}, password=shapes.PASSWORD, role=shapes.ROLE,
                          administrator=shapes.BOOLEAN, **_QUOTAS), key="/name")}),
    Route("/accounts/{account}", {
        "GET": Operation(accounts.show, _BOTH, {200: shapes.ACCOUNT}),
        "PATCH": Operation(
            accounts.change, _ADMINISTRATOR, {200: shapes.ACCOUNT},
            shapes.record(role=shapes.ROLE, administrator=shapes.BOOLEAN, **_QUOTAS)),
        "DELETE": Operation(accounts.remove, _ADMINISTRATOR, {204: None})}),
    Route("/accounts/{account}/password", {
        "PUT": Operation(accounts.set_password, _BOTH, {204: None},
                         shapes.record({"password": shapes.PASSWORD}))}),
    Route("/accounts/{account}/app-passwords", {
        "GET": Operation(accounts.list_app_passwords, _BOTH,
                         {200: shapes.page(shapes.APP_PASSWORD)}, query=_PART),
        "POST": Operation(
            accounts.add_app_password, _BOTH,
            {201: shapes.record({**shapes.APP_PASSWORD["properties"], "secret": {
                **shapes.STRING, "description": "The password, shown this once."}})},
            shapes.record(
                {"label": shapes.LABEL},
                protocols={**shapes.listed(shapes.choice(*PROTOCOLS), len(PROTOCOLS)),
                           "description": "What it is for; empty for everything."},
                networks={**shapes.listed(
                    {**shapes.LINE, "maxLength": 64}, 20),
                    "description": "Where it may be used from; empty for everywhere."},
                expires_days={"type": "integer", "minimum": 1, "maximum": 36_500,
                              "description": "For how many days it is good."}),
            key="/label")}),
    Route("/accounts/{account}/app-passwords/{label}", {
        "DELETE": Operation(accounts.remove_app_password, _BOTH, {204: None})}),
    Route("/accounts/{account}/messages", {
        "GET": Operation(messages.list_all, _OWNER, {200: shapes.page(shapes.MESSAGE)},
                         query=_PART, key="/items/0/id")}),
    Route("/accounts/{account}/messages/{message}", {
        "GET": Operation(messages.read, _OWNER, {200: "message/rfc822", 304: None}),
        "DELETE": Operation(messages.delete, _OWNER, {204: None})}),
    Route("/accounts/{account}/deleted", {
        "GET": Operation(messages.list_deleted, _OWNER,
                         {200: shapes.page(shapes.DELETED_MESSAGE)}, query=_PART,
                         key="/items/0/unique_id")}),
    Route("/accounts/{account}/deleted/{message}/restore", {
        "POST": Operation(messages.undelete, _OWNER, {204: None})}),
    Route("/accounts/{account}/submissions", {
        "POST": Operation(
            messages.send, _OWNER, {200: shapes.SENT},
            shapes.record(
                {"to": _RECIPIENTS}, **{"from": shapes.ADDRESS}, subject=shapes.LINE,
                text={"type": "string", "pattern": r"^[^\x00]*$"},
                attachments=shapes.listed(shapes.record({
                    "name": {**shapes.LABEL, "maxLength": 255},
                    "content": {"type": "string", "format": "byte",
                                "description": "Base64 (RFC 4648 §4)."}}), 20)),
            octets=MEDIUM)}),
    Route("/accounts/{account}/submissions/raw", {
        "POST": Operation(
            messages.send_raw, _OWNER, {200: shapes.SENT}, "message/rfc822",
            {"to": _FEW,
             "from": {"anyOf": [shapes.ADDRESS, {"const": ""}], "default": "",
                      "description": "Without, the account."}}, octets=0)}),
    Route("/accounts/{account}/trace", {
        "GET": Operation(
            operating.trace_own, _OWNER, {200: _STORIES},
            query={"of": {**_OF, "default": "", "description":
                          f"{_OF['description']}  Without, the account."}, **_SINCE})}),
    Route("/domains", {
        "GET": Operation(names.list_domains, _ADMINISTRATOR,
                         {200: shapes.page(shapes.SERVED_DOMAIN)}, query=_PART),
        "POST": Operation(
            names.add_domain, _ADMINISTRATOR, {201: shapes.SERVED_DOMAIN},
            shapes.record({"name": shapes.DOMAIN}, separators={
                **shapes.LINE, "maxLength": 20, "description": "Characters that each begin a "
                "subaddress; without, those of routing.separators."}), key="/name")}),
    Route("/domains/{domain}", {
        "GET": Operation(names.show_domain, _ADMINISTRATOR, {200: shapes.SERVED_DOMAIN}),
        "PATCH": Operation(
            names.change_domain, _ADMINISTRATOR, {200: shapes.SERVED_DOMAIN},
            shapes.record({"catch_all": shapes.or_null(shapes.NAME)})),
        "DELETE": Operation(names.remove_domain, _ADMINISTRATOR, {204: None})}),
    Route("/domains/{domain}/records", {
        "GET": Operation(
            names.list_records, _ADMINISTRATOR, {200: shapes.ZONE},
            query={"address": {**shapes.listed(shapes.IP, 8), "default": [], "description":
                               "Of this host, as others see it; without, what is told from here."
                               }})}),
    Route("/aliases", {
        "GET": Operation(names.list_aliases, _ADMINISTRATOR, {200: shapes.page(shapes.ALIAS)},
                         query=_PART, key="/items/0/name")}),
    Route("/aliases/{alias}", {
        "GET": Operation(names.show_alias, _ADMINISTRATOR, {200: shapes.ALIAS}),
        "PUT": Operation(
            names.put_alias, _ADMINISTRATOR, {200: shapes.ALIAS, 201: shapes.ALIAS},
            shapes.record({"targets": shapes.listed(shapes.NAME, 1000, 1)}, moved={
                **shapes.BOOLEAN, "description": "Deliver nothing; tell senders the one target."}),
            octets=MEDIUM),
        "DELETE": Operation(names.remove_alias, _ADMINISTRATOR, {204: None})}),
    Route("/queue", {
        "GET": Operation(operating.list_queue, _ADMINISTRATOR,
                         {200: shapes.page(shapes.QUEUED)},
                         query={"filter": {**shapes.FILTER, "default": ""}, **_PART},
                         key="/items/0/id"),
        "POST": Operation(
            operating.act, _ADMINISTRATOR, {200: shapes.CHANGED},
            shapes.record({"action": shapes.ACTION, "filter": shapes.FILTER},
                          route=shapes.ROUTE))}),
    Route("/queue/{id}", {
        "GET": Operation(operating.show_queued, _ADMINISTRATOR, {200: shapes.QUEUED}),
        "DELETE": Operation(operating.drop_queued, _ADMINISTRATOR, {200: shapes.CHANGED})}),
    Route("/trace", {
        "GET": Operation(operating.trace, _ADMINISTRATOR, {200: _STORIES},
                         query={"of": {**_OF, "minLength": 1}, **_SINCE})}),
    Route("/sessions", {
        "GET": Operation(
            sessions.list_all, _ADMINISTRATOR, {200: shapes.page(shapes.SESSION)},
            query={"q": {**shapes.LINE, "default": "", "description": "What has to stand in id, "
                         "protocol, client, login, state or listener."}, **_PART},
            key="/items/0/id")}),
    Route("/sessions/{session}", {
        "DELETE": Operation(
            sessions.end, _ADMINISTRATOR, {204: None},
            query={"when": {**shapes.choice("then", "now"), "default": "then", "description":
                            "After the transaction that is under way, or now."}})}),
    Route("/bans", {
        "GET": Operation(operating.list_bans, _ADMINISTRATOR, {200: shapes.page(shapes.BAN)},
                         query=_PART, key="/items/0/network"),
        "DELETE": Operation(operating.lift_bans, _ADMINISTRATOR, {200: shapes.LIFTED})}),
    Route("/bans/{network}", {
        "PUT": Operation(
            operating.put_ban, _ADMINISTRATOR, {200: shapes.BAN, 201: shapes.BAN},
            shapes.record(
                seconds={"type": "integer", "minimum": 1, "maximum": 3_155_760_000,
                         "description": "How long; without, an hour."},
                reason={**shapes.LINE, "description": "One line for who reads the list: why."})),
        "DELETE": Operation(operating.lift_ban, _ADMINISTRATOR, {200: shapes.LIFTED})}),
    Route("/configuration", {
        "GET": Operation(
            configuration.list_all, _ADMINISTRATOR, {200: shapes.page(shapes.SETTING)},
            query={
                "q": {**shapes.LINE, "default": "",
                      "description": "What has to stand in the name, the value or the meaning."},
                "which": {**shapes.choice("all", "given"), "default": "all", "description":
                          "All keys, or those that are not left to their defaults."}, **_PART},
            key="/items/0/key")}),
    Route("/configuration/{key}", {
        "GET": Operation(configuration.show, _ADMINISTRATOR, {200: shapes.SETTING})}),
    Route("/webhooks", {
        "GET": Operation(webhooks.list_receivers, _ADMINISTRATOR,
                         {200: shapes.page(shapes.RECEIVER)}, query=_PART)}),
    Route("/webhooks/waiting", {
        "GET": Operation(webhooks.list_waiting, _ADMINISTRATOR,
                         {200: shapes.page(shapes.WAITING)}, query=_PART)}),
    Route("/webhooks/test", {
        "POST": Operation(webhooks.test, _ADMINISTRATOR,
                          {200: shapes.record({"items": shapes.listed(shapes.TRIED)})})}),
    Route("/figures", {
        "GET": Operation(operating.figures, _ADMINISTRATOR, {200: shapes.FIGURES})}),
)


def find(path: str) -> tuple[Route, dict[str, str]] | None:
    """The route of *path*, as it came in a request, without what is before it; and what its names
    stand for."""
    for route in ROUTES:
        words = match(route.path, path)
        if words is not None:
            return route, words
    return None
