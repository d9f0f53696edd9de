"""The configuration that is in effect, and why: to read, and without what is secret in it."""

from __future__ import annotations

from mailsvc import plain
from mailsvc.api.call import Answer, Call, part
from mailsvc.api.problems import Problem
from mailsvc.config import ConfigurationError, key_named
from mailsvc.console.configuration import entries

#: No key is longer; what is need not be compared with those that there are.
_LONGEST = 100


async def list_all(call: Call) -> Answer:
    """List the keys of the configuration in effect, each with its value and what makes it so."""
    found = list(entries(call.backend.settings, call.query["q"],
                         given=call.query["which"] == "given"))
    return part(call, found, lambda entry: plain.setting(*entry))


async def show(call: Call) -> Answer:
    """Tell of one key: its value, what makes it so, and what it means."""
    name = call.words["key"]
    if len(name) > _LONGEST:
        raise Problem(404, "There is no such key.")
    try:
        wanted = key_named(name)
    except ConfigurationError as error:
        raise Problem(404, str(error)) from None
    return Answer(next(plain.setting(*entry) for entry in entries(call.backend.settings)
                       if entry[0] == wanted))
