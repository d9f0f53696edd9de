"""What is where: each path, who may use it, and what answers which method.

A name in braces stands for one segment of the path.  Whoever adds a page adds a row; that everybody
but those of its role are turned away is then tested (tests/test_console_roles.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from mailsvc.console import (
    accounts,
    aliases,
    configuration,
    deleted,
    domains,
    live,
    login,
    mailbox,
    overview,
    own,
    queue,
    sending,
    static,
    tracing,
)
from mailsvc.console.call import ADMINISTRATOR, ANYBODY, USER, Answer, Call
from mailsvc.paths import match

Handler = Callable[[Call], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Route:
    """One path.

    :ivar role: whom it is for, and all that may more.
    :ivar methods: GET, which answers HEAD too, and POST.
    """

    path: str
    role: str
    methods: Mapping[str, Handler]

    @property
    def allowed(self) -> list[str]:
        """As in the field Allow."""
        return [*(["GET", "HEAD"] if "GET" in self.methods else []),
                *(["POST"] if "POST" in self.methods else [])]


ROUTES = (
    Route("/", ANYBODY, {"GET": login.home}),
    Route("/login", ANYBODY, {"GET": login.show, "POST": login.log_in}),
    Route("/logout", USER, {"POST": login.log_out}),
    Route("/language", ANYBODY, {"POST": login.choose_language}),
    Route("/static/{name}", ANYBODY, {"GET": static.show}),
    Route("/send", USER, {"GET": sending.show, "POST": sending.send}),
    Route("/mailbox", USER, {"GET": mailbox.show_list}),
    Route("/mailbox/{id}", USER, {"GET": mailbox.show}),
    Route("/mailbox/{id}/html", USER, {"GET": mailbox.show_html}),
    Route("/mailbox/{id}/source", USER, {"GET": mailbox.show_source}),
    Route("/mailbox/{id}/download", USER, {"GET": mailbox.download}),
    Route("/mailbox/{id}/part/{number}", USER, {"GET": mailbox.download_part}),
    Route("/mailbox/{id}/delete", USER, {"GET": mailbox.ask, "POST": mailbox.delete}),
    Route("/deleted", USER, {"GET": deleted.show_list, "POST": deleted.restore}),
    Route("/trace", USER, {"GET": tracing.show}),
    Route("/account", USER, {"GET": own.show}),
    Route("/account/password", USER, {"POST": own.change_password}),
    Route("/account/app-passwords", USER, {"POST": own.add_app_password}),
    Route("/account/app-passwords/remove", USER, {"POST": own.remove_app_password}),
    Route("/overview", ADMINISTRATOR, {"GET": overview.show}),
    Route("/sessions", ADMINISTRATOR, {"GET": live.show, "POST": live.end}),
    Route("/sessions/watch", ADMINISTRATOR, {"POST": live.watch}),
    Route("/queue", ADMINISTRATOR, {"GET": queue.show_list, "POST": queue.act}),
    Route("/queue/{id}", ADMINISTRATOR, {"GET": queue.show}),
    Route("/accounts", ADMINISTRATOR, {"GET": accounts.show_list, "POST": accounts.add}),
    Route("/accounts/{name}", ADMINISTRATOR, {"GET": accounts.show, "POST": accounts.change}),
    Route("/accounts/{name}/password", ADMINISTRATOR, {"POST": accounts.set_password}),
    Route("/accounts/{name}/remove", ADMINISTRATOR, {"GET": accounts.ask,
                                                    "POST": accounts.remove}),
    Route("/aliases", ADMINISTRATOR, {"GET": aliases.show_list, "POST": aliases.put}),
    Route("/aliases/remove", ADMINISTRATOR, {"POST": aliases.remove}),
    Route("/domains", ADMINISTRATOR, {"GET": domains.show_list, "POST": domains.add}),
    Route("/domains/{name}", ADMINISTRATOR, {"GET": domains.show, "POST": domains.change}),
    Route("/domains/{name}/check", ADMINISTRATOR, {"POST": domains.check}),
    Route("/domains/{name}/remove", ADMINISTRATOR, {"POST": domains.remove}),
    Route("/configuration", ADMINISTRATOR, {"GET": configuration.show}),
)

def find(path: str) -> tuple[Route, dict[str, str]] | None:
    """The route of *path*, as it stands in a request, and what its names stand for."""
    for route in ROUTES:
        words = match(route.path, path)
        if words is not None:
            return route, words
    return None
