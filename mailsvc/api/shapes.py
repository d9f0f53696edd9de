"""What JSON looks like that comes in and goes out: schemas, by which it is checked and described.

They are JSON Schema 2020-12, which OpenAPI 3.1 takes as it is.  So what the description says of a
request is what holds, word for word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from mailsvc.api.problems import Problem
from mailsvc.logins import LABEL_CHARACTERS, PROTOCOLS
from mailsvc.mail import ROLES
from mailsvc.queue.filter import ACTIONS, STATUSES

Schema = dict[str, Any]


def record(required: Mapping[str, Schema] | None = None, /, **optional: Schema) -> Schema:
    """An object with members that have to be there, others that may, and no more."""
    required = required or {}
    return {"type": "object", "properties": {**required, **optional},
            "required": list(required), "additionalProperties": False}


def listed(each: Schema, most: int | None = None, least: int = 0) -> Schema:
    """An array."""
    bounds = {} if most is None else {"minItems": least, "maxItems": most}
    return {"type": "array", **bounds, "items": each}


def or_null(schema: Schema) -> Schema:
    """The same, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def page(each: Schema) -> Schema:
    """A part of a list."""
    return record({
        "items": listed(each),
        "total": {**COUNT, "description": "How many there are in all."},
        "next": {**or_null(STRING), "description": "The path of the next part; null at the end."}})


STRING: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
ANYTHING: Schema = {"type": "object"}
TIME: Schema = {"type": "string", "format": "date-time"}


def choice(*values: str) -> Schema:
    """One of *values*."""
    return {"type": "string", "enum": list(values)}


# ---- what comes in ----

# Lengths stand first: what is too long is not looked at closely.

LINE: Schema = {"type": "string", "maxLength": 998, "pattern": r"^[^\x00-\x1f\x7f]*$",
                "description": "One line without control characters."}
NAME: Schema = {
    "type": "string", "maxLength": 320, "pattern": r"^[^\x00-\x20\x7f@]+@[^\x00-\x20\x7f@]+$",
    "description": "A mailbox, local-part@domain."}
DOMAIN: Schema = {"type": "string", "maxLength": 255, "pattern": r"^[^\x00-\x20\x7f@/]+$",
                  "description": "The name of a domain."}
PASSWORD: Schema = {"type": "string", "minLength": 1, "maxLength": 256}
QUOTA: Schema = {"type": "integer", "minimum": 0, "maximum": (1 << 53) - 1,
                 "description": "0 for no limit."}
ROLE = choice(*ROLES)
LABEL: Schema = {"type": "string", "maxLength": LABEL_CHARACTERS,
                 "pattern": r"^[^\x00-\x1f\x7f]+$", "description": "A word or two."}

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_HOST = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
#: RFC 5321's Mailbox with a Dot-string.
ADDRESS: Schema = {
    "type": "string", "maxLength": 254,
    "pattern": rf"^{_ATOM}(?:\.{_ATOM})*@{_HOST}(?:\.{_HOST})*$",
    "description": "An address, local-part@domain, in ASCII."}

_PATH = r"(?:<>|[A-Za-z0-9._%+=-]*@[A-Za-z0-9.-]*)"
_WORD = (r"-?(?:age[<>]=?[0-9]{1,15}[smhdw]|size[<>]=?[0-9]{1,15}[KMGkmg]?"
         rf"|attempts[<>]=?[0-9]{{1,15}}|(?:to|from|account):{_PATH}"
         rf"|status:(?:{'|'.join(STATUSES)})|(?:reason|id):[!-~]+|[A-Za-z0-9]{{1,40}})")
FILTER: Schema = {
    "type": "string", "maxLength": 1000, "pattern": rf"^(?:{_WORD}(?: {_WORD})*)?$",
    "description": "Which messages: words that all have to hold, as `mailsvc queue` has them, such "
    "as to:@example.org status:deferred age>4h; empty for every message."}
ROUTE: Schema = {
    "type": "string", "maxLength": 260,
    "pattern": rf"^(?:mx|{_HOST}(?:\.{_HOST})*:[1-9][0-9]{{0,3}})$",
    "description": "host:port, or mx for the exchangers of each domain."}
ACTION = choice(*ACTIONS)

# ---- what goes out ----

