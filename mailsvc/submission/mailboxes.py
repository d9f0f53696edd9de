"""The mailboxes that a From or Sender field names (RFC 5322 §3.4, RFC 6532 §3.2, RFC 6854).

Strict, because what is found decides who may have written a message: where other readers might see
another address than we, none is found.  Comments may be anywhere and nested; of the obsolete syntax
(§4.4), empty members of a list and dots in a display name are understood, source routes are not.
Work and memory grow with the length of the field alone.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from mailsvc.mail import Address

#: The longest field that is read, in octets.
LONGEST = 16_384

_TOKEN = re.compile(r"""
    (?P<space>[ \t]+)
  | (?P<comment>\()
  | (?P<quoted>"(?:[^"\\\x00-\x08\x0a-\x1f\x7f]|\\[\t\x20-\x7e])*")
  | (?P<literal>\[[!-Z^-~]*\])
  | (?P<special>[<>,:;@.])
  | (?P<atom>[^\x00-\x20\x7f()<>\[\]:;@\\,."]+)
""", re.VERBOSE)
_IN_COMMENT = re.compile(r"\\.|[()]", re.DOTALL)

#: (kind, text): "quoted", "literal" or "atom"; of a special character the text is its kind too.
_Token = tuple[str, str]


def mailboxes(value: bytes, domain: str = "", longest: int = LONGEST) -> list[Address]:
    """The addresses in the body of a field, which may be folded.

    :param domain: what addresses without a domain are completed with; without it there are none.
    :param longest: the longest body that is read, in octets.
    :raises ValueError: it is not a list of mailboxes, or not without doubt, or too long.
    """
    if len(value) > longest:
        raise ValueError("it is too long")
    try:
        text = re.sub(r"\r\n(?=[ \t])", "", value.decode()).removesuffix("\r\n")
    except UnicodeDecodeError:
        raise ValueError("it is neither ASCII nor UTF-8") from None
    found: list[Address] = []
    words: list[_Token] = []  # of the present member
    done = group = False  # whether it ended with ">"; whether it is in a group
    tokens = _tokens(text)
    for token in tokens:
        kind = token[0]
        if kind in (",", ";"):
            if words:
                found.append(_address(words, domain))
            words, done = [], False
            if kind == ";":
                if not group:
                    raise ValueError("a group ends that did not begin")
                group = False
        elif done:
            raise ValueError("something stands behind an address")
        elif kind == ":":
            if group or not words or not _is_phrase(words):
                raise ValueError("a colon is out of place")
            words, group = [], True
        elif kind == "<":
            if not _is_phrase(words):
                raise ValueError("a display name needs quotes")
            found.append(_address(_inside(tokens), domain))
            words, done = [], True
        else:
            words.append(token)
    if words:
        found.append(_address(words, domain))
    if group:
        raise ValueError("a group does not end")
    return found


def _tokens(text: str) -> Iterator[_Token]:
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None or match.lastgroup is None:
            raise ValueError("a character is out of place")
        position, kind = match.end(), match.lastgroup
        if kind == "comment":
            position = _end_of_comment(text, position)
        elif kind != "space":
            yield match[0] if kind == "special" else kind, match[0]


def _end_of_comment(text: str, position: int) -> int:
    depth = 1
    for match in _IN_COMMENT.finditer(text, position):
        depth += {"(": 1, ")": -1}.get(match[0], 0)
        if depth == 0:
            return match.end()
    raise ValueError("a comment does not end")


def _inside(tokens: Iterator[_Token]) -> list[_Token]:
    """The tokens up to the next ">"."""
    words: list[_Token] = []
    for token in tokens:
        if token[0] == ">":
            return words
        words.append(token)
    raise ValueError("an angle bracket is open")


def _is_phrase(words: list[_Token]) -> bool:
    return all(kind in ("atom", "quoted", "literal", ".") for kind, _ in words)


def _address(words: list[_Token], default: str) -> Address:
    """The addr-spec (§3.4.1) that *words* are; *default* is the domain of one without."""
    if default and _alternates(words, ("atom", "quoted")):
        words = [*words, ("@", "@"), ("atom", default)]
    kinds = [kind for kind, _ in words]
    if "@" not in kinds:
        raise ValueError("an address is not local-part@domain")
    at = kinds.index("@")
    local_part, domain = words[:at], words[at + 1 :]
    if not (_alternates(local_part, ("atom", "quoted")) and (
            _alternates(domain, ("atom",)) or kinds[at + 1 :] == ["literal"])):
        raise ValueError("an address is not local-part@domain")
    plain = "".join(re.sub(r"\\(.)", r"\1", text[1:-1]) if kind == "quoted" else text
                    for kind, text in local_part)
    return Address(unicodedata.normalize("NFC", plain), "".join(text for _, text in domain).lower())


def _alternates(words: list[_Token], kinds: tuple[str, ...]) -> bool:
    """Whether *words* are of *kinds* with dots in between."""
    return len(words) % 2 == 1 and all(
        kind in kinds if index % 2 == 0 else kind == "." for index, (kind, _) in enumerate(words))
