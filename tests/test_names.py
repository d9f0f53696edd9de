"""mailsvc.names: folding for look-ups, and what may be made."""

from __future__ import annotations

import os.path
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mailsvc.mail import Address
from mailsvc.names import (
    SEPARATORS,
    DirectoryError,
    check_address,
    check_domain,
    check_maildir_name,
    fold_domain,
    fold_local_part,
    parse_address,
)

#: Text as a peer could send it: lone surrogates excepted, which no UTF-8 decodes to.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
#: Text rich in what has gone wrong elsewhere.
NASTY = st.text(st.sampled_from([*"ab.-/\\~ \0\n@\"", "\u2024", "\u2025", "\uff0e", "\uff0f",
                                 "\u2100", "\u212a", "\u0130", "\u1e9e", "\u0345", "\u200d",
                                 "\u0308", "é"]), max_size=8)


@pytest.mark.parametrize(("spelling", "other"), [
    ("Bob", "bOB"),
    ("ÄRGER", "a\u0308rger"),  # composed or not
    ("Straße", "STRASSE"),
    ("ΣΊΣΥΦΟΣ", "σίσυφος"),  # final sigma
    ("\u212a", "k"),  # Kelvin sign
    ("\u1f80", "\u1f88"),
    ("\u03b1\u0345\u0301", "\u03b1\u0301\u0345"),  # the iota below sorts behind the accent
])
def test_spellings_of_one_local_part(spelling: str, other: str) -> None:
    assert fold_local_part(spelling) == fold_local_part(other)


@pytest.mark.parametrize(("one", "two"), [
    ("bob", "bób"), ("a", "\u0430"), ("a.b", "ab"), ("i", "ı")])
def test_different_local_parts(one: str, two: str) -> None:
    assert fold_local_part(one) != fold_local_part(two)


def test_folding_is_idempotent_for_every_character() -> None:
    folded = {chr(code): fold_local_part(chr(code)) for code in range(0x110000)}
    assert all(fold_local_part(key) == key for key in folded.values())


@given(TEXT | NASTY)
@example("a..")
@example("ä..")
def test_folding_is_idempotent(text: str) -> None:
    key = fold_local_part(text)
    assert fold_local_part(key) == key == unicodedata.normalize("NFC", key)
    for form in ("NFC", "NFD"):
        assert fold_local_part(unicodedata.normalize(form, text)) == key
    domain = fold_domain(text)
    assert fold_domain(domain) == domain


@pytest.mark.parametrize(("text", "name"), [
    ("Example.ORG", "example.org"),
    ("example.org.", "example.org"),
    ("bücher.example", "xn--bcher-kva.example"),
    ("BÜCHER.example", "xn--bcher-kva.example"),
    ("bu\u0308cher。example", "xn--bcher-kva.example"),
    ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
    ("faß.example", "xn--fa-hia.example"),  # IDNA 2008, not 2003's "fass"
    ("ｅxample.org", "example.org"),
    ("localhost", "localhost"),
])
def test_domains(text: str, name: str) -> None:
    assert check_domain(text) == name == fold_domain(text)


@pytest.mark.parametrize("text", [
    "", ".", "..", "a..b", ".a", "-a.example", "a-.example", "a_b.example", "a b", "a/b", "../x",
    "a\0b", "a\nb", "a@b", "[127.0.0.1]", "127.0.0.1", "x" * 64 + ".example",
    "a." * 127 + "example", "xn--a", "\udc80.example", "℀.example",
])
def test_what_is_no_domain(text: str) -> None:
    with pytest.raises(DirectoryError, match="; expected "):
        check_domain(text)


@given(TEXT | NASTY)
def test_checked_domains_name_one_directory(text: str) -> None:
    try:
        name = check_domain(text)
    except DirectoryError:
        return
    assert os.path.normpath(f"/mail/{name}") == f"/mail/{name}" != "/mail/"
    assert name == check_domain(name) == fold_domain(text)
    assert len(name) <= 253 and name.isascii() and name == name.lower()