ACCOUNT = record({
    "name": STRING, "role": ROLE, "administrator": BOOLEAN, "quota_octets": COUNT,
    "quota_messages": COUNT,
    "password": {**BOOLEAN, "description": "Whether it has a main password."},
    "apop": {**BOOLEAN, "description": "Whether that can log in by APOP."},
    "app_passwords": {**COUNT, "description": "How many app passwords it has."}})
APP_PASSWORD = record({
    "label": STRING, "protocols": listed(choice(*PROTOCOLS)), "networks": listed(STRING),
    "expires": or_null(TIME), "made": or_null(TIME), "used": or_null(TIME),
    "used_from": or_null(STRING), "expired": BOOLEAN, "apop": BOOLEAN})
ALIAS = record({"name": STRING, "targets": listed(STRING), "moved": BOOLEAN})
SERVED_DOMAIN = record({
    "name": STRING, "catch_all": or_null(STRING), "separators": or_null(STRING)})
MESSAGE = record({
    "id": {**STRING, "description": "The unique-id, as POP3's UIDL has it."}, "octets": COUNT,
    "from": STRING, "subject": STRING, "date": or_null(TIME)})
DELETED_MESSAGE = record({
    "deleted": {"type": "string", "format": "date"}, "unique_id": STRING, "octets": COUNT,
    "from": STRING, "subject": STRING, "message_id": STRING})
OUTCOME = record({
    "address": STRING, "accepted": BOOLEAN,
    "reply": {**STRING, "description": "What the server said last of it."}})
SENT = record({"recipients": listed(OUTCOME)})
QUEUED = record({
    "id": STRING, "status": choice(*STATUSES), "arrived": TIME, "size": COUNT, "from": STRING,
    "account": STRING, "attempts": COUNT, "next": or_null(TIME), "release": or_null(TIME),
    "deliver_by": or_null(TIME), "priority": {"type": "integer"}, "route": STRING,
    "recipients": listed(record({
        "address": STRING, "original": STRING, "state": STRING, "status": STRING, "reply": STRING,
        "host": STRING, "tried": or_null(TIME)}))})
CHANGED = record({
    "ids": {**listed(STRING), "description": "Of the messages that were changed."},
    "busy": {**listed(STRING), "description": "Of those that are being sent at this moment, and "
             "were not changed."}})
STORY = record({
    "id": STRING, "kind": choice("message", "connection"), "facts": ANYTHING,
    "steps": listed(record({"time": TIME, "elapsed": NUMBER, "phase": STRING, "text": STRING,
                            "message": STRING}))})
BAN = record({"network": STRING, "since": TIME, "until": TIME, "times": COUNT,
              "origin": STRING, "reason": STRING})
SESSION = record(
    {"id": STRING, "protocol": choice("smtp", "submission", "lmtp", "odmr", "pop3"),
     "listener": STRING, "client": STRING, "port": or_null(COUNT), "since": TIME,
     "login": {**STRING, "description": "The account that has logged in; or empty."},
     "tls": STRING, "state": STRING, "messages": COUNT,
     "received": {**or_null(COUNT), "description": "Octets; likewise sent."},
     "sent": or_null(COUNT), "idle": {**or_null(NUMBER), "description": "Seconds."}},
    **{"hello": STRING, "from": or_null(STRING), "recipients": COUNT, "deleted": COUNT})
IP: Schema = {"type": "string", "maxLength": 45,
              "anyOf": [{"format": "ipv4"}, {"format": "ipv6"}]}
ZONE = record({
    "records": listed(record({"name": STRING, "type": STRING, "value": STRING,
                              "meaning": STRING})),
    "policy": or_null(record({"url": STRING, "text": STRING}))})
LIFTED = record({"lifted": {**listed(STRING), "description": "The networks whose bans were."}})
SETTING = record({
    "key": {**STRING, "description": "As in smtp.message_octets."},
    "value": {"description": "What is in effect; of URLs without passwords, and of those of "
              "webhooks without what is behind the host."},
    "where": {**or_null(STRING), "description": "What makes it so: FILE:LINE, or --set for the "
              "command line; null for the default."},
    "default": {"description": "What it would be otherwise; {data} is service.data."},
    "unit": {**STRING, "description": "octets, seconds ... or empty."},
    "meaning": STRING, "expected": {**STRING, "description": "Of what type it has to be."}})
