"""SMTP commands for the wire: arguments in, command lines out (RFC 5321 §4.1).

The counterpart of :mod:`mailsvc.smtp.grammar`, by which every address goes before it is written:
what that would not take, this does not say.  No argument whatever can put a CR, LF, NUL or another
control character on the wire, or end a path and begin a parameter: :class:`BadArgument`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import idna

from mailsvc.mail import NULL_PATH, Address, DeliverBy
from mailsvc.smtp import grammar, xtext
from mailsvc.smtp.failures import BadArgument
from mailsvc.smtp.grammar import SyntaxFault
from mailsvc.smtp.requests import Parameters

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NOTIFY = ("SUCCESS", "FAILURE", "DELAY")
_PRINTABLE = re.compile(r"[ -~]+")
#: RFC 3461 §4.2: the type is an atom; without "=", which no value has (RFC 5321 §4.1.2).
_ORCPT = re.compile(r"[A-Za-z0-9!#$%&'*+/?^_`{|}~-]+;.+", re.DOTALL)
#: What utf-8-addr-unitext and utf-8-addr-xtext write as \x{HEX}; what is written so already stays.
_CODED = r"\\(?!x\{[0-9A-F]{2,6}\})"
_UNITEXT = re.compile(rf"{_CODED}|[^!-*,-<>-~\u0080-\U0010ffff]")
_UTF8_XTEXT = re.compile(rf"{_CODED}|[^!-*,-<>-~]")


def address(value: Address | str) -> Address:
    """*value* as an address, with or without angle brackets; "" and "<>" are the null path.

    :raises BadArgument: it is none.
    """
    return _address(value)


@functools.lru_cache(4096)
def _address(value: Address | str) -> Address:
    text = str(value)
    if text in ("", "<>"):
        return NULL_PATH
    _refuse_controls(text)
    try:
        return grammar.mailbox(text.encode())
    except (SyntaxFault, UnicodeEncodeError) as fault:
        raise BadArgument(f"{text!r} is not an address: {fault}") from None


def ascii_form(path: Address) -> Address:
    """*path* with its domain in A-labels (RFC 5890), as hosts without SMTPUTF8 know it."""
    if path.domain.isascii():
        return path
    return Address(path.local_part, idna.encode(path.domain).decode())


def needs_smtputf8(path: Address) -> bool:
    """Whether there is no way to write *path* in ASCII."""
    return not path.local_part.isascii()


def argument(text: str, what: str = "the argument") -> str:
    """*text*, which may be said as it is.

    :raises BadArgument: it holds a control character, or nothing.
    """
    _refuse_controls(text)
    if not text.strip():
        raise BadArgument(f"{what} must not be empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadArgument(f"{text!r} cannot be written in UTF-8") from None
    return text


def hello(name: str) -> str:
    """What a client may call itself: a domain or an address literal (RFC 5321 §4.1.1.1)."""
    _refuse_controls(name)
    try:
        return grammar.hello(name.encode())
    except (SyntaxFault, UnicodeEncodeError) as fault:
        raise BadArgument(f"{name!r}: {fault}") from None


def mail(path: Address, said: Parameters) -> bytes:
    """The MAIL command with its CRLF; a parameter that is empty or None is left out."""
    words = []
    if said.size:
        words.append(f"SIZE={said.size:d}")
    if said.body:
        words.append(f"BODY={_one_of(said.body, 'body', '7BIT', '8BITMIME')}")
    if said.smtputf8:
        words.append("SMTPUTF8")
    if said.ret:
        words.append(f"RET={_one_of(said.ret, 'ret', 'FULL', 'HDRS')}")
    if said.envid:
        # RFC 3461 §4.4: the decoded value is printable, and the xtext of 100 characters at most.
        coded = xtext.encode(said.envid)
        if not _PRINTABLE.fullmatch(said.envid) or len(coded) > 100:
            raise BadArgument(
                f"envid {said.envid!r}: expected up to 100 printable ASCII characters")
        words.append(f"ENVID={coded}")
    if said.requiretls:
        words.append("REQUIRETLS")
    if said.auth is not None:
        words.append("AUTH=" + xtext.encode(str(address(said.auth)) or "<>"))
    if said.by is not None:
        words.append(f"BY={_deliver_by(said.by)}")
    if said.priority is not None:
        if not -9 <= said.priority <= 9:
            raise BadArgument(f"priority {said.priority}: expected -9 to 9")
        words.append(f"MT-PRIORITY={said.priority:d}")
    if said.hold_for:
        if not 0 < said.hold_for <= 999_999_999:
            raise BadArgument(f"hold_for {said.hold_for}: expected 1 to 999999999 seconds")
        words.append(f"HOLDFOR={said.hold_for:d}")
    return _line("MAIL FROM:", path, bool(said.smtputf8), words)


def _deliver_by(by: DeliverBy) -> str:
    least = 1 if by.mode == "R" else -999_999_999
    if by.mode not in ("R", "N") or not least <= by.seconds <= 999_999_999:
        raise BadArgument(f"{by}: expected 1 to 999999999 seconds with mode R, or "
                          "-999999999 to 999999999 with N")
    return f"{by.seconds:d};{by.mode}{'T' if by.trace else ''}"


def rcpt(path: Address, *, smtputf8: bool = False, notify: Sequence[str] = (),
         orcpt: str = "") -> bytes:
    """The RCPT command with its CRLF.

    :param orcpt: ``type;address``, decoded.
    """
    words = []
    if notify:
        chosen = [word.upper() for word in notify]
        # RFC 3461 §4.1: NEVER stands alone.
        if chosen != ["NEVER"] and (not set(chosen) <= set(_NOTIFY)
                                    or len(set(chosen)) < len(chosen)):
            raise BadArgument(f"notify {', '.join(notify)!r}: expected NEVER alone, or some of "
                              f"{', '.join(_NOTIFY)}")
        words.append("NOTIFY=" + ",".join(chosen))
    if orcpt:
        _refuse_controls(orcpt)
        if not _ORCPT.fullmatch(orcpt) or len(orcpt) > 500:
            raise BadArgument(f"orcpt {orcpt!r}: expected type;address, such as rfc822;a@b")
        kind, _, original = orcpt.partition(";")
        words.append(f"ORCPT={kind};{_original(kind, original, smtputf8)}")
    return _line("RCPT TO:", path, smtputf8, words)


def _original(kind: str, original: str, smtputf8: bool) -> str:
    """The address of ORCPT: xtext, or as RFC 6533 §3 has it, in UTF-8 where SMTPUTF8 allows it."""
    if kind.lower() != "utf-8" and original.isascii():
        return xtext.encode(original)
    return (_UNITEXT if smtputf8 else _UTF8_XTEXT).sub(
        lambda match: f"\\x{{{ord(match[0]):X}}}", original)


def _line(verb: str, path: Address, smtputf8: bool, words: list[str]) -> bytes:
    written = path if smtputf8 else ascii_form(path)
    line = " ".join([f"{verb}<{written}>", *words])
    # The address came through the grammar and each word was checked; this holds all the same.
    _refuse_controls(line)
    return line.encode("utf-8" if smtputf8 else "ascii") + b"\r\n"


def _one_of(value: str, what: str, *allowed: str) -> str:
    if value.upper() not in allowed:
        raise BadArgument(f"{what} {value!r}: expected {' or '.join(allowed)}")
    return value.upper()


def _refuse_controls(text: str) -> None:
    if _CONTROL.search(text):
        raise BadArgument(f"{text!r} holds a line end or another control character; leave it out")