@pytest.mark.parametrize(("text", "address"), [
    ("Bob@Example.org", Address("Bob", "example.org")),
    ('"a b"@example.org', Address("a b", "example.org")),
    (r'"a\"\\b"@example.org', Address(r'a"\b', "example.org")),
    ('"@example.org', Address('"', "example.org")),
    ('"ab@example.org', Address('"ab', "example.org")),
    ('ab"@example.org', Address('ab"', "example.org")),
    ("a@b@example.org", Address("a@b", "example.org")),
    ("e\u0301@example.org", Address("é", "example.org")),
    ("x" * 64 + "@example.org", Address("x" * 64, "example.org")),
])
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == address == check_address(address)


def test_separators_are_the_specials_of_an_atom_and_the_dot() -> None:
    # RFC 5321 §4.1.2, RFC 5322 §3.2.3: atext, but for letters and digits.
    atext = {chr(octet) for octet in range(0x21, 0x7f)} - set('()<>[]:;@\\,."')
    assert {each for each in atext if not each.isalnum()} | {"."} == SEPARATORS


@pytest.mark.parametrize(("text", "problem"), [
    ("bob", "'bob' has no domain; expected local-part@domain"),
    ("@example.org", "the local-part is empty; expected local-part@domain"),
    ('""@example.org', "the local-part is empty; expected local-part@domain"),
    ("bob@", "'' is not a domain name; expected letters, digits and hyphens between dots"),
    ("bob@[127.0.0.1]", "'[127.0.0.1]' is not a domain name; expected"),
    ("bob@127.0.0.1", "'127.0.0.1' is an IP address; expected a domain name"),
    ("b\rob@example.org", r"'b\rob' holds control or invisible characters; leave them out"),
    ("b\nob@example.org", r"'b\nob' holds control"),
    ("b\0ob@example.org", r"'b\x00ob' holds control"),
    ("b\x7fob@example.org", r"'b\x7fob' holds control"),
    ("b\u202eob@example.org", r"'b\u202eob' holds control or invisible"),
    ("b\u200dob@example.org", r"'b\u200dob' holds control or invisible"),
    ("b\udc80ob@example.org", r"'b\udc80ob' holds control"),
    ("b\u2028ob@example.org", r"'b\u2028ob' holds control"),
    ("b\u2029ob@example.org", r"'b\u2029ob' holds control"),
    ("b\ue000ob@example.org", r"'b\ue000ob' holds control"),
    ("b\u0378ob@example.org", r"'b\u0378ob' holds control"),
    ("x" * 65 + "@example.org", "is too long; a local-part has at most 64 octets"),
    ("é" * 33 + "@example.org", "is too long; a local-part has at most 64 octets"),
])
def test_what_is_no_address(text: str, problem: str) -> None:
    with pytest.raises(DirectoryError) as caught:
        parse_address(text)
    assert problem in str(caught.value)
    assert str(caught.value) == f"{caught.value.problem}; {caught.value.remedy}"
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("local_part", [
    "bob", "Bob.Smith", "Xenia", "user+tag", "a b", "~bob", "a..b", "b-", "é", "a\\b", "a:b", "a@b",
    "∕etc", "x" * 64])
def test_names_fit_for_a_maildir(local_part: str) -> None:
    check_maildir_name(local_part)


@pytest.mark.parametrize("local_part", [
    "../x", "..", ".", "...", ".hidden", "a/b", "/", "/etc/passwd", "a/../b", "-rf", "-", " bob",
    "bob ",
    "\u2024\u2024",  # one dot leaders
    "\u2025",  # a two dot leader
    "\uff0e\uff0e\uff0fx", "a\uff0fb",  # full-width
    "\u2100",  # account of, a/c
    "\u3000bob", "\uff0drf",
])
def test_names_that_could_lead_elsewhere(local_part: str) -> None:
    with pytest.raises(DirectoryError, match="cannot name a mail directory; choose a name without"):
        check_maildir_name(local_part)


@given(TEXT | NASTY)
def test_no_name_escapes_its_domain(text: str) -> None:
    try:
        address = check_address(Address(text, "example.org"))
        check_maildir_name(address.local_part)
    except DirectoryError:
        return
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        name = unicodedata.normalize(form, address.local_part)
        path = f"/mail/example.org/{name}"
        assert os.path.dirname(os.path.normpath(path)) == "/mail/example.org"
        assert "\0" not in name
    assert 0 < len(address.local_part.encode()) <= 64
