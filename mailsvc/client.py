"""An SMTP and LMTP client on Twisted, in the shape of Go's net/smtp.

From a coroutine::

    client = await Client.dial("mx.example.org", 25, tls="starttls")
    await client.mail("alice@example.com")
    await client.rcpt("bob@example.org")
    await client.data(b"Subject: hello\\r\\n\\r\\nIt works.\\r\\n")
    await client.quit()

Every method returns a Deferred, which can be awaited, and whose failures are
:class:`mailsvc.smtp.failures.SendingFailure`.  From plain blocking code see
:mod:`mailsvc.blocking`.

**Pipelining.**  A command is queued when its method is called, and its Deferred fires with its
reply.  Whoever calls the next method without waiting lets the commands go out in one packet, where
the server offers PIPELINING (RFC 2920), and one after the other where it does not.
:meth:`Client.send` does so.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamClientEndpoint

from mailsvc.errors import EnhancedStatus
from mailsvc.mail import Address
from mailsvc.smtp.failures import SendingFailure, Stage
from mailsvc.smtp.replies import Reply
from mailsvc.trust import Trust

#: A message: lines ending in CRLF.  All but bytes are read as they are sent, so memory stays flat.
Message = bytes | BinaryIO | Iterable[bytes] | AsyncIterable[bytes]

#: How TLS is used: not at all; by STARTTLS, or fail; by STARTTLS if offered, unverified, and in the
#: clear (by a second connection if the handshake broke the first) if not; from the first octet.
TLS = Literal["no", "starttls", "opportunistic", "implicit"]


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long each step may take, in seconds: the least of RFC 5321 §4.5.3.2 where it has one.

    Slow drips buy no time: each limit holds for the whole reply.
    """

    connect: float = 60.0
    tls: float = 60.0
    greeting: float = 300.0
    hello: float = 300.0
    auth: float = 180.0
    mail: float = 300.0
    rcpt: float = 300.0
    data: float = 120.0
    #: The server takes no octet of the message for so long.
    block: float = 180.0
    #: The final reply.
    end: float = 600.0
    #: RSET, NOOP, VRFY, EXPN.
    other: float = 300.0
    quit: float = 10.0


@dataclass(frozen=True, slots=True)
class Said:
    """One line of a dialogue, for :func:`Client.dial`'s *transcript*.

    :ivar sent: whether it is ours.
    :ivar line: without CRLF, secrets masked.
    :ivar tls: whether it was encrypted.
    :ivar seconds: since the connection began.
    """

    sent: bool
    line: str
    tls: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one recipient.

    :ivar recipient: the forward-path.
    :ivar reply: the server's reply that decided; None if it did not come to one.
    :ivar failure: why it did not succeed; None if it did.
    """

    recipient: Address
    reply: Reply | None = None
    failure: SendingFailure | None = None

    @property
    def accepted(self) -> bool:
        """Whether the server is responsible for it now."""
        raise NotImplementedError

    @property
    def temporary(self) -> bool:
        """Whether it is worth trying again."""
        raise NotImplementedError

    @property
    def permanent(self) -> bool:
        """Whether it is not."""
        raise NotImplementedError

    @property
    def in_flight(self) -> bool:
        """Whether the server may have it although it did not say so: a duplicate is possible."""
        raise NotImplementedError

    @property
    def status(self) -> EnhancedStatus:
        """The enhanced status code, made up from the reply's code if the server gave none."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Recipient:
    """A forward-path with the parameters of RFC 3461.

    :ivar notify: of "NEVER" or of "SUCCESS", "FAILURE", "DELAY"; empty for the server's default.
    :ivar orcpt: ``type;address``, as meant (not xtext).
    """

    forward_path: Address | str
    notify: tuple[str, ...] = ()
    orcpt: str = ""


