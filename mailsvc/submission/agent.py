"""The message submission agent (RFC 6409): what a submission listener asks beyond any other.

Who may send as whom (:mod:`~mailsvc.submission.senders`), how much (:mod:`mailsvc.rates`), and what
becomes of the message on its way in (:mod:`~mailsvc.submission.completion`,
:mod:`~mailsvc.submission.repair`).
"""

from __future__ import annotations

from functools import partial

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from mailsvc.mail import Account, Envelope
from mailsvc.rates import Rates
from mailsvc.routing import Router
from mailsvc.submission.completion import Completion
from mailsvc.submission.limits import SubmissionSettings
from mailsvc.submission.repair import Repair
from mailsvc.submission.senders import owns, require


class SubmissionAgent:
    """Holds the logins of a service to what they may send."""

    def __init__(self, settings: SubmissionSettings, router: Router, rates: Rates,
                 hostname: str) -> None:
        self._settings = settings
        self._router = router
        self._rates = rates
        self._hostname = hostname

    def admit_sender(self, account: Account, envelope: Envelope) -> None:
        """At MAIL.

        :raises mailsvc.errors.MailFailure: *account* may not send as the reverse-path, or no more
            now.
        """
        require(self._router, account, envelope.reverse_path)
        self._rates.check(account)

    def admit_recipient(self, account: Account, envelope: Envelope) -> None:
        """At RCPT, before the recipient joins the envelope.

        :raises mailsvc.errors.MailFailure: it is one too many for now.
        """
        self._rates.check(account, len(envelope.recipients) + 1)

    def count(self, account: Account, envelope: Envelope) -> Deferred[None]:
        """Before the data; fails with MailFailure when it has become too much meanwhile."""
        return self._rates.count(account, len(envelope.recipients))

    def filters(
        self, account: Account, envelope: Envelope, seconds: int
    ) -> list[Completion | _RepairInThread]:
        """What the message passes through, in order.

        :param seconds: the time, since the epoch.
        """
        filters: list[Completion | _RepairInThread] = [Completion(
            self._settings, account, envelope.reverse_path,
            owns=partial(owns, self._router, account), id=envelope.id, hostname=self._hostname,
            seconds=seconds)]
        if self._settings.repair:
            filters.append(_RepairInThread(Repair(
                self._settings.repair_octets, eight_bit=envelope.body == "8BITMIME")))
        return filters


class _RepairInThread:
    """A Repair whose end, some tenths of a second for two MiB, does not hold up the reactor."""

    def __init__(self, repair: Repair) -> None:
        self._repair = repair
        self.feed = repair.feed

    def finish(self) -> Deferred[bytes]:
        return deferToThread(self._repair.finish)
