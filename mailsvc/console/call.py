"""One request as a page sees it, what a page may answer, and what stands behind all pages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer

from mailsvc.authentication import Authenticator
from mailsvc.config import Settings
from mailsvc.console.forms import Form
from mailsvc.console.sessions import Session, Sessions
from mailsvc.console.texts import Translate
from mailsvc.directory import SqliteDirectory
from mailsvc.interfaces import IMailboxStore
from mailsvc.mail import Account
from mailsvc.mailbox import Mailbox
from mailsvc.smtp.server import SMTPFactory
from mailsvc.store.threads import Threads

Result = TypeVar("Result")

#: Who may see a page.  Each may see what those before it may.
ANYBODY, USER, ADMINISTRATOR = "anybody", "user", "administrator"
ROLES = (ANYBODY, USER, ADMINISTRATOR)


@dataclass(frozen=True, slots=True)
class Backend:
    """What stands behind the pages.

    :ivar directory: for look-ups, in the reactor's thread.
    :ivar threads: where whatever may wait is done.
    :ivar submission: the server for submission, as a listener for it would have it; but that who
        logs in to it by its *authenticator* shows what :mod:`mailsvc.console.inside` gives out.
    :ivar verify: whether something is the password that has a verifier; never in this thread.
    :ivar realm: the cred realm, of all avatars.
    :ivar lookups: threads for what waits for name servers elsewhere.
    :ivar listening: the kinds of the listeners, and where each is.
    :ivar elsewhere: whether passwords are kept elsewhere, so that they cannot be changed here.
    """

    settings: Settings
    store: IMailboxStore
    directory: SqliteDirectory
    authenticator: Authenticator
    sessions: Sessions
    threads: Threads
    submission: Callable[[Authenticator], SMTPFactory]
    realm: Any
    verify: Callable[[str, str | None, bytes], Deferred[bool]]
    reactor: Any
    lookups: Threads
    listening: Callable[[], list[tuple[str, str]]]
    elsewhere: bool = False

    @property
    def data(self) -> Path:
        """The data directory."""
        return Path(self.settings.service.data)

    @property
    def maildirs(self) -> Path | None:
        """Below what the maildirs are; None if mail is kept otherwise."""
        scheme, _, place = self.settings.service.store.partition(":")
        return Path(place) if scheme == "maildir" else None

    def mailbox(self, account: Account) -> Mailbox:
        """That of *account*, who receives mail."""
        return Mailbox(self.store, account, self.threads, self.reactor)

    def change(self, act: Callable[[SqliteDirectory], Result]) -> Deferred[Result]:
        """Change the directory by *act*, in a thread and over a connection of its own.

        :raises DirectoryError: (in the Deferred) what *act* refuses.
        """
        path = self.settings.accounts.database

        def do() -> Result:
            with SqliteDirectory(path, create=False) as directory:
                return act(directory)

        return self.threads.run(do)


@dataclass(slots=True)
class Call:
    """One request.

    :ivar words: what stood in the address where the route has names.
    :ivar query: the fields behind the "?".
    :ivar form: what was filled in; nothing but for POST.
    :ivar account: who is logged in, or None.
    :ivar administrator: whether that is an administrator.
    :ivar client: the browser's IP address, or "" on a Unix socket.
    :ivar translate: what pages call ``_``.
    :ivar secure: whether it came by TLS.
    :ivar cookies: what to set, by name; "" to remove one.
    """

    backend: Backend
    method: str
    path: str
    words: dict[str, str]
    query: Form
    form: Form
    session: Session
    account: Account | None
    administrator: bool
    client: str
    language: str
    translate: Translate
    secure: bool
    cookies: dict[str, str] = field(default_factory=dict)

    @property
    def user(self) -> Account:
        """Who is logged in: on pages that are not for anybody."""
        assert self.account is not None
        return self.account

    @property
    def role(self) -> str:
        """One of :data:`ROLES`."""
        if self.account is None:
            return ANYBODY
        return ADMINISTRATOR if self.administrator else USER


# ---- answers ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Page:
    """A page made of a template.

    :ivar policy: its Content-Security-Policy, if that is another than most pages have.
    """

    template: str
    values: Mapping[str, Any] = field(default_factory=dict)
    status: int = 200
    policy: str = ""


@dataclass(frozen=True, slots=True)
class Stream:
    """A page that is written while something goes on.

    :ivar page: in its template stands ``{{ stream }}`` where the pieces go.
    :ivar pieces: the templates of the pieces, with their values, as they come.
    :ivar flow: is told when the browser does not take what is written, when it does again, and when
        it is gone; None for what is short.
    """

    page: Page
    pieces: AsyncIterator[Page]
    flow: IPushProducer | None = None


@dataclass(frozen=True, slots=True)
class Redirect:
    """Go on at *where*, a path here.

    :ivar notice: a key of :data:`mailsvc.console.pages.NOTICES`, to be told there.
    """

    where: str
    notice: str = ""


@dataclass(frozen=True, slots=True)
class Content:
    """Octets as they are.

    :ivar name: what a browser is to save it as; "" to show it.
    :ivar policy: as of :class:`Page`.
    :ivar lasting: whether a browser may keep it for a year.
    """

    content: bytes
    type: str
    name: str = ""
    policy: str = ""
    lasting: bool = False


Answer = Page | Stream | Redirect | Content


class Problem(Exception):
    """What was asked for cannot be done; the page says why.

    :ivar text: in the words of the pages, with ``{names}`` for *values*.
    """

    def __init__(self, text: str, status: int = 400, **values: object) -> None:
        super().__init__(text)
        self.text = text
        self.status = status
        self.values = values