class Client:
    """One connection to a server, from the greeting on.

    :ivar greeting: the 220.
    :ivar host: what the server calls itself.
    :ivar extensions: what it offered last, by keyword in capitals.
    :ivar outcomes: of the present or last transaction, in the order of RCPT.
    :ivar tls_state: what was agreed in TLS (version, cipher, whether verified), or None.
    :ivar tls_failure: why an "opportunistic" connection is in the clear, or None.
    :ivar closed: whether the connection has ended.
    :ivar transactions: how many messages were accepted on it.
    """

    @classmethod
    def dial(
        cls,
        host: str,
        port: int = 25,
        *,
        endpoint: IStreamClientEndpoint | None = None,
        tls: TLS = "no",
        trust: Trust | None = None,
        hello: str = "",
        bind: str = "",
        lmtp: bool = False,
        timeouts: Timeouts | None = None,
        transcript: Callable[[Said], None] | None = None,
        reactor: Any = None,
    ) -> Deferred[Client]:
        """Connect, read the greeting, and with "starttls" and "opportunistic" start TLS.

        :param host: a name, an IP address, or the path of a Unix socket; the name to verify.
        :param endpoint: connects in the place of *host* and *port* (happy eyeballs, SOCKS …).
        :param trust: what the certificate has to prove; by default that it is *host*'s, and nothing
            for "opportunistic".
        :param hello: what to call ourselves; by default this host's name, or its address in
            brackets if that has no dot (RFC 5321 §4.1.4).
        :param bind: the local address to connect from.
        :raises SendingFailure: (in the Deferred) CannotConnect, TimedOut, Refused, TLSFailed,
            BadReply, Disconnected.
        """
        raise NotImplementedError

    def hello(self, name: str = "") -> Deferred[Reply]:
        """Say EHLO (LHLO), or HELO to a server without extensions; what needs it says it itself."""
        raise NotImplementedError

    def extension(self, name: str) -> str | None:
        """The parameters of an extension, "" if it has none; None if it is not offered."""
        raise NotImplementedError

    def start_tls(self, trust: Trust | None = None) -> Deferred[Reply]:
        """STARTTLS, verify, and EHLO again (RFC 3207).

        :raises TLSFailed: the connection is over, unless its reason is "starttls-not-supported".
        """
        raise NotImplementedError

    def auth(
        self,
        name: str = "",
        secret: str = "",
        *,
        mechanism: str = "",
        token: str = "",
        authorize_as: str = "",
        cleartext: bool = False,
    ) -> Deferred[Reply]:
        """Log in (RFC 4954).

        :param mechanism: SCRAM-SHA-256-PLUS, SCRAM-SHA-256, CRAM-MD5, PLAIN, LOGIN, OAUTHBEARER,
            XOAUTH2, EXTERNAL; by default the best that is offered and possible.
        :param token: an OAuth bearer token, in the place of *secret*.
        :param cleartext: whether a secret may cross the network unencrypted (it never needs leave
            to a loopback address or a Unix socket).
        :raises LoginRefused: name or secret is wrong, or the server cannot tell now.
        :raises CannotLogIn: nothing offered can be used; nothing was sent.
        """
        raise NotImplementedError

    def mail(
        self,
        reverse_path: Address | str,
        *,
        size: int = 0,
        body: str = "",
        smtputf8: bool = False,
        ret: str = "",
        envid: str = "",
        requiretls: bool = False,
        auth: Address | None = None,
    ) -> Deferred[Reply]:
        """Begin a transaction.  SIZE and AUTH are left out where the server offers neither.

        DSN parameters (RET, ENVID) are left out too: see ``extension("DSN")`` (RFC 3461 §5.2.2).

        :param reverse_path: "" or NULL_PATH for ``<>``.
        :param body: "7BIT", "8BITMIME" or "" for no parameter.
        :param ret: "FULL" or "HDRS".
        :param envid: as meant (not xtext).
        :raises NotOffered: 8BITMIME, SMTPUTF8, REQUIRETLS or the size; nothing was sent.
        """
        raise NotImplementedError

    def rcpt(self, forward_path: Address | str, *, notify: Sequence[str] = (),
             orcpt: str = "") -> Deferred[Reply]:
        """Add a recipient; a refusal leaves the transaction open."""
        raise NotImplementedError

    def data(self, message: Message, *, normalize: bool = False) -> Deferred[Reply]:
        """Send the message by DATA.

        :param normalize: make every bare CR and LF a CRLF; without it they are BadMessage, and the
            connection is over if some of the message was sent.
        :returns: the final reply; with LMTP the last one, ``outcomes`` has them all.
        """
        raise NotImplementedError

    def bdat(self, block: bytes, last: bool = False) -> Deferred[Reply]:
        """Send a chunk (RFC 3030); call again without waiting to pipeline."""
        raise NotImplementedError

    def send(
        self,
        reverse_path: Address | str,
        recipients: Sequence[Address | str | Recipient],
        message: Message,
        *,
        size: int = 0,
        body: str = "",
        smtputf8: bool | None = None,
        ret: str = "",
        envid: str = "",
        requiretls: bool = False,
        auth: Address | None = None,
        normalize: bool = False,
        pipeline: bool = True,
        chunk: bool = True,
    ) -> Deferred[tuple[Outcome, ...]]:
        """One message to all *recipients*, in as few round trips as the server allows.

        :param size: in octets; found out for bytes and files.
        :param body: "8BITMIME" or "7BIT"; found out for bytes and files.
        :param smtputf8: None to find out, from the addresses and, for bytes and files, the header.
        :returns: an outcome for each recipient, in order, also if the connection broke or the
            server refused the sender: their ``failure`` says so.  Never fails but by BadArgument.
        """
        raise NotImplementedError

    def verify(self, text: str) -> Deferred[Reply]:
        """VRFY; 252 counts as positive."""
        raise NotImplementedError

    def expand(self, text: str) -> Deferred[Reply]:
        """EXPN."""
        raise NotImplementedError

    def reset(self) -> Deferred[Reply]:
        """RSET: forget the transaction, keep the connection."""
        raise NotImplementedError

    def noop(self) -> Deferred[Reply]:
        """NOOP."""
        raise NotImplementedError

    def quit(self) -> Deferred[Reply | None]:
        """QUIT, and close whatever the server answers: None if it did not.  Never fails."""
        raise NotImplementedError

    def close(self) -> None:
        """Close at once; what is under way fails with Disconnected.  May be called again."""
        raise NotImplementedError

    def when_closed(self) -> Deferred[SendingFailure]:
        """Fires when the connection has ended, with why."""
        raise NotImplementedError


def send_mail(
    host: str,
    reverse_path: Address | str,
    recipients: Sequence[Address | str | Recipient],
    message: Message,
    *,
    port: int = 0,
    tls: TLS = "opportunistic",
    trust: Trust | None = None,
    user: str = "",
    password: str = "",
    token: str = "",
    hello: str = "",
    timeouts: Timeouts | None = None,
    **options: Any,
) -> Deferred[tuple[Outcome, ...]]:
    """Dial, log in if there is a *user*, send, quit.

    :param port: 0 for 465 with tls="implicit", 587 with a *user*, else 25.
    :param options: of :meth:`Client.dial` and :meth:`Client.send`.
    :returns: an outcome for each recipient, of whom at least one was accepted.
    :raises NotSent: none was; it has the outcomes.
    :raises SendingFailure: it did not come to a transaction.
    """
    raise NotImplementedError


__all__ = ["TLS", "Client", "Message", "Outcome", "Recipient", "Said", "Stage", "Timeouts",
           "send_mail"]
