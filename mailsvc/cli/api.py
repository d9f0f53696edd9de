"""``mailsvc api``: asks the API of the service that runs, over its Unix socket."""

from __future__ import annotations

import json
import os
import socket
import sys
from contextlib import closing
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO

import click

from mailsvc.cli.listing import print_json
from mailsvc.cli.place import place_options, settings
from mailsvc.localsocket import NoService
from mailsvc.monitor import ask

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_ROOT = "/api/v1"
#: How long an answer is waited for, seconds.
_PATIENCE = 120.0


class _Connection(HTTPConnection):
    """HTTP over the Unix socket *path*."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@click.command()
@click.argument("method", type=click.Choice(_METHODS, case_sensitive=False))
@click.argument("path")
@click.option("--data", "file", type=click.File("rb"), metavar="FILE",
              help="Send what is in this file; - for standard input.")
@click.option("--type", "kind", default="application/json", show_default=True, metavar="TYPE",
              help="What that is.")
@place_options
def api(method: str, path: str, file: BinaryIO | None, kind: str) -> None:
    """Ask the API of the running service, as its administrator.

    PATH is below /api/v1; `mailsvc api GET /openapi.json` tells what there is, docs/api.rst for
    people.  It goes by the Unix socket of listeners.api, where root and the user of the service
    need not log in: the service does it, so that nothing it makes belongs to somebody else.

    It prints the answer.  The status is 1 when that is a refusal, which is printed on standard
    error, or when no service runs.

    \b
    Example:
      mailsvc api GET /accounts
      echo '{"name": "bob@example.org"}' | mailsvc api POST /accounts --data -
      mailsvc api DELETE /queue/1K16KWV2DBF00EP5
    """
    body = None if file is None else file.read()
    try:
        place = _socket()
        with closing(_Connection(place)) as connection:
            connection.request(method.upper(), _ROOT + path.removeprefix(_ROOT), body,
                               {} if body is None else {"Content-Type": kind})
            answer = connection.getresponse()
            _show(answer, answer.read())
    except NoService as problem:
        raise click.ClickException(str(problem)) from problem
    except (OSError, HTTPException, ValueError) as error:
        raise click.ClickException(f"the service does not answer at {place}: {error}") from error


def _socket() -> str:
    """Where the service that runs has its socket."""
    for listener in ask(Path(settings().service.data))["listeners"]:
        if listener["kind"] == "api" and os.path.isabs(listener["address"]):
            return str(listener["address"])
    raise click.ClickException("the service has no Unix socket for the API: let the configuration "
                               'have it, as in listeners.api = ["unix:/run/mailsvc/api"], and '
                               "restart the service")


def _show(answer: HTTPResponse, content: bytes) -> None:
    kind = answer.headers.get_content_type()
    if kind == "application/problem+json":
        raise click.ClickException(f"{answer.status} {json.loads(content)['detail']}")
    if answer.status >= 400:
        raise click.ClickException(f"{answer.status} {answer.reason}")
    if kind == "application/json" and content:
        print_json(json.loads(content))
    else:
        sys.stdout.buffer.write(content)
