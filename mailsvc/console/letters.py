"""A message as it is read: its header in words, its text, its HTML made harmless, its parts.

Everything that a stranger wrote is a string here, to be escaped by the templates, except HTML: that
is rebuilt by nh3 (ammonia) from an allowed set, without scripts, forms, styles that move things, or
anything that would be fetched from elsewhere.  Images that came with the message and are small
stand in it as data.  All of this takes its time: it is for threads.

Taking a message apart is bounded: what is nested too deep, or has too many parts, or header fields
that are too long, is told of so, and can still be read as its source.
"""

from __future__ import annotations

import base64
import email.header
import email.message
import email.utils
import re
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import BytesHeaderParser, BytesParser
from email.policy import compat32

import nh3

#: Most octets of a message that are taken apart, of a text that are shown, and of images in it.
MESSAGE_OCTETS, TEXT_OCTETS, IMAGE_OCTETS = 67_108_864, 1_048_576, 2_097_152
#: Most parts that are listed, and most characters of a header field that are shown.
PARTS, FIELD_CHARACTERS = 200, 2000
#: How many lines may begin as those do that part the parts; to look at each takes its time.
_LINES = 20_000
#: The longest header field that the library is asked to take apart: it is not linear in all.
_STRUCTURED = 8192

#: The fields that are shown.
FIELDS = ("From", "To", "Cc", "Reply-To", "Date")

_IMAGES = {"image/png", "image/jpeg", "image/gif", "image/webp"}
_STYLES = {"color", "background-color", "font-size", "font-weight", "font-style", "font-family",
           "text-align", "text-decoration", "vertical-align", "line-height", "width", "max-width",
           "padding", "padding-top", "padding-bottom", "padding-left", "padding-right",
           "border", "border-collapse", "border-radius"}


#: What of a style would fetch or do something, or hides that it does.
_ACTIVE = re.compile(r"(?:url|image|image-set|expression|element|attr)\s*\(|[@\\]", re.IGNORECASE)


class TooStrange(ValueError):
    """A message that is not taken apart; it can be read as its source."""


