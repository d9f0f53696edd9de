r"""Dialogues that show whether a server can be misled, as data: ``mailsvc doctor --deep``.

Each :class:`Probe` says something to a server, and which answers are right.  A step is said when
the one before was answered; the last is always QUIT, or what should end the connection.  Answers
are one word each: of SMTP the code, of POP3 ``+`` or ``-``; ``TLS`` for a handshake, ``refused``
for one that was turned down, ``end`` where the server closed, ``silent`` where it did not in time.

The holes are those that servers have had: open relays; data that end elsewhere than at CRLF.CRLF
(smuggling, CVE-2023-51764 and others); what is said before a TLS handshake and obeyed behind it
(CVE-2011-0411 and others); BDAT out of step; lines and numbers without end; HTTP at a mail port.
"""

from __future__ import annotations

from dataclasses import dataclass

from mailsvc.doctor.facts import Verdict


class StartTLS:
    """The step that is a handshake."""


TLS = StartTLS()

Step = bytes | StartTLS


@dataclass(frozen=True, slots=True)
class Probe:
    r"""One dialogue.

    :ivar what: what it is about.
    :ivar kinds: of the listeners that it is for.
    :ivar steps: what is said; ``{to}``, ``{domain}``, ``{user}`` and ``{password}`` are filled in.
    :ivar right: the answers, joined by blanks, that are right: a regular expression.
    :ivar wrong: what another answer means.
    :ivar verdict: of that.
    :ivar judged: what the answers must be for the probe to mean anything.
    :ivar offered: what must stand in the text of the answers for it to mean anything.
    :ivar never: what must not stand in it: a regular expression.
    :ivar abroad: whether it is for servers on other machines alone.
    """

    what: str
    kinds: tuple[str, ...]
    steps: tuple[Step, ...]
    right: str
    wrong: str
    verdict: Verdict = Verdict.FAIL
    judged: str = ""
    offered: bytes = b""
    never: bytes = b""
    abroad: bool = False

    def needs(self, place: str) -> bool:
        """Whether ``{place}`` is to be filled in."""
        return any(isinstance(step, bytes) and b"{%s}" % place.encode() in step
                   for step in self.steps)


_SMTP, _CLEAR = ("smtp", "submission", "submissions"), ("smtp", "submission")
_EHLO, _QUIT = b"EHLO probe.invalid\r\n", b"QUIT\r\n"
_OUTSIDE = b"MAIL FROM:<probe@example.net>\r\n"

#: Ends of data that are none (RFC 5321 §4.1.1.4: only CRLF.CRLF is one).
ENDS = {
    "LF.LF": b"\n.\n", "LF.CRLF": b"\n.\r\n", "CRLF.LF": b"\r\n.\n", "CR.CR": b"\r.\r",
    "CR.CRLF": b"\r.\r\n", "CRLF.CR": b"\r\n.\r", "CR.LF": b"\r.\n", "LF.CR": b"\n.\r",
    "CRLF.NUL.CRLF": b"\r\n.\0\r\n", "CRLF.NUL": b"\r\n\0.\r\n",
}


def _relays() -> tuple[Probe, ...]:
    plain = b"RCPT TO:<probe@example.com>\r\n"
    # RFC 5321 §3.6.1, appendix F.2; what no standard has, but servers once knew.
    detours = tuple(b"RCPT TO:<" + path + b">\r\n" for path in (
        b"probe%example.com@{domain}", b'"probe@example.com"@{domain}',
        b"example.com!probe@{domain}", b"@{domain}:probe@example.com",
        b"probe@example.com@{domain}"))
    # MAIL may be refused, and then so is all behind it.
    right = r"220 250 \d{3}( [45]\d\d)+ 221 end|220 250 .*[45]\d\d end"
    senders = {"from outside": _OUTSIDE, "from nobody": b"MAIL FROM:<>\r\n",
               "in our own name": b"MAIL FROM:<postmaster@{domain}>\r\n"}
    return (
        *(Probe(f"relay {how}", _SMTP, (_EHLO, sender, plain, _QUIT), right,
                "takes mail for others from anybody: an open relay")
          for how, sender in senders.items()),
        Probe("relay by a detour", _SMTP, (_EHLO, _OUTSIDE, *detours, _QUIT), right,
              "takes mail for an address that names another host: it relays it, or has a "
              "catch-all mailbox", Verdict.WARN))


def _smuggling() -> tuple[Probe, ...]:
    begin = (_EHLO, _OUTSIDE, b"RCPT TO:<{to}>\r\n", b"DATA\r\n")
    text = b"From: probe@example.net\r\nSubject: mailsvc doctor --deep\r\n\r\nEnd of data: %s."
    return tuple(
        Probe(f"smuggling {name}", ("smtp",),
              (*begin, text % name.encode() + end + b"NOOP\r\n\r\n.\r\n", _QUIT),
              r"220 250 250 25\d 354 \d{3} 221 end",
              f"takes {name} for the end of data: a second message can be smuggled in",
              judged=r"220 250 250 25\d 354 ")
        for name, end in ENDS.items())


