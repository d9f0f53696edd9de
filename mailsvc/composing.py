"""Messages made of parts: text, attachments, images inside the text (RFC 5322, RFC 2045).

The standard library's :mod:`email` does it: names of files by RFC 2231, header text by RFC 2047,
bodies as 7-bit text that any server takes.  A CR, LF or NUL in whatever becomes a header field is
refused, so that nothing can become a field of its own.
"""

from __future__ import annotations

import html as _html
import mimetypes
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from email.policy import SMTP, SMTPUTF8
from email.utils import formatdate, make_msgid
from pathlib import Path
from typing import Any


class BadPart(ValueError):
    """Something cannot be part of a message; the text says what."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file in a message.

    :ivar name: as the recipient sees it.
    """

    name: str
    content: bytes

    @classmethod
    def of(cls, path: str) -> Attachment:
        """The file at *path*.

        :raises BadPart: it cannot be read.
        """
        try:
            return cls(Path(path).name, Path(path).read_bytes())
        except OSError as error:
            raise BadPart(f"{path}: {error.strerror or error}") from None

    @property
    def type(self) -> tuple[str, str]:
        """Its media type, by the name; compressed files are just octets."""
        kind, coding = mimetypes.guess_type(self.name)
        main, _, sub = (kind if kind and not coding else "application/octet-stream").partition("/")
        return main, sub


def compose(
    *, sender: str, to: Sequence[str], cc: Sequence[str] = (), subject: str = "", body: str = "",
    html: str = "", attachments: Sequence[Attachment] = (), inline: Sequence[Attachment] = (),
    fields: Sequence[tuple[str, str]] = (), utf8: bool = False,
) -> bytes:
    """A message, its lines ending in CRLF.

    :param html: the text as HTML too; what is *inline* is in it as ``cid:NAME``, and is shown
        below the text if *html* is empty.
    :param fields: further header fields, in order; they take the place of what would be made up.
    :param utf8: whether addresses may stand as they are, for SMTPUTF8.
    :raises BadPart: an argument cannot be part of a message.
    """
    policy = (SMTPUTF8 if utf8 else SMTP).clone(cte_type="7bit")
    message = EmailMessage(policy=policy)
    given = {name.lower() for name, _ in fields}
    try:
        for name, value in [("From", sender), ("To", ", ".join(to)), ("Cc", ", ".join(cc)),
                            ("Subject", subject)]:
            if value and name.lower() not in given:
                _add(message, name, value)
        for name, value in fields:
            _add(message, name, value)
        if "date" not in given:
            message["Date"] = formatdate(localtime=True)
        if "message-id" not in given:
            domain = sender.rpartition("@")[2].rstrip(">") or "localhost"
            message["Message-ID"] = make_msgid(domain=domain if domain.isascii() else "localhost")
        message.set_content(body if body.endswith("\n") else body + "\n")
        if html or inline:
            message.add_alternative(html or _page(body, inline), subtype="html")
            parts: Any = message.get_payload()
            for each in inline:
                parts[1].add_related(each.content, *each.type, filename=each.name,
                                     disposition="inline", cid=f"<{each.name}>")
        for each in attachments:
            message.add_attachment(each.content, *each.type, filename=each.name)
        return message.as_bytes(policy=policy)
    except (ValueError, IndexError, UnicodeError) as error:
        raise BadPart(str(error)) from None


def _add(message: EmailMessage, name: str, value: str) -> None:
    if not name.isascii() or not name.isprintable() or set(name) & set(" :") or not name:
        raise BadPart(f"{name!r} is not the name of a header field")
    if set(value) & set("\r\n\0"):
        raise BadPart(f"{name}: {value!r} holds a line end or NUL; leave it out")
    message[name] = value


def _page(body: str, inline: Sequence[Attachment]) -> str:
    images = "".join(f'<p><img src="cid:{_html.escape(each.name)}" '
                     f'alt="{_html.escape(each.name)}"></p>\n' for each in inline)
    return f'<div style="white-space: pre-wrap">{_html.escape(body)}</div>\n{images}'
