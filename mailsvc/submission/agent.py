"""The message submission agent (RFC 6409): what a submission listener asks beyond any other.

Who may send as whom (:mod:`~mailsvc.submission.senders`), how much
(:mod:`~mailsvc.submission.rates`), and what becomes of the message on its way in
(:mod:`~mailsvc.submission.completion`, :mod:`~mailsvc.submission.repair`).
"""

from __future__ import annotations

import os
import pwd

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from mailsvc.mail import Account, Envelope
from mailsvc.names import fold_domain, fold_local_part
from mailsvc.networks import address_of, network_of
from mailsvc.routing import Router
from mailsvc.submission.completion import Completion
from mailsvc.submission.limits import SubmissionSettings
from mailsvc.submission.rates import Rates
from mailsvc.submission.repair import Repair
from mailsvc.submission.senders import Submitter, client, login, system_user


class SubmissionAgent:
    """Holds those who submit mail to what they may send."""

    def __init__(self, settings: SubmissionSettings, router: Router, rates: Rates,
                 hostname: str) -> None:
        self._settings = settings
        self._router = router
        self._rates = rates
        self._hostname = hostname
        self._trusted = [network_of(each) for each in settings.trusted_networks]
        self._urgent = {_folded(each) for each in settings.priority_accounts}

    def logged_in(self, account: Account) -> Submitter:
        """Who logged in as *account*."""
        return login(self._router, account)

    def without_login(self, ip: str, uid: int | None) -> Submitter | None:
        """Who may submit without a login, or None when it may not.

        :param ip: the client's address, or empty.
        :param uid: the user on the other end of a Unix socket, or None when it is not one.
        """
        if uid is not None:
            try:
                name = pwd.getpwuid(uid).pw_name
            except KeyError:
                name = str(uid)
            return system_user(
                self._router, name, self._hostname,
                self._settings.local_senders.get(name, "").split(),
                anybody=uid in (0, os.geteuid()))
        if ip and any(address_of(ip) in network for network in self._trusted):
            return client(self._router, ip, self._hostname)
        return None

    def admit_sender(self, submitter: Submitter, envelope: Envelope) -> None:
        """At MAIL.

        :raises mailsvc.errors.MailFailure: *submitter* may not send as the reverse-path, or no more
            now.
        """
        submitter.require(envelope.reverse_path)
        self._rates.check(submitter.name)

    def priority_most(self, submitter: Submitter) -> int:
        """The highest MT-PRIORITY that *submitter* may give (RFC 6710)."""
        urgent = _folded(submitter.name) in self._urgent
        return 9 if urgent else self._settings.priority_most

    def admit_recipient(self, submitter: Submitter, envelope: Envelope) -> None:
        """At RCPT, before the recipient joins the envelope.

        :raises mailsvc.errors.MailFailure: it is one too many for now.
        """
        self._rates.check(submitter.name, len(envelope.recipients) + 1)

    def count(self, submitter: Submitter, envelope: Envelope) -> Deferred[None]:
        """Before the data; fails with MailFailure when it has become too much meanwhile."""
        return self._rates.count(submitter.name, len(envelope.recipients))

    def filters(
        self, submitter: Submitter, envelope: Envelope, seconds: int
    ) -> list[Completion | _RepairInThread]:
        """What the message passes through, in order.

        :param seconds: the time, since the epoch.
        """
        filters: list[Completion | _RepairInThread] = [Completion(
            self._settings, submitter, envelope.reverse_path, id=envelope.id,
            hostname=self._hostname, seconds=seconds)]
        if self._settings.repair:
            filters.append(_RepairInThread(Repair(
                self._settings.repair_octets, eight_bit=envelope.body == "8BITMIME")))
        return filters


def _folded(name: str) -> tuple[str, str]:
    local_part, _, domain = name.rpartition("@")
    return fold_local_part(local_part), fold_domain(domain)


class _RepairInThread:
    """A Repair whose end, some tenths of a second for two MiB, does not hold up the reactor."""

    def __init__(self, repair: Repair) -> None:
        self._repair = repair
        self.feed = repair.feed

    def finish(self) -> Deferred[bytes]:
        return deferToThread(self._repair.finish)