@dataclass(frozen=True, slots=True)
class Heading:
    """What a list shows of a message.

    :ivar sender: the From field in words; ``subject`` likewise; "" where there is none.
    :ivar date: seconds since the epoch as its sender wrote it, or None.
    """

    sender: str
    subject: str
    date: float | None


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a message that is no text of it.

    :ivar number: counted over all parts, from 0.
    :ivar name: as its sender calls it, or a made-up one.
    :ivar size: in octets, decoded.
    """

    number: int
    name: str
    type: str
    size: int


@dataclass(frozen=True, slots=True)
class Letter:
    """A message taken apart.

    :ivar fields: From, To, Cc, Date and Reply-To, those there are, in words.
    :ivar text: its text, or None when it is all in HTML.
    :ivar html: its HTML made harmless, or None.
    :ivar hidden: whether something in that would have come from elsewhere.
    :ivar cut: whether the text goes on beyond what is shown.
    """

    heading: Heading
    fields: tuple[tuple[str, str], ...]
    text: str | None
    html: str | None
    parts: tuple[Part, ...] = ()
    hidden: bool = False
    cut: bool = False


def heading(header: bytes) -> Heading:
    """What a list shows of the message with this header."""
    try:
        message = BytesHeaderParser(policy=compat32).parsebytes(header[:65_536])
    except Exception:
        return Heading("", "", None)
    return _heading(message)


def _heading(message: email.message.Message) -> Heading:
    return Heading(_words(message, "From"), _words(message, "Subject"), _date(message))


def _date(message: email.message.Message) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(_raw(message, "Date")[:200]).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _raw(message: email.message.Message, name: str) -> str:
    value = message.get(name)
    return "" if value is None else str(value)


def _words(message: email.message.Message, name: str) -> str:
    """A header field in words (RFC 2047), on one line, without what would turn the line round."""
    raw = message.get(name)
    if raw is None:
        return ""
    return clean(_without_rfc2047(str(raw)[:_STRUCTURED]))[:FIELD_CHARACTERS]


def _without_rfc2047(text: str) -> str:
    try:
        return "".join(_decoded(piece, charset)
                       for piece, charset in email.header.decode_header(text))
    except Exception:  # it raises whatever comes up in what it was given
        return text


def _decoded(piece: bytes | str, charset: str | None) -> str:
    if isinstance(piece, str):
        return piece
    try:
        return piece.decode(charset or "ascii", "replace")
    except LookupError:
        return piece.decode("ascii", "replace")


#: Control characters, and those that change the direction of what stands around them.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
                     "\ud800-\udfff]")


def clean(text: str) -> str:
    """*text* as one line without control characters."""
    return _UNSEEN.sub("", " ".join(text.split()))


def parts(message: email.message.Message) -> Iterator[tuple[int, email.message.Message]]:
    for number, part in enumerate(message.walk()):
        if number >= PARTS:
            raise TooStrange("it has too many parts")
        if not part.is_multipart():
            yield number, part


def parsed(data: bytes) -> email.message.Message:
    """The message *data*; raises TooStrange."""
    if len(data) > MESSAGE_OCTETS:
        raise TooStrange("it is too large")
    if data.count(b"\n--") > _LINES:
        raise TooStrange("it has too many parts")
    try:
        message = BytesParser(policy=compat32).parsebytes(data)
        for _, part in zip(range(PARTS + 1), message.walk(), strict=False):
            for name in "Content-Type", "Content-Disposition", "Content-Transfer-Encoding":
                if len(_raw(part, name)) > _STRUCTURED:
                    raise TooStrange("a header field in it is too long")
    except RecursionError:
        raise TooStrange("its parts are nested too deep") from None
    return message


def _type(part: email.message.Message) -> str:
    return part.get_content_type()


def content(part: email.message.Message) -> bytes:
    """What a part holds, decoded."""
    payload = part.get_payload(decode=True)
    return payload if isinstance(payload, bytes) else b""


def _text(part: email.message.Message) -> str:
    data = content(part)[:TEXT_OCTETS]
    charset = part.get_param("charset") or "utf-8"
    try:
        text = data.decode(str(charset) if isinstance(charset, str) else "utf-8", "replace")
    except LookupError:
        text = data.decode("utf-8", "replace")
    return text.replace("\r\n", "\n")


def _is_attached(part: email.message.Message) -> bool:
    return _raw(part, "Content-Disposition").strip().lower().startswith("attachment")


def name_of(part: email.message.Message, number: int) -> str:
    """What a part is called."""
    try:
        name = part.get_filename()
    except Exception:
        name = None
    if name and "=?" in name:
        name = _without_rfc2047(name[:_STRUCTURED])
    name = clean(name or "").replace("\\", "/").rpartition("/")[2][:150].strip(". ")
    return name or f"part-{number}"


def letter(data: bytes) -> Letter:
    """The message *data* taken apart; raises TooStrange."""
    message = parsed(data)
    text: str | None = None
    page: str | None = None
    listed: list[Part] = []
    images: dict[str, str] = {}
    room = IMAGE_OCTETS
    cut = False
    for number, part in parts(message):
        kind = _type(part)
        if kind == "text/plain" and text is None and not _is_attached(part):
            text = _text(part)
            cut = cut or len(content(part)) > TEXT_OCTETS
        elif kind == "text/html" and page is None and not _is_attached(part):
            page = _text(part)
        else:
            octets = content(part)
            listed.append(Part(number, name_of(part, number), kind, len(octets)))
            called = _raw(part, "Content-ID").strip(" <>\r\n\t")
            if called and kind in _IMAGES and len(octets) <= room:
                room -= len(octets)
                images[called] = f"data:{kind};base64,{base64.b64encode(octets).decode()}"
    fields = tuple((name, words) for name in FIELDS
                   if (words := _words(message, name)))
    html, hidden = (None, False) if page is None else harmless(page, images)
    if text is not None:
        text = _UNSEEN.sub("", text)
    return Letter(_heading(message), fields, text, html, tuple(listed), hidden, cut)


_ATTRIBUTES = {
    **{tag: {*names, "style", "align", "valign", "width", "height", "bgcolor", "dir", "lang"}
       for tag, names in nh3.ALLOWED_ATTRIBUTES.items()},
    **{tag: {"style", "align", "valign", "width", "height", "bgcolor", "dir", "lang", "border",
             "cellpadding", "cellspacing", "colspan", "rowspan"}
       for tag in ("table", "tr", "td", "th", "tbody", "thead")},
    "img": {"src", "alt", "width", "height"},
    "a": {"href", "title"},
    "font": {"color", "face", "size"},
    "p": {"style", "align", "dir"}, "div": {"style", "align", "dir"}, "span": {"style", "dir"},
}
_TAGS = {*nh3.ALLOWED_TAGS, "font", "u", "s", "big"}


def harmless(page: str, images: dict[str, str]) -> tuple[str, bool]:
    """HTML that can do nothing and fetches nothing, and whether something was left out for that.

    :param images: ``data:`` URLs by Content-ID.
    """
    hidden = False

    def allow(tag: str, name: str, value: str) -> str | None:
        nonlocal hidden
        if tag == "img" and name == "src":
            # RFC 2392
            found = images.get(value.removeprefix("cid:")) if value.startswith("cid:") else None
            hidden = hidden or (found is None)
            return found
        if name == "style" and _ACTIVE.search(value):
            return None
        if name == "href" and value.lstrip()[:5].lower() == "data:":
            return None
        return value

    cleaned = nh3.clean(
        page, tags=_TAGS, attributes=_ATTRIBUTES, attribute_filter=allow, strip_comments=True,
        url_schemes={"http", "https", "mailto", "cid", "data"}, link_rel="noopener noreferrer",
        filter_style_properties=_STYLES, set_tag_attribute_values={"a": {"target": "_blank"}})
    return cleaned, hidden
