"""A ``sendmail`` for cron, scripts and mail programs: hands a message to the service here.

It reads a message from standard input and submits it over the Unix socket of a submission listener
(``listeners.submission = ["unix:/run/mailsvc/submission.sock:mode=666"]``).  The kernel tells the
service which user that is, so nobody logs in; :mod:`mailsvc.submission.senders` says as whom that
user may send.  No configuration is read: the socket is that of ``--socket``, else of the variable
``MAILSVC_SOCKET``, else :data:`SOCKET`.  And it starts fast, for little is imported.

**Addresses** without a domain get the service's host name, which its greeting tells: so mail for
``root`` needs that name among the domains.  The sender is ``-f``, else the user at that host.  With
``-t`` the recipients are those of To, Cc and Bcc, or of their Resent- forms where there is one, and
those on the command line as well.

**The message.**  A line of a lone "." ends it, without ``-i``; LF becomes CRLF; an mbox "From "
line on top is dropped.  What is missing in its header the service adds, and it removes Bcc.  A CR
that is not part of a line end is left to the service, which refuses it.

**Promises.**  Status 0 when the service has the message, on disk, for every recipient.  It queues
nothing itself: with the service away the status is 75, for the caller to try again.  When some
recipients are refused the others get the message, standard error names the refused, and the status
is that of the refusal.  CR, LF and NUL in an argument are refused, so that none can become a
command or a header field of its own.

**Not done.**  Queue runs, ``-bp``, ``-bi``, ``-bv`` and daemons (``-bd``); delivery status
notifications (``-N``, ``-R`` and ``-V`` are ignored).  A message is held in memory.
"""

from __future__ import annotations

import os
import pwd
import re
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, NoReturn

from mailsvc.mail import Address
from mailsvc.submission.mailboxes import mailboxes
from mailsvc.wire import DotStuffer

#: Where the service is when nothing else says so.
SOCKET = "/run/mailsvc/submission.sock"

#: The longest message that is read, in octets; what the service takes is as a rule much less.
MOST_OCTETS = 1 << 28

#: How long an answer may take, in seconds (RFC 5321 §4.5.3.2 has 10 minutes for the longest).
_PATIENCE = 600.0
_LONGEST_REPLY = 65_536
_LONGEST_LIST = 4_194_304

HELP = """\
Hand a message to the service here, as sendmail does.

It is read from standard input.  `mailsvc-sendmail` is the same, and starts faster.

\b
Usage:  sendmail [OPTIONS] [--] [RECIPIENT...]
  -t               recipients are those of To, Cc and Bcc too
  -i, -oi          a line of a lone "." does not end the message
  -f, -r ADDRESS   the sender [this user at the service's host]
  -F NAME          the sender's full name, for a message without From
  -bm              take one message [what it does anyway]
  -bs              speak SMTP on standard input and output
  --socket PATH    the service's socket [$MAILSVC_SOCKET,
                   else /run/mailsvc/submission.sock]

Options that other sendmails have, such as -oem, -N never and -v, are accepted and change nothing.

\b
Status: 0 sent; 64 the command line is wrong; 65 the message is; 67 no such
recipient; 69 refused; 75 try again later; 77 not allowed.

\b
Example:
  mailsvc sendmail alice@example.org < message.eml
  printf 'To: root\\nSubject: hello\\n\\nIt works.\\n' | mailsvc sendmail -t
"""

#: Options that have an argument, attached or next; and those that may have one attached.
_WITH_ARGUMENT = frozenset("ABCDFLMNORVXbefhopr")
_WITH_ATTACHED = frozenset("dq")
_FLAGS = frozenset("GITUcimnstvx")


