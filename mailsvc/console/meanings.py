"""What a reply of a mail server means, in words (RFC 5321 §4.2.3, RFC 3463, RFC 5248)."""

from __future__ import annotations

import re

_REPLY = re.compile(r"([2-5][0-9]{2})[ -](?:([245])\.([0-9]{1,3})\.([0-9]{1,3}) )?")

#: By subject and detail of the enhanced status code; they say more than the code.
_STATUSES = {
    "1.1": "There is no such mailbox: check the part before the @.",
    "1.2": "There is no such host or domain: check the part behind the @.",
    "1.3": "The address is not written as addresses are.",
    "1.6": "The mailbox has moved; its text tells where.",
    "1.7": "The sender's address is not written as addresses are.",
    "1.8": "The sender's domain is not known.",
    "1.10": "The domain says that it takes no mail.",
    "2.1": "The mailbox does not take mail now.",
    "2.2": "The mailbox is full.",
    "2.3": "The message is larger than the mailbox takes.",
    "3.2": "The server takes no mail at the moment.",
    "3.4": "The message is larger than the server takes.",
    "4.1": "Nobody answers there.",
    "4.3": "The directory that knows the addresses does not answer.",
    "4.5": "The server is too busy.",
    "4.6": "The mail goes round in a loop.",
    "5.1": "The server did not expect this command now.",
    "5.2": "The server does not know this command.",
    "5.3": "Those are more recipients than the server takes at once.",
    "5.4": "The server does not take this parameter.",
    "6.3": "The message would have to be changed, which the server does not do.",
    "6.7": "The address is not in ASCII, and the server does not take others.",
    "7.0": "The server does not want this, by a rule of its own.",
    "7.1": "This is not allowed: relaying, or a sender that is not one's own.",
    "7.8": "Name or password is wrong.",
    "7.9": "This way of logging in is too weak for the server.",
    "7.11": "The server wants TLS first.",
    "7.20": "There is no valid DKIM signature.",
    "7.23": "SPF says that this host may not send for the domain.",
    "7.25": "The name of the sending host does not lead back to its address.",
    "7.26": "Neither SPF nor DKIM say that the message is what it claims to be.",
    "7.28": "Too much was sent lately; try again later.",
}

#: The same of replies that are positive.
_SUCCESSES = {
    "1.0": "The sender is accepted.",
    "1.5": "The recipient is accepted.",
    "6.0": "The message is accepted.",
}

_CODES = {
    "220": "The server is there and ready.",
    "221": "The server says goodbye.",
    "235": "The login is good.",
    "250": "Done.",
    "251": "Not here, but the server passes it on.",
    "252": "The server does not tell, and would try.",
    "334": "The server asks for the next step of the login.",
    "354": "The server waits for the message.",
    "421": "The server ends the connection; try again later.",
    "450": "The mailbox cannot be used now; try again later.",
    "451": "Something went wrong at the server; try again later.",
    "452": "The server has no room, or takes no more at once; try again later.",
    "454": "This cannot be had now; try again later.",
    "500": "The server does not know this command.",
    "501": "The server does not understand what is behind the command.",
    "502": "The server does not do this.",
    "503": "The server did not expect this command now.",
    "504": "The server does not take this parameter.",
    "521": "The host takes no mail at all.",
    "530": "The server wants a login, or TLS, first.",
    "535": "Name or password is wrong.",
    "538": "The server wants TLS before a login.",
    "550": "Refused for good: there is no such mailbox, or the server does not want the mail.",
    "551": "The mailbox is elsewhere; the text tells where.",
    "552": "The mailbox is full, or the message too large.",
    "553": "The server does not take this address.",
    "554": "Refused for good.",
    "555": "The server does not take these parameters.",
    "556": "The domain says that it takes no mail.",
}

_CLASSES = {
    "2": "Done.",
    "3": "The server waits for more.",
    "4": "Not now; try again later.",
    "5": "Refused for good.",
}


def meaning(line: str) -> str:
    """What the last line of a reply means, in the words of the pages; "" when it is none."""
    match = _REPLY.match(line + " ")
    if match is None:
        return ""
    code, kind, subject, detail = match.groups()
    known = _SUCCESSES if kind == "2" else _STATUSES
    if words := known.get(f"{subject}.{detail}"):
        return words
    return _CODES.get(code) or _CLASSES[code[0]]


def all_meanings() -> set[str]:
    """Every sentence there is, for the catalogues."""
    return {*_STATUSES.values(), *_SUCCESSES.values(), *_CODES.values(), *_CLASSES.values()}
