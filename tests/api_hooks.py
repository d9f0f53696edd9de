"""What schemathesis has to be told of the API: loaded by it, not by pytest."""

from __future__ import annotations

from typing import Any

import schemathesis


@schemathesis.serializer("message/rfc822")
def message(context: Any, value: Any) -> bytes:
    """A message is sent as it is."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: Any) -> Any:
    """Have half of what is made up lead to accounts that there are."""
    name = (path_parameters or {}).get("account")
    if isinstance(name, str) and len(name) % 2:
        own = any(part in context.operation.path
                  for part in ("/messages", "/deleted", "/submissions"))
        return {**path_parameters, "account": "me" if own else "bob@example.org"}
    return path_parameters