class Failed(Exception):
    """It did not work.

    :ivar status: the exit status, one of sysexits.h.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(slots=True)
class Options:
    """What the command line says."""

    socket: str = field(default_factory=lambda: os.environ.get("MAILSVC_SOCKET") or SOCKET)
    mode: str = "m"
    sender: str | None = None
    full_name: str = ""
    from_header: bool = False
    dot_ends: bool = True
    recipients: list[str] = field(default_factory=list)


# ---- the command line ---------------------------------------------------------------------------


def parse(arguments: Sequence[str]) -> Options:
    """Read the command line.

    Options end at the first argument that is none: a recipient may come from anywhere.

    :raises Failed: it cannot be understood, or could smuggle something in.
    """
    for argument in arguments:
        if set(argument) & {"\r", "\n", "\0"}:
            raise _usage(f"{argument!r} holds a line end or NUL; leave it out")
    options, rest = Options(), list(arguments)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        argument = rest.pop(0)
        if argument == "--":
            break
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            if name != "--socket":
                raise _usage(f"{argument}: no such option; --help lists them")
            options.socket = value if equals else _next(rest, name)
        else:
            _take_letters(options, argument[1:], rest)
    options.recipients = rest
    for recipient in rest:
        if recipient.startswith("-"):
            raise _usage(f"{recipient}: not an address; put options before the recipients")
    if options.mode not in ("m", "s"):
        raise _usage(f"-b{options.mode}: not done here; `mailsvc --help` lists the commands that "
                     "administer the service")
    return options


def _take_letters(options: Options, letters: str, rest: list[str]) -> None:
    while letters:
        letter, letters = letters[0], letters[1:]
        value = ""
        if letter in _WITH_ARGUMENT:
            value, letters = letters or _next(rest, f"-{letter}"), ""
        elif letter in _WITH_ATTACHED:
            letters = ""
        elif letter not in _FLAGS:
            raise _usage(f"-{letter}: no such option; --help lists them")
        if letter == "t":
            options.from_header = True
        elif letter == "i" or (letter == "o" and value == "i"):
            options.dot_ends = False
        elif letter in "fr":
            options.sender = value
        elif letter == "F":
            options.full_name = value
        elif letter == "b":
            options.mode = value


def _next(rest: list[str], name: str) -> str:
    if not rest:
        raise _usage(f"{name} needs an argument; --help says which")
    return rest.pop(0)


def _usage(text: str) -> Failed:
    return Failed(os.EX_USAGE, text)


# ---- the message --------------------------------------------------------------------------------

_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:(.*\n(?:[ \t].*\n)*)")
_TO = (b"to", b"cc", b"bcc")


def read_message(stream: BinaryIO, *, dot_ends: bool) -> bytes:
    """The message on *stream*, its lines ending in CRLF.

    :raises Failed: it is too long.
    """
    lines: list[bytes] = []
    octets, at_start = 0, True
    while line := stream.readline(65_536):
        if dot_ends and at_start and line.rstrip(b"\r\n") == b".":
            break
        at_start = line.endswith(b"\n")
        octets += len(line)
        if octets > MOST_OCTETS:
            raise Failed(os.EX_DATAERR, f"the message is longer than {MOST_OCTETS} octets; send "
                                        "a shorter one")
        lines.append(line)
    if lines and lines[0].startswith(b"From "):
        del lines[0]
    return re.sub(rb"\r?\n", b"\r\n", b"".join(lines))


def header_fields(message: bytes) -> list[tuple[bytes, bytes]]:
    """The fields of *message*: names in lower case, bodies with their line ends."""
    fields, position = [], 0
    text = message if message.endswith(b"\n") else message + b"\r\n"
    while match := _FIELD.match(text, position):
        fields.append((match[1].lower(), match[2]))
        position = match.end()
    return fields


def header_recipients(fields: list[tuple[bytes, bytes]], host: str) -> list[Address]:
    """Whom a header is addressed to (RFC 5322 §3.6.3, §3.6.6); names without a domain at *host*.

    :raises Failed: a field cannot be understood.
    """
    resent = any(name == b"resent-" + each for name, _ in fields for each in _TO)
    wanted = [b"resent-" + name for name in _TO] if resent else _TO
    found: list[Address] = []
    for name, body in fields:
        if name in wanted:
            # A display name in another character set does not matter here.
            known = body.decode("utf-8", "replace").encode()
            try:
                found += mailboxes(known, host, _LONGEST_LIST)
            except ValueError as error:
                raise Failed(os.EX_DATAERR,
                             f"the {name.decode().capitalize()} field cannot be understood: "
                             f"{error}; expected Name <local-part@domain>, ...") from None
    return found


def from_field(name: str, address: Address) -> bytes:
    """A From field of a full *name*."""
    if name.isascii() and name.isprintable() and "=?" not in name:
        quoted = re.sub(r'(["\\])', r"\\\1", name)
        return f'From: "{quoted}" <{address}>\r\n'.encode()
    # RFC 2047 §2: 75 characters for one encoded word; 10 characters have 40 octets at most.  What
    # looks like an encoded word is encoded too, so that it is shown as it was given.
    import base64  # noqa: PLC0415 - seldom needed

    words = [base64.b64encode(name[at:at + 10].encode("utf-8", "replace")).decode()
             for at in range(0, len(name), 10)]
    encoded = "\r\n ".join(f"=?utf-8?b?{word}?=" for word in words)
    return f"From: {encoded}\r\n <{address}>\r\n".encode()


# ---- the service --------------------------------------------------------------------------------


class _Connection:
    """An SMTP session with the service, seen from the client."""

    def __init__(self, path: str) -> None:
        self._socket = connect(path)
        self._replies = self._socket.makefile("rb")
        _, greeting = self._expect(2, "greeting")
        #: What the service calls itself.
        self.host = greeting.partition(b" ")[0].decode("ascii", "replace").lower()
        _, self._extensions = self.say(b"EHLO localhost")

    def __enter__(self) -> _Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._replies.close()
        self._socket.close()

    def send(self, sender: Address | None, recipients: list[Address], message: bytes) -> None:
        """Submit *message*.

        :raises Failed: some recipients did not get it, or none.
        """
        plain = all(each.is_ascii for each in (sender or recipients[0], *recipients))
        if not plain and b"SMTPUTF8" not in self._extensions.split():
            raise Failed(os.EX_UNAVAILABLE, "the service takes no addresses outside ASCII")
        self.say(f"MAIL FROM:<{sender or ''}> SIZE={len(message)} BODY=8BITMIME"
                 f"{'' if plain else ' SMTPUTF8'}".encode())
        failures: list[Failed] = []
        for recipient in recipients:
            try:
                self.say(f"RCPT TO:<{recipient}>".encode())
            except Failed as failure:
                failures.append(Failed(failure.status, f"{recipient}: {failure}"))
        if len(failures) < len(recipients):
            self.say(b"DATA", 3)
            stuffer = DotStuffer()
            self._write(stuffer.feed(message) + stuffer.finish())
            self._expect(2, "message")
        self._write(b"QUIT\r\n")
        if failures:
            # Whoever may try again should hear of it.
            status = max(failure.status for failure in failures)
            if any(failure.status == os.EX_TEMPFAIL for failure in failures):
                status = os.EX_TEMPFAIL
            raise Failed(status, "\n".join(map(str, failures)))

    def say(self, command: bytes, wanted: int = 2) -> tuple[int, bytes]:
        """Send *command*; the code and the text of the reply, one line each for the lines of it."""
        self._write(command + b"\r\n")
        return self._expect(wanted, command.decode())

    def _write(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            # The reply that says why may be there.
            if not isinstance(error, BrokenPipeError | ConnectionResetError):
                raise _broken_off(error) from error

    def _expect(self, wanted: int, asked: str) -> tuple[int, bytes]:
        lines: list[bytes] = []
        while True:
            try:
                line = self._replies.readline(_LONGEST_REPLY)
            except OSError as error:
                raise _broken_off(error) from error
            if not re.match(rb"[2-5][0-9][0-9]([ -]|\r?\n)", line) or len(lines) > 100:
                raise Failed(os.EX_TEMPFAIL, "the service broke off, or is none; nothing is lost, "
                                             "try again later")
            lines.append(line[4:].strip())
            if line[3:4] != b"-":
                break
        code, text = int(line[:3]), b"\n".join(lines)
        if code // 100 != wanted:
            raise Failed(_status(code, text, asked), f"{code} {_printable(text)}")
        return code, text


def connect(path: str) -> socket.socket:
    """A connection to the socket *path*.

    :raises Failed: there is none.
    """
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(_PATIENCE)
    try:
        client.connect(path)
    except PermissionError as error:
        client.close()
        raise Failed(os.EX_NOPERM, f"{path}: this user may not connect; give the listener "
                                   "\":mode=666\", and its directory the right to enter") from error
    except OSError as error:
        client.close()
        raise Failed(
            os.EX_TEMPFAIL, f"{path}: {error.strerror or error}; is mailsvc running, with "
            f"listeners.submission = [\"unix:{path}:mode=666\"]?  Otherwise name the socket by "
            "--socket or MAILSVC_SOCKET") from error
    return client


def _broken_off(error: OSError) -> Failed:
    return Failed(os.EX_TEMPFAIL, f"the service broke off ({error}); try again later")


def _status(code: int, text: bytes, asked: str) -> int:
    """The exit status for a negative reply, by its enhanced status (RFC 3463)."""
    if code < 500:
        return os.EX_TEMPFAIL
    subject = text[:4]
    if subject == b"5.1." and asked.startswith("RCPT"):
        return os.EX_NOUSER
    if subject == b"5.6.":
        return os.EX_DATAERR
    return os.EX_NOPERM if subject == b"5.7." else os.EX_UNAVAILABLE


def _printable(text: bytes) -> str:
    return "".join(each if each.isprintable() else " " if each == "\n" else "?"
                   for each in text.decode("utf-8", "replace"))


# ---- what it does -------------------------------------------------------------------------------


def _submit(options: Options) -> None:
    message = read_message(sys.stdin.buffer, dot_ends=options.dot_ends)
    with _Connection(options.socket) as service:
        own = Address(_user(), service.host)
        sender = own if options.sender is None else _sender(options.sender, service.host)
        recipients = [address for text in options.recipients
                      for address in _addresses(text, service.host)]
        fields = header_fields(message)
        if options.from_header:
            recipients += header_recipients(fields, service.host)
        if not recipients:
            raise _usage("no recipients: name them as arguments, or in To, Cc or Bcc with -t")
        if options.full_name and b"from" not in [name for name, _ in fields]:
            message = from_field(options.full_name, sender or own) + message
        service.send(sender, list(dict.fromkeys(recipients)), message)


def _addresses(text: str, host: str) -> list[Address]:
    try:
        return mailboxes(text.encode("utf-8", "surrogateescape"), host)
    except ValueError as error:
        raise _usage(f"{text!r} is not an address: {error}") from None


def _sender(text: str, host: str) -> Address | None:
    """The sender that -f names; None for the null reverse-path."""
    if text in ("", "<>"):
        return None
    found = _addresses(text, host)
    if len(found) != 1:
        raise _usage(f"{text!r} is not one address; expected local-part@domain")
    return found[0]


def _user() -> str:
    # By uid, as the service knows it; $USER may say anything.
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _relay(options: Options) -> None:
    """Pass octets between standard input and output and the service, until it hangs up."""
    import threading  # noqa: PLC0415 - seldom needed

    with connect(options.socket) as service:
        service.settimeout(None)

        def upwards() -> None:
            try:
                while block := os.read(0, 65_536):
                    service.sendall(block)
                service.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # the service has hung up, and the other direction tells

        # A thread of its own: neither direction may wait for the other.
        threading.Thread(target=upwards, daemon=True).start()
        try:
            while block := service.recv(65_536):
                while block:
                    block = block[os.write(1, block):]
        except OSError as error:
            raise _broken_off(error) from error


def run(arguments: Sequence[str]) -> int:
    """Do what the command line says; the exit status."""
    try:
        if list(arguments) == ["--help"]:
            print(HELP.replace("\b\n", ""), end="")
            return os.EX_OK
        options = parse(arguments)
        (_relay if options.mode == "s" else _submit)(options)
    except Failed as failure:
        for line in str(failure).splitlines():
            print(f"sendmail: {line}", file=sys.stderr)
        return failure.status
    return os.EX_OK


def main() -> NoReturn:
    """``mailsvc-sendmail``, but for Ctrl-C (:mod:`mailsvc.__main__`)."""
    sys.exit(run(sys.argv[1:]))
