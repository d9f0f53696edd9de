"""The argument of XCLIENT."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailsvc.smtp.grammar import SyntaxFault
from mailsvc.smtp.xclient import ATTRIBUTES, XClient, parse


@pytest.mark.parametrize(("argument", "meant"), [
    # The examples of Postfix's XCLIENT_README.
    ("NAME=spike.porcupine.org ADDR=168.100.189.2",
     XClient(name="spike.porcupine.org", addr="168.100.189.2")),
    ("NAME=[UNAVAILABLE] ADDR=168.100.189.2 PROTO=ESMTP HELO=spike.porcupine.org",
     XClient(name="", addr="168.100.189.2", proto="ESMTP", helo="spike.porcupine.org")),
    # As nginx says it.
    ("ADDR=192.0.2.7 LOGIN=bob@example.org NAME=[UNAVAILABLE]",
     XClient(addr="192.0.2.7", login="bob@example.org", name="")),
    ("ADDR=IPV6:2001:db8::7 PORT=56324", XClient(addr="2001:db8::7", port=56_324)),
    ("addr=ipv6:2001:DB8:0::7 proto=esmtp", XClient(addr="2001:db8::7", proto="ESMTP")),
    ("DESTADDR=198.51.100.25 DESTPORT=25", XClient(destaddr="198.51.100.25", destport=25)),
    ("NAME=[TEMPUNAVAIL] ADDR=[unavailable] PORT=[UNAVAILABLE] LOGIN=[UNAVAILABLE]",
     XClient(name="", addr="", port=0, login="")),
    ("HELO=[192.0.2.7]", XClient(helo="[192.0.2.7]")),
    ("HELO=[IPv6:2001:db8::7]", XClient(helo="[IPv6:2001:db8::7]")),
    ("LOGIN=b+C3+BCrger+2Bx+3D@example.org", XClient(login="bürger+x=@example.org")),
    ("LOGIN=two+20words", XClient(login="two words")),
    ("NAME=mail+2Eexample.org", XClient(name="mail.example.org")),
    (" PORT=1  PROTO=SMTP ", XClient(port=1, proto="SMTP")),
])
def test_an_argument(argument: str, meant: XClient) -> None:
    assert parse(argument.encode()) == meant


@pytest.mark.parametrize("argument", [
    b"", b" ", b"ADDR", b"=", b"=192.0.2.7", b"ADDR=", b"NAME=", b"LOGIN=", b"PORT=", b"HELO=",
    b"SIZE=1", b"SESSION=1", b"ADDR=192.0.2.7 ADDR=192.0.2.8", b"ADDR=192.0.2.7 addr=192.0.2.7",
    b"ADDR=192.0.2", b"ADDR=192.0.2.07", b"ADDR=2001:db8::7", b"ADDR=IPV6:192.0.2.7",
    b"ADDR=IPV6:fe80::1%eth0", b"ADDR=IPV6:fe80::1+25eth0", b"ADDR=localhost",
    b"ADDR=192.0.2.7+0D+0A", b"ADDR=[UNKNOWN]",
    b"PORT=65536", b"PORT=-1", b"PORT=025", b"PORT=+2B1", b"PORT=x", b"PORT=+D9+A3",
    b"PROTO=LMTP", b"PROTO=\xc5\xbfMTP",
    b"NAME=-x.example", b"NAME=a..b", b"NAME=[192.0.2.7]", b"NAME=a+20b",
    b"HELO=x+0D+0AX-Forged:+20yes", b"HELO=x+20y", b"HELO=x+0Ay", b"HELO=<x>",
    b"LOGIN=bob+0A", b"LOGIN=bob+00", b"LOGIN=bob+1B[2J", b"LOGIN=bob+E2+80+AEx", b"LOGIN=+C3",
    b"LOGIN=+", b"LOGIN=+0", b"LOGIN=+GG", b"LOGIN=a=b", "LOGIN=bürger".encode(),
    b"\xc5\xbfIZE=1", b"\xff\xfe", b"NAME=[UNAVA\xc4\xb1LABLE]", b"ADDR\t=192.0.2.7",
    b"LOGIN=" + b"x" * 1020,
])
def test_a_malformed_argument(argument: bytes) -> None:
    with pytest.raises(SyntaxFault) as fault:
        parse(argument)
    assert fault.value.code == 501
    assert str(fault.value).isprintable()


@given(st.binary(max_size=60) | st.builds(
    lambda attribute, value: f"{attribute}={value}".encode(),
    st.sampled_from(ATTRIBUTES), st.text(st.characters(max_codepoint=126), max_size=30)))
def test_no_octets_bring_control_characters_into_a_value(argument: bytes) -> None:
    # PITFALLS, SMTP row 7.
    try:
        meant = parse(argument)
    except SyntaxFault:
        return
    for value in (meant.name, meant.addr, meant.proto, meant.helo, meant.login, meant.destaddr):
        assert value is None or value.isprintable()
        assert value is None or value == meant.login or " " not in value
