"""mailsvc.smtp.xtext: RFC 3461 §4, and the AUTH parameter of MAIL (RFC 4954 §5)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailsvc.mail import NULL_PATH, Address
from mailsvc.smtp.grammar import AddressFault, SyntaxFault
from mailsvc.smtp.xtext import auth_parameter, decode, encode

PRINTABLE = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=50)


@pytest.mark.parametrize(("text", "meant"), [
    ("", ""),
    ("QQ314159", "QQ314159"),
    ("e+3Dmc2@example.com", "e=mc2@example.com"),  # RFC 4954 §5
    ("a+2Bb", "a+b"),
    ("+2B2B", "+2B"),  # decoded once
    ("+2b+3d", "+="),
    ("a+20b", "a b"),
    ("!~*,<>", "!~*,<>"),
    ("gr+C3+BC+C3+9Fe", "grüße"),
])
def test_what_xtext_means(text: str, meant: str) -> None:
    assert decode(text) == meant


@pytest.mark.parametrize("text", [
    "+", "+4", "a+", "+G0", "+0x", "+-1", "+ 1", "=", "a=b", "a b", "\x7f", "ü", "+FF", "+C3",
    "+C0+80", "+ED+A0+80", "a\n", "+٣٣",
])
def test_what_is_not_xtext(text: str) -> None:
    with pytest.raises(SyntaxFault):
        decode(text)


@pytest.mark.parametrize("octet", [*range(0x20), 0x7F])
def test_no_control_character_comes_out(octet: int) -> None:
    """PITFALLS, SMTP row 7: decoded, then checked."""
    with pytest.raises(SyntaxFault, match="Control"):
        decode(f"a+{octet:02X}RCPT")


@pytest.mark.parametrize("text", ["+C2+85", "+C2+9B"])
def test_nor_one_of_unicode(text: str) -> None:
    with pytest.raises(SyntaxFault, match="Control"):
        decode(text)


@given(PRINTABLE)
def test_what_is_encoded_comes_back(text: str) -> None:
    coded = encode(text)
    assert coded.isascii() and not set(coded) & set(" =")
    assert decode(coded) == text


@given(st.text(max_size=50))
def test_any_text_is_decoded_or_refused(text: str) -> None:
    try:
        meant = decode(text)
    except SyntaxFault:
        return
    assert not any(character < " " for character in meant)
    assert decode(encode(meant)) == meant


@pytest.mark.parametrize(("value", "address"), [
    ("<>", NULL_PATH),
    ("+3C+3E", NULL_PATH),
    ("e+3Dmc2@example.com", Address("e=mc2", "example.com")),
    ("Bob@EXAMPLE.com", Address("Bob", "example.com")),
    ("+22a+20b+22@example.com", Address("a b", "example.com")),
    ("bob+2Btag@[192.0.2.1]", Address("bob+tag", "[192.0.2.1]")),
])
def test_who_submitted_it_first(value: str, address: Address) -> None:
    assert auth_parameter(value) == address


@pytest.mark.parametrize("value", [
    None, "", "bob", "<bob@example.com>", "bob@", "@example.com", "bob@example.com,x@example.com",
    "a+20b@example.com", "+22+22", "bob@example.com+0D+0AX", "<", "<<>>",
    "x" * 300 + "@example.com",
])
def test_what_auth_does_not_take(value: str | None) -> None:
    with pytest.raises(SyntaxFault):
        auth_parameter(value)


def test_a_mailbox_without_domain_is_at_fault_as_an_address() -> None:
    with pytest.raises(AddressFault, match="local-part@domain"):
        auth_parameter("bob")
