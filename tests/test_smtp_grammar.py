"""``mailsvc.smtp.grammar``: what is a path, a name, a parameter, and what is not."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

import idna
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mailsvc.mail import NULL_PATH, Address
from mailsvc.smtp import grammar
from mailsvc.smtp.grammar import AddressFault, PathArgument, SyntaxFault

Parser = Callable[[bytes], object]


def fault(parse: Parser, argument: bytes | str) -> SyntaxFault:
    """The fault that *parse* finds in *argument*."""
    with pytest.raises(SyntaxFault) as caught:
        parse(argument.encode() if isinstance(argument, str) else argument)
    return caught.value


def path(inside: str) -> Address:
    """What is between the brackets of RCPT."""
    return grammar.forward_path(f"TO:<{inside}>".encode()).path


LABEL = "a" * 63
#: 255 octets, the most that a domain may have.
LONGEST_DOMAIN = ".".join([LABEL] * 4)

# ---- paths ----

GOOD_PATHS = [
    ("a@b", "a", "b"),
    ("Smith@bar.example.com", "Smith", "bar.example.com"),
    ("User@EXAMPLE.Org", "User", "example.org"),
    ("a@b-c.d--e.example", "a", "b-c.d--e.example"),
    ("a@1.example", "a", "1.example"),
    ("a@example.123", "a", "example.123"),
    ("a@x_y.example", "a", "x_y.example"),
    ("a.b.c@d", "a.b.c", "d"),
    ("a+tag@b", "a+tag", "b"),
    ("!#$%&'*+-/=?^_`{|}~0@b", "!#$%&'*+-/=?^_`{|}~0", "b"),
    ("-a@b", "-a", "b"),
    # RFC 5321 §4.1.2: quoted strings; quotes that are not needed mean nothing.
    ('"a"@b', "a", "b"),
    ('"a b"@c', "a b", "c"),
    ('"a@b"@c', "a@b", "c"),
    ('"<a>"@b', "<a>", "b"),
    ('">"@b', ">", "b"),
    ('"a\\"b"@c', 'a"b', "c"),
    ('"a\\\\"@b', "a\\", "b"),
    ('"\\a\\ \\~"@b', "a ~", "b"),
    ('".a..b."@c', ".a..b.", "c"),
    ('""@b', "", "b"),
    ('"Joe.\\\\Blow"@example.org', "Joe.\\Blow", "example.org"),
    # Address literals (§4.1.3), written in one way.
    ("a@[192.0.2.1]", "a", "[192.0.2.1]"),
    ("a@[IPv6:2001:db8::1]", "a", "[IPv6:2001:db8::1]"),
    ("a@[ipv6:2001:DB8:0:0:0:0:0:1]", "a", "[IPv6:2001:db8::1]"),
    ("a@[IPv6:::1]", "a", "[IPv6:::1]"),
    ("a@[IPv6:2001:db8::192.0.2.1]", "a", "[IPv6:2001:db8::c000:201]"),
    # Source routes (appendix C) are for nothing.
    ("@hosta.int,@jkl.org:userc@d.bar.org", "userc", "d.bar.org"),
    ("@a:b@c", "b", "c"),
    ('@a,@b,@c:"d@e"@f', "d@e", "f"),
    # RFC 6531 §3.3, in NFC.
    ("пётр@пример.example", "пётр", "пример.example"),
    ("e\u0301@e\u0301.example", "é", "é.example"),
    ('"é x"@b', "é x", "b"),
    ("\u212aelvin@b", "Kelvin", "b"),
    ("a@BÜCHER.example", "a", "bücher.example"),
    ("a@ｅｘａｍｐｌｅ.org", "a", "example.org"),
    ("a@ｘ_y.example", "a", "x_y.example"),
    ("a@例え。テスト", "a", "例え.テスト"),
    ("a@\u212aelvin.example", "a", "kelvin.example"),
    ("a@xn--bcher-kva.example", "a", "xn--bcher-kva.example"),
    # Lengths at their limits (§4.5.3.1).
    ("a" * 64 + "@b", "a" * 64, "b"),
    ("é" * 32 + "@b", "é" * 32, "b"),
    ('"' + "a" * 64 + '"@b', "a" * 64, "b"),
    (f"a@{LABEL}.b", "a", f"{LABEL}.b"),
    ("a@" + LONGEST_DOMAIN[:252], "a", LONGEST_DOMAIN[:252]),
    (f"@{LONGEST_DOMAIN[:249]}:a@b", "a", "b"),
]

BAD_PATHS = [
    "a", "@b", "a@", "a@@b", "a@b@c", "@", "a b@c", "a@b c", " a@b", "a@b ", "a@b<", "<a@b",
    # Dots and hyphens.
    ".a@b", "a.@b", "a..b@c", "a@.b", "a@b.", "a@b..c", "a@-b", "a@b-", "a@b.-c", "a@b-.c",
    # Specials outside quotes.
    "a(b)@c", "a,b@c", "a;b@c", "a:b@c", "a\\b@c", "a[b]@c", "a@b(c)", "a@b;c", "a@b/c", "a@b!c",
    # Quotes.
    '"a@b', 'a"@b', '"a"b@c', 'a"b"@c', '"a""b"@c', '"a"."b"@c', '"a\\"@b', '"a"', '"a"@',
    # Control characters, quoted or not.
    "a\x00@b", "a\t@b", '"a\x00"@b', '"a\tb"@c', '"a\\\x00"@b', '"a\x7f"@b', '"\\\x7f"@b',
    "a\x1b@b", "a\x7f@b", '"a\x1f"@b', '"\\\x1f"@b',
    "a@b\x00c", '"\\é"@b',
    # Address literals.
    "a@[]", "a@[192.0.2]", "a@[192.0.2.256]", "a@[192.0.2.01]", "a@[0300.0.2.1]", "a@[1.2.3.4.5]",
    "a@192.0.2.1]", "a@[192.0.2.1", "a@[IPv6:]", "a@[IPv6:1]", "a@[2001:db8::1]",
    "a@[IPv6:1::2::3]",
    "a@[IPv6:fe80::1%eth0]", "a@[IPv6:fe80::1%);x]", "a@[IPv6:12345::]", "a@[IPv6:192.0.2.1]",
    "a@[Tag:x]", "a@[ 192.0.2.1]", "a@[192.0.2.1].b", "a@[192.0.2.1]b", "a@[١٩٢.0.2.1]",
    "a@[IPv6:2001:db8::1/64]", "a@[IPv4:192.0.2.1]", "a@[\\192.0.2.1]",
    # Source routes.
    "@a:", "@a,@b:", "@:b@c", "@a,:b@c", "@a,b:c@d", "@a@b:c@d", "@a.:b@c", "@a:@b:c@d", ",@a:b@c",
    "@[192.0.2.1]:a@b", "@a:b",
    # Domains of other scripts.
    "a@\u00ad", "a@\u202eb.example", "a@b\u2024\u2024c", "a@℀.example", "a@\u0301b.example",
    "a@xn--\u00e9.example", "a@b。", "a@。b", "a@\U0001f4ec.example", "a@b\u3000c",
    "a@" + "é" * 60 + ".example",
    # Lengths beyond their limits.
    "a" * 65 + "@b", "é" * 33 + "@b", "a" * 63 + "é@b", '"' + "a" * 65 + '"@b',
    "a@" + "b" * 64, f"a@c.{'b' * 64}.d", "a@" + LONGEST_DOMAIN[:253],
    f"@{LONGEST_DOMAIN[:250]}:a@b",
]


@pytest.mark.parametrize(("inside", "local_part", "domain"), GOOD_PATHS)
def test_a_path_is_read_in_both_commands(inside: str, local_part: str, domain: str) -> None:
    # RFC 6531 §3.4: what is not ASCII on the wire needs SMTPUTF8, whatever it means.
    expected = PathArgument(Address(local_part, domain), {}, not inside.isascii())
    assert grammar.forward_path(f"TO:<{inside}>".encode()) == expected
    assert grammar.reverse_path(f"FROM:<{inside}>".encode()) == expected


@pytest.mark.parametrize(("inside", "local_part", "domain"), GOOD_PATHS)
def test_a_path_is_written_as_it_can_be_read(inside: str, local_part: str, domain: str) -> None:
    address = path(inside)
    assert path(str(address)) == address


@pytest.mark.parametrize("inside", BAD_PATHS)
def test_what_is_no_path_is_refused_in_both_commands(inside: str) -> None:
    assert fault(grammar.forward_path, f"TO:<{inside}>").code in (501, 553)
    assert fault(grammar.reverse_path, f"FROM:<{inside}>").code in (501, 553)


@pytest.mark.parametrize("inside", ["a", "a.b", '"a b"', "пётр", '""', "postmasters"])
def test_a_mailbox_without_a_domain_is_553(inside: str) -> None:
    assert fault(grammar.forward_path, f"TO:<{inside}>").code == 553
    assert fault(grammar.reverse_path, f"FROM:<{inside}>").code == 553


@pytest.mark.parametrize(("argument", "text"), [
    (b"TO:a@b", "Syntax: RCPT TO:<address>"),
    (b"TO:<>", "A recipient cannot be empty"),
    (b"TO:<a@b", "Syntax: RCPT TO:<address>"),
    (b"TO:<a>", "The mailbox needs a domain; expected local-part@domain"),
    (b"TO:<a@b.>", "Not a mailbox; expected local-part@domain"),
    (b"TO:<" + b"a" * 65 + b"@b>", "Local-part too long"),
    (b"TO:<a@" + b"b" * 64 + b">", "Label of a domain too long"),
    (b"TO:<a@[1]>", "Malformed address literal"),
    (b"TO:<\xff@b>", "Neither ASCII nor UTF-8"),
    (b"TO:<a@\xe2\x80\xae>", "Malformed domain: not a valid internationalized name"),
    (b"TO:<a@\xc2\xad>", "Malformed domain"),
    (b"TO:<a@" + LONGEST_DOMAIN.encode() + b">", "Path too long"),
])
def test_a_fault_says_what_was_expected(argument: bytes, text: str) -> None:
    assert str(fault(grammar.forward_path, argument)) == text


@pytest.mark.parametrize("inside", ["", "a", "a@b.", "a" * 65 + "@b", "a@" + "b" * 64, "a@[1]",
                                    "a@\u202e", "a@\u00ad", "a@" + LONGEST_DOMAIN])
def test_a_fault_of_the_address_is_told_from_one_of_the_command(inside: str) -> None:
    assert type(fault(grammar.forward_path, f"TO:<{inside}>")) is AddressFault
    assert type(fault(grammar.mailbox, f"{inside} ")) is AddressFault
    for argument in ("", "TO:a@b", "TO:<a b@c>", "TO:<a@b> =", "TO:<a@b>x"):
        assert type(fault(grammar.forward_path, argument)) is SyntaxFault


def test_the_commands_name_themselves_in_faults() -> None:
    assert str(fault(grammar.reverse_path, b"")) == "Syntax: MAIL FROM:<address>"
    assert str(fault(grammar.forward_path, b"")) == "Syntax: RCPT TO:<address>"


def test_the_null_reverse_path() -> None:
    assert grammar.reverse_path(b"FROM:<>") == PathArgument(NULL_PATH, {})
    assert grammar.reverse_path(b"FROM:<> SIZE=1").path is NULL_PATH


@pytest.mark.parametrize("argument", [b"TO:<>", b"TO:< >", b"TO:<@a:>", b'TO:<"">'])
def test_there_is_no_null_forward_path(argument: bytes) -> None:
    assert fault(grammar.forward_path, argument)


@pytest.mark.parametrize("argument", [b"FROM:<@a:>", b"FROM:<@a,@b:>", b'FROM:<"">', b"FROM:< >"])
def test_what_looks_like_nothing_is_not_the_null_reverse_path(argument: bytes) -> None:
    assert fault(grammar.reverse_path, argument)


@pytest.mark.parametrize("name", ["postmaster", "Postmaster", "POSTMASTER", "pOstMaster"])
def test_postmaster_needs_no_domain_to_receive(name: str) -> None:
    assert path(name) == Address("postmaster", "")
    assert fault(grammar.reverse_path, f"FROM:<{name}>").code == 553
    assert path(f"{name}@b") == Address(name, "b")


@pytest.mark.parametrize("name", [
    "po\u017ftmaster", "postmaste\u0280", "postmaster ", "p\u043estmaster",
])
def test_who_looks_like_postmaster_does(name: str) -> None:
    assert fault(grammar.forward_path, f"TO:<{name}>")


@pytest.mark.parametrize("argument", [
    "TO:<a@b>", "to:<a@b>", "tO:<a@b>", "TO: <a@b>", "TO:   <a@b>", "TO:<a@b> ", "TO:<a@b>   ",
])
def test_leniency_with_case_and_spaces(argument: str) -> None:
    assert grammar.forward_path(argument.encode()) == PathArgument(Address("a", "b"), {})


@pytest.mark.parametrize("argument", [
    "", "TO", "TO:", "TO<a@b>", "TO :<a@b>", " TO:<a@b>", "T:<a@b>", "TOO:<a@b>", "FROM:<a@b>",
    "TO:\t<a@b>", "TO:a@b", "TO:<<a@b>>", "TO:<a@b>>", "TO:<a@b>x", "TO:<a@b>X=1", "TO:<a@b",
    "TO:a@b>", "TO:x<a@b>", "TO:X<a@b>", 'TO:"x" <a@b>', "TO:<a@b>, <c@d>",
    "TO:<a@b><c@d>",
    "TO::<a@b>", ":<a@b>", "\u01eb:<a@b>", "TO\u0338:<a@b>", "\uff34\uff2f:<a@b>",
    "TO:<a@b>\u0338", "TO:\u226ea@b>", "TO:<a@b\u226f", "TO\uff1a<a@b>", "TO:\u00a0<a@b>",
])
def test_what_is_not_to(argument: str) -> None:
    assert fault(grammar.forward_path, argument).code == 501


@pytest.mark.parametrize("argument", [
    "\ufb01:<a@b>", "FRO\u217f:<a@b>", "FROM:<a@b>\0", "TO:<a@b>",
])
def test_what_is_not_from(argument: str) -> None:
    assert fault(grammar.reverse_path, argument).code == 501


def test_a_path_is_256_octets_with_its_brackets_and_its_route() -> None:
    for length, parses in ((254, True), (255, False)):
        inside = "@" + LONGEST_DOMAIN[: length - 5] + ":a@b"
        assert len(inside) == length
        argument = f"TO:<{inside}>".encode()
        if parses:
            assert grammar.forward_path(argument).path == Address("a", "b")
        else:
            assert str(fault(grammar.forward_path, argument)) == "Path too long"


def test_octets_are_counted_not_characters() -> None:
    inside = "a" * 10 + "@" + ".".join(["é" * 20] * 6)
    assert len(inside) < 254 < len(inside.encode()) + 2
    assert str(fault(grammar.forward_path, f"TO:<{inside}>")) == "Path too long"
    assert str(fault(grammar.mailbox, inside)) == "Path too long"


# ---- parameters ----


@pytest.mark.parametrize(("tail", "found"), [
    ("", {}),
    ("   ", {}),
    ("SIZE=1", {"SIZE": "1"}),
    ("size=1 Body=8bitmime", {"SIZE": "1", "BODY": "8bitmime"}),
    ("SMTPUTF8", {"SMTPUTF8": None}),
    ("  A   B  ", {"A": None, "B": None}),
    ("X-1=~!<", {"X-1": "~!<"}),
    ("X-1=~!;:@[]", {"X-1": "~!;:@[]"}),
    ("X=<a@b>", {"X": "<a@b>"}),
    ("1=2", {"1": "2"}),
    ("A-=b", {"A-": "b"}),
    ("A=é", {"A": "é"}),
    ("A=" + "b" * 1500, {"A": "b" * 1500}),
    # Not a parameter.
    ("=1", None), ("A=", None), ("A==", None), ("A=b=c", None), ("-A=1", None), ("A_B=1", None),
    ("A\t=1", None), ("A=\t", None), ("A=b\x00", None), ("A=b\x7f", None), ("é=1", None),
    # Look-alikes: the long s, the Kelvin sign, the dotless i.
    ("\u017fIZE=1", None), ("FOO\u212a=1", None), ("S\u0131ZE=1", None), ("SIZE\u00b2=1", None),
    # Given twice, in any case.
    ("SIZE=1 SIZE=1", None), ("SIZE=1 size=2", None), ("A A", None), ("A=1 A", None),
])
def test_parameters(tail: str, found: dict[str, str | None] | None) -> None:
    argument = f"FROM:<a@b> {tail}".encode()
    if found is None:
        assert fault(grammar.reverse_path, argument).code == 501
        return
    assert grammar.reverse_path(argument) == PathArgument(Address("a", "b"), found)
    assert grammar.forward_path(argument.replace(b"FROM", b"TO")).parameters == found


def test_faults_of_parameters_say_what_was_expected() -> None:
    twice = fault(grammar.reverse_path, b"FROM:<> SIZE=1 size=2")
    assert str(twice) == "Parameter SIZE given twice"
    malformed = fault(grammar.reverse_path, b"FROM:<> =")
    assert str(malformed) == "Malformed parameter; expected KEYWORD or KEYWORD=value"


@pytest.mark.parametrize(("value", "octets"), [
    ("0", 0), ("1", 1), ("00", 0), ("52428800", 52428800),
    ("9" * 20, 10**20 - 1), ("0" * 20, 0),
])
def test_a_size_has_one_to_twenty_digits(value: str, octets: int) -> None:
    assert grammar.size(value) == octets


@pytest.mark.parametrize("value", [
    None, "", "-1", "+1", "1.0", "1e3", "0x10", "1 ", " 1", "1_000", "9" * 21, "0" * 21, "\u0661",
    "\u00b2", "\uff11", "one", "1\n",
])
def test_what_is_no_size(value: str | None) -> None:
    with pytest.raises(SyntaxFault, match=r"^SIZE takes a number of octets$"):
        grammar.size(value)


@pytest.mark.parametrize(("value", "found"), [
    ("7BIT", "7BIT"), ("8BITMIME", "8BITMIME"), ("8bitmime", "8BITMIME"), ("7bIt", "7BIT"),
])
def test_a_body(value: str, found: str) -> None:
    assert grammar.body(value) == found


@pytest.mark.parametrize("value", [
    None, "", "8BIT", "BINARY", "7BIT ", "8B\u0131TM\u0131ME", "\u0667BIT", "7BIT\u0338",
])
def test_what_is_no_body(value: str | None) -> None:
    with pytest.raises(SyntaxFault, match=r"^BODY is 7BIT or 8BITMIME$"):
        grammar.body(value)


def test_a_flag_has_no_value() -> None:
    assert grammar.flag(None) is True
    for value in ("", "1", "TRUE"):
        with pytest.raises(SyntaxFault, match=r"^This parameter takes no value$"):
            grammar.flag(value)


# ---- HELO and EHLO ----


@pytest.mark.parametrize(("argument", "name"), [
    ("client.example", "client.example"),
    ("Client.EXAMPLE", "client.example"),
    ("localhost", "localhost"),
    ("my_pc", "my_pc"),
    ("192.0.2.1", "192.0.2.1"),
    ("[192.0.2.1]", "[192.0.2.1]"),
    ("[IPv6:::1]", "[IPv6:::1]"),
    ("[::1]", "[IPv6:::1]"),
    ("[2001:DB8::1]", "[IPv6:2001:db8::1]"),
    ("[ipv6:2001:db8::1]", "[IPv6:2001:db8::1]"),
    ("client.example.", "client.example"),
    # RFC 6531 §3.7.1: there is no SMTPUTF8 before EHLO was answered.
    ("bücher.example", "xn--bcher-kva.example"),
    ("BÜCHER.example.", "xn--bcher-kva.example"),
    ("ｅｘａｍｐｌｅ", "example"),
    (LABEL, LABEL),
    (LONGEST_DOMAIN, LONGEST_DOMAIN),
    (LONGEST_DOMAIN + ".", LONGEST_DOMAIN),
    (LONGEST_DOMAIN[:253] + ".a", LONGEST_DOMAIN[:253] + ".a"),
])
def test_a_client_says_its_name(argument: str, name: str) -> None:
    assert grammar.hello(argument.encode()) == name


@pytest.mark.parametrize("argument", [
    b"a b", b"client.example..", b".", b"..", b"-", b"a..b", b"a@b", b"<a>", b"a\tb", b"a\x1b[31m",
    b"a;b", b"[]", b"[", b"]", b"[192.0.2.1", b"[::1", b"[::1]x", b"[IPv4:192.0.2.1]",
    b"[1:192.0.2.1]", b"[::1].", b"[fe80::1%eth0]", b"[IPv6:fe80::1%eth0]", b"[x]", b"\xff",
    b"\xc2\x80",
    # One octet too many, in a label and in all.
    b"b" * 64, LONGEST_DOMAIN[:254].encode() + b".a", LONGEST_DOMAIN.encode() + b".a",
    ("é" * 57 + ".").encode() + LONGEST_DOMAIN.encode()[:250], b"\xe2\x80\xae",
    b"(a)", b'"a"', b"a\x00",
])
def test_what_is_no_name(argument: bytes) -> None:
    found = fault(grammar.hello, argument)
    assert found.code == 501
    assert str(found) in ("Not a domain or an address literal", "Neither ASCII nor UTF-8")


def test_a_client_must_say_its_name() -> None:
    assert str(fault(grammar.hello, b"")) == "Say who you are: EHLO your.host.name"


def test_the_limits_of_a_name_are_those_of_its_ascii_form() -> None:
    # RFC 6531 §3.3 with RFC 5890 §2.3.2.1: 63 octets as an A-label, whatever UTF-8 takes.
    label = "é" + "a" * 55
    assert len(idna.encode(label)) == 63
    assert grammar.hello(label.encode()) == idna.encode(label).decode()
    assert fault(grammar.hello, label + "a")
    wide = "例" * 50
    assert len(wide.encode()) > 63 >= len(idna.encode(wide))
    assert grammar.hello(wide.encode()) == idna.encode(wide).decode()


# ---- VRFY and EXPN ----


@pytest.mark.parametrize(("argument", "local_part", "domain"), [
    ("user", "user", ""), ("<user>", "user", ""), ("user@B", "user", "b"),
    ("<user@b>", "user", "b"),
    ('"a b"', "a b", ""), ('"a b"@c', "a b", "c"), ("пётр", "пётр", ""), ('""@b', "", "b"),
    ("a" * 64, "a" * 64, ""), ("e\u0301", "é", ""), ("a@[192.0.2.1]", "a", "[192.0.2.1]"),
    ("<" + '"' + ("\\a" * 64) + '"@' + LONGEST_DOMAIN[:123] + ">", "a" * 64, LONGEST_DOMAIN[:123]),
])
def test_a_mailbox(argument: str, local_part: str, domain: str) -> None:
    assert grammar.mailbox(argument.encode()) == Address(local_part, domain)


@pytest.mark.parametrize("argument", [
    "", "<>", "a b", "<a", "a>", "@b", "a@", '""', '<"">', "a" * 65, "a@b c", "<<a>>", "@a:b@c",
    "\x1b", "a@" + LONGEST_DOMAIN[:253], "<a@" + LONGEST_DOMAIN[:253] + ">", "Ann <a@b>",
])
def test_what_is_no_mailbox(argument: str) -> None:
    assert fault(grammar.mailbox, argument)


def test_a_bracket_too_few_is_part_of_the_name() -> None:
    for argument in ("<a@b", "<a@bc", "a@b>", "aa@b>", "<", ">"):
        assert str(fault(grammar.mailbox, argument)) == "Not a mailbox; expected local-part@domain"


# ---- BDAT ----


@pytest.mark.parametrize(("argument", "expected"), [
    (b"0", (0, False)), (b"0 LAST", (0, True)), (b"86 last", (86, True)), (b"1 \t LaSt", (1, True)),
    (b"007", (7, False)), (b"99999999999999", (99999999999999, False)),
    (b"9" * 20, (10**20 - 1, False)), (b"9" * 20 + b" LAST", (10**20 - 1, True)),
])
def test_a_chunk(argument: bytes, expected: tuple[int, bool]) -> None:
    assert grammar.chunk(argument) == expected


@pytest.mark.parametrize("argument", [
    b"", b"LAST", b"-1", b"+1", b"1.5", b"1e3", b"0x10", b"1LAST", b"1 LAST LAST", b"1 LASTS",
    b"1 FIRST", b"1 LAS", b"1\nLAST", b"1,LAST", b"9" * 21, b"9" * 21 + b" LAST", b" 1", b"1 ",
    b"1 2", b"\xd9\xa1", b"1 LA\xc5\xbfT", b"1_0", b"1 LAST ", b"one",
])
def test_what_is_no_chunk(argument: bytes) -> None:
    assert str(fault(grammar.chunk, argument)) == "Syntax: BDAT octets [LAST]"


# ---- whatever comes ----

PARSERS: list[Parser] = [
    grammar.hello, grammar.reverse_path, grammar.forward_path, grammar.mailbox, grammar.chunk,
]

fragments = st.lists(st.sampled_from([
    "FROM:", "TO:", "<", ">", "@", ":", ",", ".", "-", '"', "\\", " ", "a", "Z", "9", "_", "[", "]",
    "IPv6:", "192.0.2.1", "::1", "%", "=", "SIZE", "postmaster", "é", "e\u0301", "\u212a", "\u017f",
    "\u0130", "\u00ad", "。", "ｅ", "\u200d", "\u05d0", "\u0338", "xn--", "\0", "\x1b", "\x85",
    "\U0001f4ec", "\U0010ffff", "例", "ß", "ς", "\ufb01", "\u2488", "\u0640", "a" * 63,
]), max_size=14).map(lambda parts: "".join(parts).encode())

arguments = st.one_of(
    st.binary(max_size=80),
    st.text(max_size=40).map(str.encode),
    fragments,
    st.builds(lambda word, inside: word + b":<" + inside + b">",
              st.sampled_from([b"FROM", b"TO"]), fragments),
    st.builds(lambda local, domain: b"TO:<" + local + b"@" + domain + b">", fragments, fragments),
    st.builds(lambda domain: b"TO:<a@" + domain.encode() + b">", st.text(max_size=12)),
)


@settings(deadline=None, max_examples=400)
@given(st.sampled_from(PARSERS), arguments)
def test_any_octets_are_a_value_or_a_fault(parse: Parser, argument: bytes) -> None:
    try:
        value = parse(argument)
    except SyntaxFault as caught:
        assert caught.code in (501, 553)
        # What the client is told is ours but for a keyword, and that is ASCII.
        assert re.fullmatch(r"[\x20-\x7e]+", str(caught))
        return
    address = value.path if isinstance(value, PathArgument) else value
    if isinstance(address, Address):
        assert_sound(address)
    elif isinstance(address, str):
        assert address.isascii()
        assert grammar.hello(address.encode()) == address


def assert_sound(address: Address) -> None:
    """What the rest of the service may rely on."""
    for part in (address.local_part, address.domain):
        assert not re.search(r"[\x00-\x1f\x7f]", part)
        assert unicodedata.is_normalized("NFC", part)
    assert len(address.local_part.encode()) <= 64
    assert not address.domain.endswith(".")
    assert not re.search(r"""[\s"(),;<>@\\]""", address.domain)
    if not address.domain:
        assert address in (NULL_PATH, Address("postmaster", "")) or address.local_part
    elif address.domain.startswith("["):
        assert re.fullmatch(r"\[(IPv6:)?[0-9a-f:.]+\]", address.domain)
    else:
        # As UTS 46 folds it: lower case, but for Cherokee, which folds to capitals.
        assert address.domain == idna.uts46_remap(address.domain, std3_rules=False)
        alabels = address.domain if address.domain.isascii() else idna.encode(address.domain)
        assert len(alabels) <= 255
    if address != NULL_PATH:
        assert grammar.mailbox(str(address).encode()) == address


