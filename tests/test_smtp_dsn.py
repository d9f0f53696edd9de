"""The parameters of the DSN extension (RFC 3461 §4, RFC 6533 §3): as they are read, and written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailsvc.mail import Address
from mailsvc.smtp import dsn, writing
from mailsvc.smtp.failures import BadArgument
from mailsvc.smtp.grammar import SyntaxFault

BOB = Address("bob", "example.org")


@pytest.mark.parametrize(("read", "value", "meant"), [
    (dsn.ret, "FULL", "FULL"), (dsn.ret, "hdrs", "HDRS"),
    (dsn.envid, "QQ314159", "QQ314159"), (dsn.envid, "a+20b+2B", "a b+"),
    (dsn.envid, "x" * 100, "x" * 100),
    (dsn.notify, "NEVER", ("NEVER",)), (dsn.notify, "never", ("NEVER",)),
    (dsn.notify, "Success,FAILURE,delay", ("SUCCESS", "FAILURE", "DELAY")),
    (dsn.orcpt, "rfc822;Bob+2Bx@example.com", "rfc822;Bob+x@example.com"),
    (dsn.orcpt, "rfc822;a;b", "rfc822;a;b"), (dsn.orcpt, "x400;+22a+20b+22", 'x400;"a b"'),
    (dsn.orcpt, r"utf-8;j\x{F6}rg@example.org", r"utf-8;j\x{F6}rg@example.org"),
    (dsn.orcpt, r"UTF-8;jörg\x{2B}x@bücher.example", r"UTF-8;jörg\x{2B}x@bücher.example"),
])
def test_a_parameter(read: object, value: str, meant: object) -> None:
    assert read(value) == meant  # type: ignore[operator]


@pytest.mark.parametrize(("read", "value"), [
    (dsn.ret, None), (dsn.ret, ""), (dsn.ret, "BODY"), (dsn.ret, "ſull"),
    (dsn.envid, None), (dsn.envid, ""), (dsn.envid, "x" * 101), (dsn.envid, "a+0D+0Ab"),
    (dsn.envid, "+20a"), (dsn.envid, "a+20"), (dsn.envid, "+C3+BC"), (dsn.envid, "a+2"),
    (dsn.envid, "ü"),
    (dsn.notify, None), (dsn.notify, ""), (dsn.notify, ","), (dsn.notify, "SUCCESS,"),
    (dsn.notify, "NEVER,DELAY"), (dsn.notify, "DELAY,DELAY"), (dsn.notify, "ALWAYS"),
    (dsn.notify, "ſUCCESS"), (dsn.notify, "NEVER,NEVER"),
    (dsn.orcpt, None), (dsn.orcpt, ""), (dsn.orcpt, "bob@example.org"), (dsn.orcpt, ";bob"),
    (dsn.orcpt, "rfc822;"), (dsn.orcpt, "a b;c"), (dsn.orcpt, "rfc822;" + "x" * 494),
    (dsn.orcpt, "utf-8;" + "é" * 248), (dsn.orcpt, "rfc822;a+0Ab"), (dsn.orcpt, "rfc822;+C3+BC"),
    (dsn.orcpt, "rfc822;jörg@example.org"), (dsn.orcpt, "rfc822;a+20"), (dsn.orcpt, "rfc822;a+"),
    (dsn.orcpt, "utf-8;ö\x85X-Forged: yes"), (dsn.orcpt, "utf-8;ö\u2028x"),
    (dsn.orcpt, "utf-8;ö\u202ex"),
])
def test_what_is_none(read: object, value: str | None) -> None:
    with pytest.raises(SyntaxFault) as fault:
        read(value)  # type: ignore[operator]
    assert str(fault.value).isprintable()


@pytest.mark.parametrize(("orcpt", "smtputf8", "written"), [
    ("rfc822;bob+x=y z@example.com", False, b"rfc822;bob+2Bx+3Dy+20z@example.com"),
    ("rfc822;bob+x@example.com", True, b"rfc822;bob+2Bx@example.com"),
    ("utf-8;jörg+x@bücher.example", True, r"utf-8;jörg\x{2B}x@bücher.example".encode()),
    ("utf-8;jörg+x@bücher.example", False, rb"utf-8;j\x{F6}rg\x{2B}x@b\x{FC}cher.example"),
    ("utf-8;\U0001f4ec@example.org", False, rb"utf-8;\x{1F4EC}@example.org"),
    # As it came in from another host.
    (r"utf-8;j\x{F6}rg\x{2B}x@example.org", False, rb"utf-8;j\x{F6}rg\x{2B}x@example.org"),
    (r"utf-8;jörg\x{2B}x@example.org", True, r"utf-8;jörg\x{2B}x@example.org".encode()),
    # RFC 3461 §4.2: the type is any atom.
    ("x_a!'y;bob", False, b"x_a!'y;bob"),
    (r"utf-8;a\b\x{ö@example.org", False, rb"utf-8;a\x{5C}b\x{5C}x{\x{F6}@example.org"),
])
def test_an_original_recipient_is_written(orcpt: str, smtputf8: bool, written: bytes) -> None:
    assert writing.rcpt(BOB, smtputf8=smtputf8, orcpt=orcpt) == (
        b"RCPT TO:<bob@example.org> ORCPT=" + written + b"\r\n")


@given(st.sampled_from(["rfc822", "x400"]), st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0x7e), min_size=1, max_size=100))
def test_what_is_written_is_what_is_read(kind: str, address: str) -> None:
    line = writing.rcpt(BOB, orcpt=f"{kind};{address}").decode()
    assert dsn.orcpt(line.rstrip().partition("ORCPT=")[2]) == f"{kind};{address}"


@given(st.booleans(), st.text(
    st.characters(min_codepoint=0x21, exclude_categories=["C", "Z"]), min_size=1, max_size=40))
def test_what_was_read_of_utf_8_is_written_alike(smtputf8: bool, address: str) -> None:
    """However many hosts it passes."""
    line = writing.rcpt(BOB, smtputf8=smtputf8, orcpt=f"utf-8;{address}").decode()
    value = dsn.orcpt(line.rstrip().partition("ORCPT=")[2])
    assert writing.rcpt(BOB, smtputf8=smtputf8, orcpt=value).decode() == line


@pytest.mark.parametrize("orcpt", ["rfc822", ";x", "rfc822;", "a b;c", "rfc822;" + "x" * 500,
                                   "rfc822;a\r\nDATA", "rfc822;\0"])
def test_what_is_no_original_recipient_is_not_written(orcpt: str) -> None:
    with pytest.raises(BadArgument):
        writing.rcpt(BOB, orcpt=orcpt)
