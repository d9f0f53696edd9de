"""What a browser sends with a form, taken apart as it arrives (RFC 7578, and URL-encoded).

Twisted would gather a body whole and forget the names of files.  Here each block is taken apart
when it comes, so that no turn of the reactor takes long, and nothing is kept that is over a limit.
Files are kept octet by octet.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

#: Most fields and files of one form, and most octets of all that is no file.
PARTS, FIELD_OCTETS = 200, 2_097_152
#: Most octets of the header of a part.
_HEADER_OCTETS = 4096


class BadForm(ValueError):
    """A body that is no form, or has too much in it; the text says what."""


@dataclass(frozen=True, slots=True)
class File:
    """A file that came with a form.

    :ivar name: as the browser calls it, without directories; may be anything else.
    """

    name: str
    content: bytes = field(repr=False)


@dataclass(slots=True)
class Form:
    """What was filled in.

    :ivar fields: the values of each name, in order.
    :ivar files: of each name, those that were chosen.
    """

    fields: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, list[File]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> str:
        """The first value of a field, without white space around it; "" if there is none."""
        return self.text(name).strip()

    def text(self, name: str) -> str:
        """The first value of a field as it is, its lines ending in LF."""
        return next(iter(self.fields.get(name, ())), "").replace("\r\n", "\n")

    def __contains__(self, name: str) -> bool:
        return name in self.fields


class UrlEncoded:
    """A body of the type ``application/x-www-form-urlencoded``."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> None:
        """Take a block; raises BadForm."""
        self._data += data
        if len(self._data) > FIELD_OCTETS:
            raise BadForm("the form is too long")

    def end(self) -> Form:
        """What there was; raises BadForm."""
        try:
            return Form(urllib.parse.parse_qs(
                self._data.decode("ascii"), keep_blank_values=True, errors="replace",
                max_num_fields=PARTS))
        except ValueError:
            raise BadForm("the form cannot be read") from None


class MultiPart:
    """A body of the type ``multipart/form-data``.

    :raises BadForm: its type names no boundary.
    """

    def __init__(self, content_type: bytes) -> None:
        _, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if not 0 < len(boundary) <= 70:
            raise BadForm("the form has no boundary")
        self._form = Form()
        self._header: list[tuple[bytes, bytes]] = []
        self._name = self._value = b""
        self._data = bytearray()
        self._parts = self._octets = 0
        self._file = self._ended = False
        self._parser = MultipartParser(boundary, {
            "on_part_begin": self._begin, "on_part_data": self._more, "on_part_end": self._keep,
            "on_header_field": self._header_name, "on_header_value": self._header_value,
            "on_header_end": self._header_end, "on_headers_finished": self._headers_end,
            "on_end": self._finish})

    def feed(self, data: bytes) -> None:
        """Take a block; raises BadForm."""
        try:
            self._parser.write(data)
        except FormParserError:
            raise BadForm("the form cannot be read") from None

    def end(self) -> Form:
        """What there was; raises BadForm."""
        if not self._ended:
            raise BadForm("the form was cut short")
        return self._form

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > PARTS:
            raise BadForm("the form has too many fields")
        self._header.clear()
        self._data = bytearray()

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]
        self._bound()

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._bound()

    def _bound(self) -> None:
        if len(self._name) + len(self._value) > _HEADER_OCTETS:
            raise BadForm("the form cannot be read")

    def _header_end(self) -> None:
        self._header.append((self._name.lower(), self._value))
        self._name = self._value = b""

    def _headers_end(self) -> None:
        self._options = dict(self._disposition())
        self._file = b"filename" in self._options

    def _disposition(self) -> Iterator[tuple[bytes, bytes]]:
        for name, value in self._header:
            if name == b"content-disposition":
                yield from parse_options_header(value)[1].items()

    def _more(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]
        if not self._file:
            self._octets += end - start
            if self._octets > FIELD_OCTETS:
                raise BadForm("the form is too long")

    def _keep(self) -> None:
        name = self._options.get(b"name", b"").decode("utf-8", "replace")
        if not self._file:
            text = self._data.decode("utf-8", "replace")
            self._form.fields.setdefault(name, []).append(text)
            return
        # What browsers do to quotes and line ends (HTML, "multipart/form-data encoding algorithm").
        file = self._options[b"filename"].decode("utf-8", "replace")
        for escaped, character in ("%22", '"'), ("%0D", " "), ("%0A", " "):
            file = file.replace(escaped, character)
        file = file.replace("\\", "/").rpartition("/")[2]
        if file or self._data:  # else none was chosen
            self._form.files.setdefault(name, []).append(File(file, bytes(self._data)))
        self._data = bytearray()

    def _finish(self) -> None:
        self._ended = True