characters = st.characters(exclude_categories=["Cs"], exclude_characters="\x00\x7f",
                           min_codepoint=0x20)
local_parts = st.one_of(
    st.text(characters, max_size=20),
    st.text(st.sampled_from('a.@"\\ <>é'), max_size=20),
).map(lambda text: unicodedata.normalize("NFC", re.sub(r"[\x80-\x9f]", "", text)))
domains = st.one_of(
    st.from_regex(r"[a-z0-9_]([a-z0-9_-]{0,10}[a-z0-9_])?(\.[a-z0-9]{1,6}){0,3}", fullmatch=True),
    st.sampled_from(["bücher.example", "例え.テスト", "пример.example", "faß.de", "[192.0.2.1]",
                     "[IPv6:2001:db8::1]"]),
    st.ip_addresses(v=6).map(lambda ip: f"[IPv6:{ip}]"),
)


@settings(deadline=None, max_examples=400)
@given(local_parts, domains)
@example("", "a")
@example('"', "a")
@example("\\" * 64, "a")
def test_an_address_is_read_as_it_was_written(local_part: str, domain: str) -> None:
    address = Address(local_part, domain)
    written = str(address)
    if len(written.encode()) > 254 or len(local_part.encode()) > 64:
        return
    assert path(written) == address
    assert grammar.reverse_path(f"FROM:<{written}> SIZE=1".encode()).path == address
    assert grammar.mailbox(written.encode()) == address


