"""What the SMTP listeners of one mode count."""

from __future__ import annotations

from mailsvc import figures
from mailsvc.figures import Share
from mailsvc.smtp.replies import Reply


class Tally:
    """Counts in *share*, for the mode that is called *protocol*.

    :ivar commit: how long it takes to make a message durable.
    """

    def __init__(self, share: Share, protocol: str) -> None:
        self._share = share
        self._protocol = protocol
        self._messages = share.count(figures.ACCEPTED, protocol)
        self._octets = share.count(figures.ACCEPTED_BYTES, protocol)
        self._recipients = share.count(figures.ACCEPTED_RECIPIENTS, protocol)
        self._sender, self._dropped, self._not_stored = (
            share.count(figures.NOT_ACCEPTED, protocol, reason)
            for reason in ("sender", "dropped", "not stored"))
        self.commit = share.spread(figures.COMMIT)

    def accepted(self, octets: int, recipients: int) -> None:
        """A message was taken for so many recipients."""
        self._messages.add()
        self._octets.add(octets)
        self._recipients.add(recipients)

    def refused(self, answer: Reply) -> None:
        """A recipient was turned down."""
        status = answer.status
        self._share.count(figures.REFUSED_RECIPIENTS, self._protocol, str(answer.code),
                          f"{status.class_}.{status.subject}" if status else "").add()

    def refused_sender(self) -> None:
        """The sender of a message was turned down."""
        self._sender.add()

    def dropped(self) -> None:
        """A message that had begun came to nothing."""
        self._dropped.add()

    def not_stored(self) -> None:
        """A message could not be made durable."""
        self._not_stored.add()