_HOOK: Schema = {**STRING, "description": "The URL, without path and query: they may be secret."}
RECEIVER = record({
    "url": _HOOK, "waiting": {**COUNT, "description": "How many events wait for it."},
    "since": {**or_null(TIME), "description": "When the oldest of them happened."},
    "problem": {**STRING, "description": "Why the last of them that was tried was not taken; or "
                "empty."}})
WAITING = record({
    "id": STRING, "type": STRING, "url": _HOOK, "since": TIME,
    "due": {**TIME, "description": "When it is tried next."}, "attempts": COUNT,
    "problem": {**STRING, "description": "Of the last attempt; or empty."},
    "event": {**ANYTHING, "description": "What is told."}})
TRIED = record({
    "url": _HOOK, "code": or_null({"type": "integer"}), "text": or_null(STRING),
    "problem": {**or_null(STRING), "description": "Why it was not taken; or null."},
    "seconds": NUMBER})
HEALTH = record({"ready": BOOLEAN, "unready": or_null(STRING)})
FIGURES = record({
    "ready": BOOLEAN, "unready": or_null(STRING), "listeners": listed(ANYTHING),
    "history": ANYTHING, "figures": listed(ANYTHING)})
PROBLEM: Schema = {
    "type": "object", "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": STRING, "title": STRING, "status": {"type": "integer"},
        "detail": {**STRING, "description": "Why, and what to do."},
        "pointer": {**STRING, "description": "Which part of the body is meant (RFC 6901)."}}}


# ---- checking ----


def _pattern(_: object, pattern: str, text: object, __: object) -> Iterator[ValidationError]:
    # All of ours are for the whole text.  A "$" of Python's would let a line end pass.
    if isinstance(text, str) and not re.fullmatch(pattern, text):
        yield ValidationError("it does not match")


_Validator: Any = extend(Draft202012Validator, {"pattern": _pattern})


@lru_cache(256)
def _validator(schema: str) -> Any:
    return _Validator(json.loads(schema))


def check(schema: Schema, value: object, where: str) -> None:
    """Refuse *value* unless it is of that shape.

    :param where: what it is, for the one who sent it.
    :raises Problem: the first that is wrong.
    """
    for error in _validator(json.dumps(schema)).iter_errors(value):
        pointer = "".join(f"/{str(step).replace('~', '~0').replace('/', '~1')}"
                          for step in error.absolute_path)
        raise Problem(422, f"{where}{f' {pointer}' if pointer else ''}: {_expected(error)}",
                      pointer=pointer)


def _expected(error: ValidationError) -> str:
    """What was expected.  What came is not repeated: it may be long, or a password."""
    limit: Any = error.validator_value
    schema: Any = error.schema
    instance: Any = error.instance
    match error.validator:
        case "type":
            return f"expected {limit if isinstance(limit, str) else ' or '.join(limit)}"
        case "required":
            # It has one error for each, in this order.
            missing = [name for name in limit if name not in instance]
            return f"{', '.join(missing)} is missing"
        case "additionalProperties":
            known = ", ".join(schema.get("properties", {}))
            return f"there is a member that is not known; known are {known or 'none'}"
        case "enum":
            return f"expected one of {', '.join(map(str, limit))}"
        case "pattern" | "anyOf" if "description" in schema:
            return f"expected: {schema['description']}"
        case "pattern":
            return f"expected what matches {limit}"
        case "minimum" | "maximum" | "minLength" | "maxLength" | "minItems" | "maxItems":
            return f"{error.validator} is {limit}"
    return "it is not as the description says"


def read(data: bytes) -> object:
    """The JSON value that *data* is (RFC 8259), in UTF-8, without what only some would understand.

    :raises Problem: it is none; or it has a member twice, a lone surrogate, NaN, or is nested too
        deep.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_once, parse_constant=_refuse)
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        reason = ("it is nested too deep" if isinstance(error, RecursionError) else
                  "it is not in UTF-8" if isinstance(error, UnicodeError) else str(error))
        raise Problem(400, f"The body is no JSON that is understood here: {reason[:200]}"
                      ) from None
    return value


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a member is there twice")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")
