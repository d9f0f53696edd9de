"""One SASL exchange, seen from the server: lines of the client in, steps out; no I/O (RFC 4422).

SMTP AUTH (RFC 4954) and POP3 AUTH (RFC 5034) differ in their replies only.  A session makes an
``Exchange`` for each AUTH command, calls :meth:`Exchange.start`, and acts on the step that it and
every further call returns::

    Challenge   send it; the client's next line, whatever it is, goes to ``receive``
    Lookup      find the keys, then ``answer(keys)``
    LogIn       ask the portal, then ``answer(True)`` or ``answer(False)``
    Succeeded   reply 235 or +OK
    Failed      reply as its kind says

It may be dropped at any time, and must be when a login ended in anything but right or wrong.

**Promises.**  No octets of a client make it raise anything.  What was wrong with one exchange
leaves no trace in another.  Nothing that it returns shows a secret in its ``repr``.

**Limits.**  A line has :data:`LINE_OCTETS`; its reader must let that many through, and answer what
it cut off as ``Kind.TOO_LONG`` is answered.  An exchange has :data:`CHALLENGES` challenges.

**Leniency.**  Names of mechanisms may be lower case.
"""

from __future__ import annotations

from mailsvc.credentials import ScramKeys
from mailsvc.sasl.context import Context
from mailsvc.sasl.grammar import decode_base64
from mailsvc.sasl.mechanisms import MECHANISMS, enabled
from mailsvc.sasl.steps import (
    Challenge,
    Conversation,
    Failed,
    Kind,
    LogIn,
    Lookup,
    Question,
    Refused,
    Step,
    Succeeded,
)

#: The most octets of a client's line, its CRLF counted (RFC 4954 §4).
LINE_OCTETS = 12_288
#: The most challenges of an exchange; no mechanism has use for more.
CHALLENGES = 10


class Exchange:
    """An AUTH command and what follows it."""

    __slots__ = ("_challenges", "_context", "_conversation", "_question")

    def __init__(self, context: Context) -> None:
        self._context = context
        self._conversation: Conversation | None = None
        #: The step that waits for its answer.
        self._question: Question | None = None
        self._challenges = 0

    def start(self, mechanism: bytes, initial: bytes | None = None) -> Step:
        """Begin; once.

        :param initial: the initial response as it stands in the command, "=" if it is empty; None
            without one.
        """
        try:
            self._conversation = self._begin(mechanism, initial)
        except Refused as refused:
            return _failed(refused)
        return self._proceed(None)

    def receive(self, line: bytes) -> Step:
        """Take the client's answer to a challenge, without its CRLF; ``*`` cancels."""
        self._close(Challenge)
        try:
            if line == b"*":
                raise Refused(Kind.CANCELLED, "cancelled by the client")
            response = _decode(line)
        except Refused as refused:
            return _failed(refused)
        return self._proceed(response)

    def answer(self, answer: ScramKeys | bool) -> Step:
        """Answer ``Lookup`` with keys, or ``LogIn`` with whether it succeeded.

        What follows True is always ``Succeeded``.
        """
        self._close(LogIn if isinstance(answer, bool) else Lookup)
        return self._proceed(answer)

    def _begin(self, mechanism: bytes, initial: bytes | None) -> Conversation:
        context = self._context
        # bytes.upper() changes ASCII letters only, so no look-alike passes for a letter.
        name = mechanism.upper().decode("ascii", "replace")
        if name not in enabled(context):
            raise Refused(Kind.UNSUPPORTED, "not a mechanism of ours")
        if not context.private:
            raise Refused(Kind.ENCRYPTION_NEEDED, "authentication in the clear")
        if not MECHANISMS[name].possible(context):
            raise Refused(Kind.UNSUPPORTED, "not a mechanism for this connection")
        if initial == b"":
            raise Refused(Kind.MALFORMED, "an empty initial response is written =")
        if initial is not None:
            initial = b"" if initial == b"=" else _decode(initial)
        return MECHANISMS[name].converse(context, initial)

    def _proceed(self, answer: bytes | ScramKeys | bool | None) -> Step:
        """Let the mechanism go on with *answer*."""
        assert self._conversation is not None
        try:
            question = self._conversation.send(answer)
            if isinstance(question, Challenge):
                self._challenges += 1
                if self._challenges > CHALLENGES:
                    raise Refused(Kind.MALFORMED, "too many challenges")
        except StopIteration:
            return Succeeded()
        except Refused as refused:
            return _failed(refused)
        self._question = question
        return question

    def _close(self, kind: type[Question]) -> None:
        """Close the open question, which must be of *kind*."""
        if not isinstance(self._question, kind):
            raise RuntimeError(f"the open question is {self._question!r}")
        self._question = None


def _failed(refused: Refused) -> Failed:
    return Failed(refused.kind, refused.reason, refused.username)


def _decode(line: bytes) -> bytes:
    if len(line) + 2 > LINE_OCTETS:
        raise Refused(Kind.TOO_LONG, "a line too long")
    return decode_base64(line)
