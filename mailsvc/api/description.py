"""The API described (OpenAPI 3.1), from what its routes really take and give."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from mailsvc import __version__
from mailsvc.api import shapes
from mailsvc.api.call import ROOT
from mailsvc.api.problems import MEDIA_TYPE
from mailsvc.api.routes import ROUTES, Operation, Route
from mailsvc.api.shapes import Schema

Plain = dict[str, Any]

_INTRODUCTION = (
    "What the console and the commands do, for programs.  Log in by HTTP Basic, with the name of "
    "an account and its password, or an app password of it that is not held to a protocol; or by a "
    "bearer token, where the service takes those.  On the service's own Unix socket root, and the "
    "user who runs the service, need not log in.  What cannot be done is told as RFC 9457 has it.")

_WORDS = {
    "account": "The name of an account, local-part@domain; or me, for one's own.",
    "label": "The label of the app password.", "message": "The unique-id of the message.",
    "domain": "The name of the domain.", "alias": "The name of the alias, local-part@domain.",
    "id": "The id of the message.", "key": "The dotted name of the key.",
    "session": "The id of the connection.",
    "network": "The network, as 192.0.2.0/24 (its / as %2F), or a single address."}
_EXAMPLES = {"key": "smtp.message_octets", "network": "192.0.2.7"}


def description() -> Plain:
    """The whole of it."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "mailsvc", "version": __version__, "description": _INTRODUCTION,
                 "license": {"name": "MIT", "identifier": "MIT"}},
        "servers": [{"url": ROOT}],
        "security": [{"basic": []}, {"bearer": []}],
        "paths": {
            "/openapi.json": {"get": _own()},
            **{route.path: {
                **({"parameters": _words(route)} if "{" in route.path else {}),
                **{method.lower(): _operation(route, operation)
                   for method, operation in route.operations.items()}} for route in ROUTES}},
        "components": {
            "schemas": {"Problem": shapes.PROBLEM},
            "securitySchemes": {"basic": {"type": "http", "scheme": "basic"},
                                "bearer": {"type": "http", "scheme": "bearer"}},
            "responses": {str(status): _problem(status) for status in (
                400, 401, 403, 404, 409, 413, 415, 422, 503)}}}


def _own() -> Plain:
    return {"operationId": "describe", "summary": "Tell what can be done, and how.",
            "security": [], "responses": {"200": _given(200, shapes.ANYTHING)}}


def _words(route: Route) -> list[Plain]:
    return [{"name": word, "in": "path", "required": True, "description": _WORDS[word],
             "schema": {"type": "string", "minLength": 1},
             **({"example": _EXAMPLES[word]} if word in _EXAMPLES else {})}
            for word in route.words]


def _operation(route: Route, operation: Operation) -> Plain:
    found: Plain = {
        "operationId": operation.name,
        "summary": operation.summary, "description": f"For {operation.who.value}.",
        "responses": {
            **{str(status): {**_given(status, given), **_links(route, operation)}
               for status, given in operation.gives.items()},
            **{str(status): {"$ref": f"#/components/responses/{status}"}
               for status in _refusals(route, operation)}}}
    if operation.query:
        found["parameters"] = [_parameter(name, schema)
                               for name, schema in operation.query.items()]
    if operation.takes is not None:
        found["requestBody"] = {"required": True, "content": _content(operation.takes)}
    return found


def _parameter(name: str, schema: Schema) -> Plain:
    kept = {key: value for key, value in schema.items() if key != "description"}
    found: Plain = {"name": name, "in": "query", "required": "default" not in schema,
                    "schema": kept}
    if "description" in schema:
        found["description"] = schema["description"]
    return found


def _content(shape: Schema | str) -> Plain:
    if isinstance(shape, str):
        return {shape: {"schema": {"type": "string", "contentMediaType": shape}}}
    return {"application/json": {"schema": shape}}


def _refusals(route: Route, operation: Operation) -> list[int]:
    """The statuses of problems that an operation may have."""
    found = {400, 401, 403, 409, 422, 503}
    if "{" in route.path:
        found.add(404)
    if operation.takes is not None:
        found |= {413, 415}
    return sorted(found)


def _given(status: int, given: Schema | str | None) -> Plain:
    found: Plain = {"description": HTTPStatus(status).phrase}
    if given is not None:
        found["content"] = _content(given)
    return found


def _links(route: Route, operation: Operation) -> Plain:
    """What can be asked for with what is answered: what is below, of that name."""
    links: Plain = {}
    for below in ROUTES if operation.key else ():
        *above, word = below.words or [""]
        if below.path.startswith(f"{route.path}/{{") and above == route.words:
            for each in below.operations.values():
                links[each.name] = {"operationId": each.name, "parameters": {
                    word: f"$response.body#{operation.key}",
                    **{name: f"$request.path.{name}" for name in above}}}
    return {"links": links} if links else {}


def _problem(status: int) -> Plain:
    found: Plain = {
        "description": HTTPStatus(status).phrase,
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}}
    if status == 401:
        found["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}}}
    return found