# At the longest command line, what makes a backtracking pattern try everything: should one of them
# take steps in the square or the power of its length, this does not end.
N = 65_536


@pytest.mark.parametrize("inside", [
    "a" * N, "a." * N, "." * N, "a-" * N, "-" * N, "a@" + "b-" * N, "a@" + "b." * N,
    "a@" + "b" * N + "!", "a@" + "-b" * N, "@a" * N, "@a," * N, "@a,@b" * N + ":",
    "@" + "a" * N + ":",
    "@" + "a." * N + "a:", '"' * N, '"' + "\\" * N, '"' + "\\a" * N, '"' + "a" * N, '""' * N,
    '"a"' * N + "@", "<" * N, ">" * N, "a@[" + "1." * N, "a@[IPv6:" + ":" * N + "]", "[" * N,
    "é" * N, "e\u0301" * N, "a@" + "é" * N, "a@" + "é." * N, "a@" + "\u0301" * N, "=" * N, " " * N,
    "@" + "a-" * N + ",@", '"' + " " * N + "<" * N,
])
@pytest.mark.parametrize("form", ["FROM:<{}>", "FROM:<{}", "FROM:<a@b> {}", "FROM:{}", "{}"])
def test_long_input_is_refused_in_a_bounded_number_of_steps(form: str, inside: str) -> None:
    argument = form.format(inside).encode()
    for parse in PARSERS:
        try:
            parse(argument)
        except SyntaxFault:
            continue
        # A long value of a parameter, or nothing but spaces: there is nothing wrong with those.
        assert parse is grammar.reverse_path


# ---- ATRN ----


@pytest.mark.parametrize(("argument", "found"), [
    ("", ()), ("example.org", ("example.org",)),
    ("EXAMPLE.org,a.example", ("example.org", "a.example")),
    ("a.example , b.example,a.example", ("a.example", "b.example")),
    ("bücher.example", ("xn--bcher-kva.example",))])
def test_the_domains_of_atrn(argument: str, found: tuple[str, ...]) -> None:
    assert grammar.domains(argument.encode()) == found


@pytest.mark.parametrize("argument", [
    ",", "a.example,", ",a.example", "a.example b.example", "a.example,,b.example", "[192.0.2.1]",
    "a..example", "@a.example", "a.example.", "-a.example", "a" * 64 + ".example"])
def test_what_are_no_domains_of_atrn(argument: str) -> None:
    assert str(fault(grammar.domains, argument)) == "Syntax: ATRN [domain,domain]"


@given(st.binary(max_size=100))
def test_any_octets_behind_atrn_are_domains_or_a_fault(argument: bytes) -> None:
    try:
        found = grammar.domains(argument)
    except SyntaxFault:
        return
    assert all(name.isascii() and name for name in found) and len(set(found)) == len(found)
