"""SMTP replies: the type, and each reply we give, named once.

RFC 5321 §4.2 gives the codes, RFC 2034 and RFC 3463 the enhanced status codes.  A reply's bytes are
made when it is made, so sending a constant one costs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from mailsvc.errors import EnhancedStatus, MailboxMoved, MailFailure, PermanentFailure
from mailsvc.mail import Address
from mailsvc.sasl.steps import Kind

_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")
#: Longest text of one reply line: RFC 5321 §4.5.3.1.5 allows 512 octets with code and CRLF.
_TEXT_OCTETS = 480


def printable(text: str) -> str:
    """*text* fit to be echoed: ASCII without control characters, and short.

    A path (RFC 5321 §4.5.3.1.3: 256 octets) with some words around it still fits whole.
    """
    return _UNPRINTABLE.sub("?", text[:400])


@dataclass(frozen=True, slots=True)
class Reply:
    """One SMTP reply.

    :ivar code: the three-digit code of RFC 5321 §4.2.
    :ivar status: the enhanced status code, or None where RFC 2034 §4 has none: the greeting, the
        replies to HELO and EHLO, and 3yz.
    :ivar lines: at least one line of text, printable ASCII.
    :ivar wire: the octets to send.
    :ivar positive: whether the command did what it asked for (2yz, 3yz).
    """

    code: int
    status: EnhancedStatus | None
    lines: tuple[str, ...]
    wire: bytes = field(init=False, compare=False, repr=False)
    positive: bool = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "positive", self.code < 400)
        status = f"{self.status} " if self.status else ""
        if len(self.lines) == 1:
            text = f"{self.code} {status}{self.lines[0][:_TEXT_OCTETS]}\r\n"
            object.__setattr__(self, "wire", text.encode("ascii", "replace"))
            return
        last = len(self.lines) - 1
        wire = "".join(
            f"{self.code}{' ' if n == last else '-'}{status}{line[:_TEXT_OCTETS]}\r\n"
            for n, line in enumerate(self.lines)
        )
        object.__setattr__(self, "wire", wire.encode("ascii", "replace"))

    def by(self, hostname: str) -> Reply:
        """The reply with the name of the host as its first word.

        RFC 5321 §4.2.3: "<domain> Service closing transmission channel", for 221 and 421 alike.
        """
        return Reply(self.code, self.status, (f"{hostname} {self.lines[0]}", *self.lines[1:]))


def reply(code: int, status: str, *lines: str) -> Reply:
    """Make a Reply; *status* is like "5.5.1", or empty for none."""
    parsed = EnhancedStatus(*map(int, status.split("."))) if status else None
    return Reply(code, parsed, lines)


# 2yz, 3yz
BYE = reply(221, "2.0.0", "Bye")
LOGGED_IN = reply(235, "2.7.0", "Logged in")
RESET_OK = reply(250, "2.0.0", "Forgotten; ready for a new transaction")
NOOP_OK = reply(250, "2.0.0", "Nothing done")
SENDER_OK = reply(250, "2.1.0", "Sender OK")
RECIPIENT_OK = reply(250, "2.1.5", "Recipient OK")
CANNOT_VERIFY = reply(252, "2.5.0", "Cannot verify; send some mail and I will try to deliver it")
START_DATA = reply(354, "", "Send the message, end it with CRLF.CRLF")
TURNED = reply(250, "2.0.0", "Now it is for you to greet; what waits will be sent")
START_TLS = reply(220, "2.0.0", "Ready to start TLS")

# 4yz
SHUTTING_DOWN = reply(421, "4.3.2", "Service shutting down; come back soon")
TIMED_OUT = reply(421, "4.4.2", "Timed out waiting for you; connect again when ready")
TOO_MANY_ERRORS = reply(421, "4.7.0", "Too many errors; connect again with fewer")
TOO_MANY_COMMANDS = reply(421, "4.7.0", "Too many commands without a message; connect again")
TOO_MANY_LOGINS = reply(421, "4.7.0", "Too many failed logins; connect again later")
TOO_MANY_MESSAGES = reply(421, "4.7.0", "Enough messages for one connection; connect again")
UNKNOWN_CHUNK = reply(421, "4.5.2", "Where the next command begins is unknown; connect again")
NOT_HTTP = reply(421, "4.7.0", "This is SMTP, not HTTP")
NOT_TLS = reply(421, "4.7.0", "This port does not begin with TLS")
LOCAL_ERROR = reply(451, "4.3.0", "Local error in processing; try again later")
TOO_MANY_RECIPIENTS = reply(452, "4.5.3", "Too many recipients; send to the rest separately")
NOT_YOURS = reply(450, "4.7.0", "Mail for these domains is not for this login to fetch")
TURN_IN_USE = reply(450, "4.7.0", "Another connection fetches this mail; come back when it is over")
CANNOT_TURN = reply(451, "4.3.0", "Unable to send what waits now; try again later")
NO_MAIL = reply(453, "4.0.0", "You have no mail")

# 5yz: syntax
BAD_CHARACTERS = reply(500, "5.5.2", "Control character in command; only CRLF ends a line")
LINE_TOO_LONG = reply(500, "5.5.2", "Line too long")
UNRECOGNIZED = reply(500, "5.5.1", "Command not recognized; try HELP")
NO_ARGUMENT = reply(501, "5.5.4", "No argument is allowed here")
NOT_TRUSTED = reply(550, "5.7.0", "You may not speak for others")
NO_SUCH_LOGIN = reply(550, "5.7.8", "Nobody of that name may submit mail here")
QUEUE_RUN = reply(250, "2.0.0", "Sending what waits for it")
NOT_QUEUED = reply(459, "4.7.1", "Mail for that domain is not kept here")
NO_QUEUE = reply(458, "4.3.0", "Unable to send what waits for it now; try again later")
NOT_IMPLEMENTED = reply(502, "5.5.1", "Command not implemented")
EXPN_DISABLED = reply(502, "5.7.1", "EXPN is not available here")
UNKNOWN_TOPIC = reply(504, "5.5.4", "No help on that topic; HELP alone lists the commands")

# 5yz: order
HELLO_FIRST = reply(503, "5.5.1", "Say EHLO or HELO first")
LHLO_FIRST = reply(503, "5.5.1", "Say LHLO first")
MAIL_FIRST = reply(503, "5.5.1", "MAIL first")
LOG_IN_FIRST = reply(530, "5.7.0", "Log in first; this port is for submission")
LOG_IN_TO_TURN = reply(530, "5.7.0", "Log in first; it says whose mail this is")
TLS_FIRST = reply(530, "5.7.0", "Say STARTTLS first, then log in")
LOGGED_IN_ALREADY = reply(503, "5.5.1", "You are logged in already")
NESTED_MAIL = reply(503, "5.5.1", "A transaction is open; finish it or RSET")
RECIPIENT_FIRST = reply(503, "5.5.1", "RCPT first")
MID_CHUNKS = reply(503, "5.5.1", "BDAT chunks under way; send the rest, or RSET")
TOO_EARLY = reply(554, "5.5.1", "You spoke before the greeting; connect again and wait for it")
NO_VALID_RECIPIENTS = reply(554, "5.5.1", "No valid recipients")
TLS_ACTIVE = reply(503, "5.5.1", "TLS is active already")

# 5yz: content
STRAY_LINE_END = reply(
    550, "5.6.11", "Bare CR or LF in the message; end every line with CRLF (RFC 5321 2.3.8)"
)
TEXT_LINE_TOO_LONG = reply(554, "5.6.0", "A line of the message is too long")
MESSAGE_TOO_BIG = reply(552, "5.3.4", "Message exceeds the size limit announced by EHLO")
LOOP = reply(554, "5.4.6", "Too many Received fields: the message is going in circles")
NEEDS_SMTPUTF8 = reply(553, "5.6.7", "Address is not ASCII; use the SMTPUTF8 parameter of MAIL")


_DONE = EnhancedStatus(2, 0, 0)

#: RFC 4954 §6, RFC 5248: why an AUTH exchange failed.
FAILED_AUTH = {
    Kind.UNSUPPORTED: reply(504, "5.5.4", "No such mechanism here; EHLO lists them"),
    Kind.ENCRYPTION_NEEDED: reply(538, "5.7.11", "Say STARTTLS first; nobody logs in unencrypted"),
    Kind.MALFORMED: reply(501, "5.5.2", "That is not what the mechanism expects"),
    Kind.TOO_LONG: reply(500, "5.5.6", "Line too long for an exchange"),
    Kind.CANCELLED: reply(501, "5.0.0", "Cancelled, as you wished"),
    Kind.WRONG: reply(535, "5.7.8", "Wrong name or password"),
}


def accepted(id: str) -> Reply:
    """The reply that takes responsibility for a message (RFC 5321 §4.2.5)."""
    return Reply(250, _DONE, (f"Message accepted as {id}",))


def priority_changed(priority: int) -> Reply:
    """The reply to MAIL whose priority was too high (RFC 6710: the new one comes first)."""
    return reply(250, "2.3.6", f"{priority} is the priority of this message; Sender OK")


def verified(asked: Address, found: Iterable[Address]) -> Reply:
    """What VRFY and EXPN say of *asked*, which means the mailboxes *found* (RFC 5321 §3.5)."""
    found = list(found)
    if not found or not all(address.is_ascii for address in found):
        # Nothing to name, or it could be named in UTF-8 only, for which a reply has no room
        # (RFC 6531 §3.7.4.2).
        return CANNOT_VERIFY
    if len(found) == 1 and asked.domain not in ("", found[0].domain):
        # RFC 5321 §3.4: the server knows where the user is, and will forward.
        return reply(251, "2.1.5", f"User not local; will forward to <{found[0]}>")
    return reply(250, "2.1.5", *(f"<{address}>" for address in found))


def from_failure(failure: MailFailure, *, rcpt: bool = False) -> Reply:
    """The reply for a failure of the store, the directory or the router.

    The basic code follows RFC 5321 §4.3.2: mailbox trouble is 450/550 at RCPT, 451/554 after the
    data; storage is 452 and 552, wrong routing 550 and 551.
    """
    status = failure.status
    if isinstance(failure, MailboxMoved):
        code, text = 551, f"User not local; please try <{failure.forward_path}>"
    elif status[1:] == (7, 1):
        # Policy, whenever it shows.
        code, text = (550 if isinstance(failure, PermanentFailure) else 450), failure.text
    elif status[1:] in ((2, 2), (2, 3), (3, 1)):
        code, text = (552 if isinstance(failure, PermanentFailure) else 452), failure.text
    elif isinstance(failure, PermanentFailure):
        code, text = (550 if rcpt else 554), failure.text
    else:
        code, text = (450 if rcpt and status.subject == 2 else 451), failure.text
    return Reply(code, status, (printable(text),))