PROBES: tuple[Probe, ...] = (
    *_relays(),
    *_smuggling(),
    Probe("STARTTLS injection", _CLEAR, (_EHLO, b"STARTTLS\r\nNOOP\r\n", TLS, _EHLO, _QUIT),
          r"220 250 ([45]\d\d refused|220 TLS 250 221 end)",
          "obeys inside TLS what was said before it", judged="220 250 ([45]|220 TLS)"),
    Probe("STARTTLS forgets", _CLEAR,
          (_EHLO, _OUTSIDE, b"STARTTLS\r\n", TLS, b"RCPT TO:<probe@example.com>\r\n", _QUIT),
          r"220 250 \d{3} ([45]\d\d refused|220 TLS 503 221 end)",
          "remembers inside TLS a transaction from before it (RFC 3207 §4.2)",
          Verdict.WARN, judged=r"220 250 \d{3} ([45]|220 TLS)"),
    Probe("AUTH in the clear", ("submission",), (_EHLO, _QUIT), "220 250 221 end",
          "offers AUTH without TLS: passwords can be read on their way", Verdict.WARN,
          never=rb"(?m)^250[ -]AUTH"),
    Probe("BDAT out of step", ("smtp",), (_EHLO, b"BDAT 6\r\nNOOP\r\nNOOP\r\nQUIT\r\n"),
          r"220 250 5\d\d 250 221 end|220 250 5\d\d end",
          "obeys the octets of a chunk that it refused", offered=b"CHUNKING"),
    Probe("bare LF in commands", _SMTP, (_EHLO, b"NOOP\nNOOP\r\n", _QUIT),
          r"220 250 \d{3} 221 end|220 250 [45]\d\d end",
          "takes a bare LF for the end of a command", Verdict.WARN),
    Probe("a command without end", _SMTP, (_EHLO, b"NOOP " + b"x" * 100_000 + b"\r\n", _QUIT),
          r"220 250 [45]\d\d( 221)? end|220 250 end",
          "takes a command of 100,000 octets, or does not answer it", Verdict.WARN),
    Probe("NUL in a command", _SMTP, (_EHLO, b"NO\0OP\r\n", _QUIT),
          r"220 250 [45]\d\d( 221)? end", "takes a command with NUL in it", Verdict.WARN),
    Probe("a size without end", ("smtp",), (_EHLO, b"MAIL FROM:<> SIZE=" + b"9" * 20 + b"\r\n",
                                            _QUIT),
          r"220 250 [45]\d\d 221 end", "takes a message of 10^20 octets", Verdict.WARN,
          offered=b"SIZE"),
    Probe("HTTP", _SMTP,
          (b"POST / HTTP/1.1\r\nHost: probe.invalid\r\nContent-Length: 12\r\n\r\n"
           b"NOOP\r\nQUIT\r\n",),
          r"220( [45]\d\d)* end", "goes on behind a request by HTTP: a browser can be made to "
          "speak to it (ALPACA)", Verdict.WARN),
    Probe("STLS injection", ("pop3",), (b"STLS\r\nCAPA\r\n", TLS, _QUIT),
          r"\+ (- refused|\+ TLS \+ end)", "obeys inside TLS what was said before it",
          judged=r"\+ (-|\+ TLS)"),
    Probe("password in the clear", ("pop3",), (b"CAPA\r\n", _QUIT), r"\+ \+ \+ end",
          "offers logins without TLS: passwords can be read on their way", Verdict.WARN,
          never=rb"(?m)^(USER|SASL .*\b(PLAIN|LOGIN)\b)", abroad=True),
    Probe("before the login", ("pop3", "pop3s"), (
        b"STAT\r\n", b"LIST\r\n", b"UIDL\r\n", b"RETR 1\r\n", b"DELE 1\r\n", b"TOP 1 0\r\n", _QUIT),
          r"\+( -){6} \+ end|\+( -)+ end", "answers before anybody has logged in"),
    Probe("nonsense", ("pop3", "pop3s"), (
        b"\r\n", b"NONSENSE\r\n", b"PASS x\r\n", b"\xff\xfe\r\n", b"APOP\r\n", _QUIT),
          r"\+( -){5} \+ end|\+( -)+ end", "does not answer nonsense with -ERR", Verdict.WARN),
    Probe("a command without end", ("pop3", "pop3s"), (b"USER " + b"x" * 100_000 + b"\r\n", _QUIT),
          r"\+ -( \+)? end|\+ end", "takes a command of 100,000 octets, or does not answer it",
          Verdict.WARN),
    *(Probe("numbers that are none", (kind,), (
        *secured, b"USER {user}\r\n", b"PASS {password}\r\n", b"LIST 0\r\n", b"LIST -1\r\n",
        b"RETR 0\r\n", b"RETR " + b"9" * 25 + b"\r\n", b"TOP 1\r\n", b"TOP 1 -1\r\n",
        b"DELE 0\r\n", b"UIDL 1 2\r\n", _QUIT),
          rf"\+{answers} \+ \+( -){{8}} \+ end",
          "does not answer numbers that name no message with -ERR", Verdict.WARN,
          judged=rf"\+{answers} \+ \+")
      for kind, secured, answers in (("pop3", (b"STLS\r\n", TLS), r" \+ TLS"), ("pop3s", (), ""))),
)
