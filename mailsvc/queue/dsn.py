"""Delivery status notifications: bytes out (RFC 3461, 3464, 6522; 6533 for more than ASCII).

A report has three parts: a paragraph for people, in a language of :data:`TEXTS`; what happened to
each recipient, for programs; and the header of the message, or all of it when its sender asked for
that and it failed.  Whatever others said stands in it as printable ASCII on one line.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email.header import Header

from mailsvc.queue.message import QueuedMessage, QueuedRecipient
from mailsvc.trace import date

#: What a report says happened (RFC 3464 §2.3.3).
ACTIONS = ("failed", "delayed", "relayed", "delivered", "expanded")

_REPLY = re.compile(r"[2-5][0-9]{2} ")

#: Most octets of a header that are returned.
HEADER_OCTETS = 65_536

#: Most characters of a word, so that a line has 998 octets at most (RFC 5322 §2.1.1).
_WORD = 900


@dataclass(frozen=True, slots=True)
class Texts:
    """The words of reports in one language.

    :ivar sender: the display name of who sends them.
    :ivar subjects: by action.
    :ivar paragraphs: by action; ``{host}`` and ``{until}`` are filled in.
    """

    sender: str
    subjects: dict[str, str]
    paragraphs: dict[str, str]


#: A further language is one entry more.
TEXTS = {
    "en": Texts("Mail Delivery System", {
        "failed": "Your message could not be delivered",
        "delayed": "Your message is delayed",
        "relayed": "Your message was handed on",
        "delivered": "Your message was delivered",
        "expanded": "Your message was delivered to a list",
    }, {
        "failed": "This is the mail system at {host}. Your message could not be delivered to the "
        "addresses below, and it will not be tried again. The reason stands beside each address: "
        "check that it is spelt right, or ask the person by another way, and then send the "
        "message again.",
        "delayed": "This is the mail system at {host}. Your message has not been delivered to the "
        "addresses below yet. You need not do anything: it is tried again until {until}, and you "
        "will be told if it fails for good.",
        "relayed": "This is the mail system at {host}. Your message was handed to the mail system "
        "of the addresses below, which may not report deliveries. You will perhaps hear no more of "
        "it unless it fails there.",
        "delivered": "This is the mail system at {host}. Your message was delivered to the "
        "addresses below, as you wished to be told.",
        "expanded": "This is the mail system at {host}. Your message was delivered to the list "
        "below and sent on to its members, for whom there will be no further reports.",
    }),
    "ko": Texts("메일 전송 시스템", {
        "failed": "메일을 전달하지 못했습니다",
        "delayed": "메일 전달이 지연되고 있습니다",
        "relayed": "메일을 다음 서버로 넘겼습니다",
        "delivered": "메일이 전달되었습니다",
        "expanded": "메일이 목록으로 전달되었습니다",
    }, {
        "failed": "{host} 메일 시스템에서 알려 드립니다. 보내신 메일을 아래 주소로 전달하지 "
        "못했으며 다시 시도하지 않습니다. 이유는 각 주소 옆에 적혀 있습니다. 주소가 올바른지 "
        "확인하거나 다른 방법으로 받는 분께 문의하신 뒤 다시 보내 주십시오.",
        "delayed": "{host} 메일 시스템에서 알려 드립니다. 보내신 메일이 아래 주소로 아직 "
        "전달되지 않았습니다. 따로 하실 일은 없습니다. {until}까지 계속 시도하며, 끝내 전달하지 "
        "못하면 다시 알려 드리겠습니다.",
        "relayed": "{host} 메일 시스템에서 알려 드립니다. 보내신 메일을 아래 주소의 메일 "
        "시스템에 넘겼습니다. 그 시스템은 전달 결과를 알려 주지 않을 수 있으므로, 실패하지 "
        "않는 한 더 이상의 알림이 없을 수 있습니다.",
        "delivered": "{host} 메일 시스템에서 알려 드립니다. 요청하신 대로, 보내신 메일이 아래 "
        "주소로 전달되었음을 알려 드립니다.",
        "expanded": "{host} 메일 시스템에서 알려 드립니다. 보내신 메일이 아래 목록으로 전달되어 "
        "구성원에게 보내졌습니다. 구성원별 알림은 없습니다.",
    }),
}


@dataclass(frozen=True, slots=True)
class Report:
    """One report about one message.

    :ivar action: one of :data:`ACTIONS`, for all of the *recipients*.
    :ivar hostname: who reports.
    :ivar now: when, seconds since the epoch.
    :ivar until: for "delayed", until when it is tried.
    """

    action: str
    message: QueuedMessage
    recipients: Sequence[QueuedRecipient]
    hostname: str
    now: float
    until: float = 0.0
    language: str = "en"

    @property
    def whole(self) -> bool:
        """Whether the message itself belongs into it, and not only its header (RFC 3461 §4.3).

        Never of one that was to travel by TLS alone, for the way back may be another (RFC 8689 §5).
        """
        return (self.action == "failed" and self.message.ret == "FULL"
                and not self.message.requiretls)

    @property
    def smtputf8(self) -> bool:
        """Whether only a host that knows SMTPUTF8 may get it."""
        return not self.message.reverse_path.is_ascii

    def write(self, id: str, original: bytes) -> bytes:
        """The report as a message with CRLF, 8-bit only where *original* or an address is.

        :param id: the report's own message id, left of its "@".
        :param original: the message if :attr:`whole`, else at least its header.
        """
        texts, to = TEXTS[self.language], self.message.reverse_path
        parts = [self._paragraph(texts), self._status(), self._returned(original)]
        # RFC 2045 §6.4: the whole is of 8 bits where any part is.
        eight_bit = not (to.is_ascii and all(part.isascii() for part in parts))
        # RFC 2046 §5.1.1: 70 characters.
        boundary = f"{id}/{self.hostname}"[:70]
        header = [
            f"Date: {date(int(self.now))}",
            f"From: {_words(texts.sender)} <mailer-daemon@{self.hostname}>",
            f"To: <{to}>",
            f"Subject: {_words(texts.subjects[self.action])}",
            f"Message-ID: <{id}@{self.hostname}>",
            "Auto-Submitted: auto-replied",
            "MIME-Version: 1.0",
            "Content-Type: multipart/report; report-type=delivery-status;",
            f'\tboundary="{boundary}"',
            *(["Content-Transfer-Encoding: 8bit"] if eight_bit else []),
        ]
        mark = f"--{boundary}".encode()
        return b"".join((
            "\r\n".join(header).encode(), b"\r\n\r\n",
            *(mark + b"\r\n" + part + b"\r\n" for part in parts), mark, b"--\r\n"))

    def _paragraph(self, texts: Texts) -> bytes:
        filled = texts.paragraphs[self.action].format(
            host=self.hostname, until=date(int(self.until)) if self.until else "")
        lines = _wrapped(filled)
        for each in self.recipients:
            lines += ["", f"<{each.address}>"]
            if each.original != each.address:
                lines[-1] += f" (<{each.original}>)"
            if each.reply:
                lines += ["    " + line for line in _wrapped(
                    _plain((f"{each.host}: " if each.host else "") + each.reply), 70)]
        text = "\r\n".join(lines) + "\r\n"
        if text.isascii():
            return b"Content-Type: text/plain; charset=us-ascii\r\n\r\n" + text.encode()
        coded = base64.encodebytes(text.encode()).replace(b"\n", b"\r\n")
        return (b"Content-Type: text/plain; charset=utf-8\r\n"
                b"Content-Transfer-Encoding: base64\r\n\r\n" + coded)

    def _status(self) -> bytes:
        message = self.message
        international = not all(each.address.is_ascii for each in self.recipients)
        groups = [[
            *([f"Original-Envelope-Id: {_plain(message.envid)}"] if message.envid else []),
            f"Reporting-MTA: dns; {self.hostname}",
            f"Arrival-Date: {date(int(message.arrived))}",
            # RFC 4865 §5.1.2 adds the one, RFC 2852 §5 the other.
            *([f"Future-Release-Request: {message.hold}"] if message.hold else []),
            *([f"Deliver-By-Date: {date(int(message.deadline))}"]
              if message.deadline is not None else []),
        ]]
        for each in self.recipients:
            kind = "rfc822" if each.address.is_ascii else "utf-8"
            group = []
            # RFC 3461 §6.3 (d): else not, though another address than the final one was meant.
            if each.orcpt:
                name, _, address = each.orcpt.partition(";")
                group.append(f"Original-Recipient: {_plain(name)}; {_coded(address)}")
            group += [f"Final-Recipient: {kind}; {each.address}", f"Action: {self.action}",
                      f"Status: {each.status}"]
            if each.host and each.reply:
                group.append(f"Remote-MTA: dns; {_plain(each.host)}")
            if each.reply:
                # RFC 3461 §9.2: a code and a text.  What we found lacking of a host is no reply.
                diagnostic = "smtp" if each.host and _REPLY.match(each.reply) else "x-mailsvc"
                group.append(f"Diagnostic-Code: {diagnostic}; " + _plain(each.reply))
            if each.tried:
                group.append(f"Last-Attempt-Date: {date(int(each.tried))}")
            if self.action == "delayed" and self.until:
                group.append(f"Will-Retry-Until: {date(int(self.until))}")
            groups.append(group)
        text = "\r\n\r\n".join("\r\n".join(map(_folded, group)) for group in groups) + "\r\n"
        if international:
            # RFC 6533 §4.
            return (b"Content-Type: message/global-delivery-status; charset=utf-8\r\n"
                    b"Content-Transfer-Encoding: 8bit\r\n\r\n" + text.encode())
        return b"Content-Type: message/delivery-status\r\n\r\n" + text.encode()

    def _returned(self, original: bytes) -> bytes:
        if not self.whole:
            end = original.find(b"\r\n\r\n")
            original = original[: end + 2] if end >= 0 else original[:HEADER_OCTETS]
        eight_bit = not original.isascii()
        international = self.message.smtputf8 and eight_bit
        if self.whole:
            kind = "message/global" if international else "message/rfc822"
        else:
            kind = "message/global-headers" if international else "text/rfc822-headers"
        coding = "Content-Transfer-Encoding: 8bit\r\n" if eight_bit else ""
        return f"Content-Type: {kind}\r\n{coding}\r\n".encode() + original


def _words(text: str) -> str:
    """*text* as words of a header field (RFC 2047 where it is not ASCII)."""
    if text.isascii():
        return text
    return Header(text, "utf-8", maxlinelen=70).encode(linesep="\r\n")


def _plain(text: str) -> str:
    """*text* on one line, as printable ASCII."""
    return re.sub(r"[^ -~]", "?", text)


def _coded(address: str) -> str:
    """*address* on one line of ASCII, with what is beyond it as utf-8-addr-xtext (RFC 6533 §3)."""
    return re.sub(r"[^ -~]", lambda match: f"\\x{{{ord(match[0]):X}}}", address)


def _folded(line: str) -> str:
    """A field whose long value goes on in folded lines (RFC 5322 §2.2.3)."""
    if len(line) <= 78 or " " not in line:
        return line
    return "\r\n\t".join(_wrapped(line, 77))


def _wrapped(text: str, width: int = 72) -> list[str]:
    """*text* cut at spaces into lines of *width* columns; what has no space stays whole while a
    line may be as long.

    Where a line was cut its space is gone: between words, folding puts it back.
    """
    lines = [""]
    for word in _words_of(text):
        if lines[-1] and _columns(lines[-1]) + 1 + _columns(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return lines


def _words_of(text: str) -> Iterator[str]:
    for word in text.split(" "):
        yield word[:_WORD]
        for at in range(_WORD, len(word), _WORD):
            yield word[at:at + _WORD]


def _columns(text: str) -> int:
    return sum(1 + (character >= "\u1100") for character in text)
