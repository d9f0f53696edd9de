"""The contracts between the protocol servers and what stands behind them.

``tests/test_store_contract.py`` and ``test_maildrop_contract.py`` are the executable form of the
store's half: whatever passes them can be given to ``service.build``.  One Deferred per operation,
none per block and none per message, so that a store on a database or on another host can keep the
same contract.
"""

from __future__ import annotations

from zope.interface import Attribute, Interface


class IMailboxStore(Interface):
    """Where delivered mail lies."""

    def start():
        """Begin to work; synchronous.  Called once, before the other methods."""

    def stop():
        """End.

        :returns: a Deferred that fires with None when all that was begun has been done.
        """

    def begin(accounts, id, size_hint=0, within_quota=True):
        """Open a delivery of one message; synchronous, and does no I/O.

        :param accounts: a non-empty tuple of distinct :class:`mailsvc.mail.Account`.
        :param id: the message's id (:func:`mailsvc.mail.new_id`), ASCII letters and digits, used
            for one message only; the store may build its unique-ids from it.
        :param size_hint: octets expected, 0 when unknown; not a promise.
        :param within_quota: whether it is to fail when it is whole and exceeds an account's quota.
        :returns: an :class:`IDelivery`.
        """

    def room(account, octets):
        """Whether *account* may take one more message of *octets* (0 when unknown).

        :returns: None, or a Deferred that fires with None.
        :raises mailsvc.errors.MailboxFull: (or the Deferred fails with it) when its quota would be
            exceeded; :class:`mailsvc.errors.MessageTooLarge` when that is so even of an empty one.
            For RCPT; when a message is whole, its delivery looks again.
        """

    def open_maildrop(account):
        """Take the exclusive lock of *account*'s maildrop and its whole listing, in one go.

        :returns: a Deferred of an :class:`IMaildrop`.  It fails with
            :class:`mailsvc.errors.MaildropInUse` when another session, of whatever process, holds
            the lock, and with :class:`mailsvc.errors.TemporaryFailure` when the store cannot be
            read.  An account that never got mail has an empty maildrop.
        """

    def view(account):
        """Look into *account*'s maildrop as it is now, without its lock.

        It disturbs no session, and none disturbs it.

        :returns: a Deferred of an :class:`IView`.  It fails with
            :class:`mailsvc.errors.TemporaryFailure` when the store cannot be read.
        """

    def sweep():
        """Remove what abandoned deliveries left behind (36 hours old, say).

        :returns: a Deferred of the number of things removed; never fails.
        """


class IDelivery(Interface):
    """One message on its way to one or more accounts.

    ``write`` any number of times, then exactly one of ``commit`` and ``abort``; ``abort`` may
    follow anything.  Nothing is visible in any maildrop before commit.
    """

    def write(block):
        """Append *block* (bytes; lines end in CRLF, dots unstuffed; cut anywhere).

        :returns: None to go on, or a Deferred: pause the sender until it fires.  A failure, raised
            or through the Deferred, is repeated by ``commit``; the caller may go on or abort.
        """

    def commit():
        """Make the message durable in every account's maildrop.

        :returns: a Deferred that fires with None when every copy would survive a power loss, or
            fails with a :class:`mailsvc.errors.MailFailure`; then what could be withdrawn has been.
            A retry may duplicate, never lose (RFC 1047).  It fails as ``IMailboxStore.room`` does
            where an account's quota would be exceeded, and no account has the message then.
        """

    def abort():
        """Forget the message; synchronous, idempotent, never raises.  Does nothing after commit."""


class IQueue(Interface):
    """Where mail for other hosts waits until it has been relayed."""

    def begin(envelope):
        """Open a delivery of one message into the queue; synchronous, and does no I/O.

        :param envelope: a :class:`mailsvc.mail.Envelope` of which some recipient has remotes, or
            that is to be held.
        :returns: an :class:`IDelivery`.
        """

    def hurry(domain):
        """Try what waits for *domain* now, and not when it is due; returns at once."""

    def turn(domains, connection, account, protocol):
        """Send what waits for *domains* over a connection whose client has become the server.

        :param connection: its id, for the log; *account* likewise is whose it is.
        :param protocol: a Twisted protocol, to be connected to what sends.  What it gets is for the
            other end, and what it writes has come from there; each end of the connection is the
            other's.
        :returns: a Deferred that fires with None when *protocol* is connected, or fails
            with :class:`mailsvc.errors.NothingWaits`, :class:`mailsvc.errors.TurnInUse`, or
            :class:`mailsvc.errors.TemporaryFailure` when nobody sends now.
        """

    def delivered(envelope, header):
        """Tell the sender that a message is in the maildirs here, where it asked for that (DSN).

        :param header: the message's, or as much of it as there is.
        :returns: a Deferred that fires with None when the report is on its way; never fails.
        """


class IView(Interface):
    """What lay in a maildrop at one moment: to be read, and no more.

    Messages are numbered from 1, fixed at that moment; mail that arrives later is not seen, and
    what is removed meanwhile has vanished when it is read.
    """

    sizes = Attribute("``array('Q')`` of sizes in octets as RETR sends them, CRLF counted, without "
                      "dot-stuffing and terminator; message n is ``sizes[n - 1]``.")
    octets = Attribute("The sum of ``sizes``.")

    def uidl(number):
        """The unique-id of a message: bytes, 1 to 70 of 0x21–0x7E (RFC 1939 §7).

        Permanent, never reused in this maildrop, and distinct from all others in it.
        """

    def uidls(first, end):
        """The unique-ids of the messages from *first* up to before *end*: a list of bytes."""

    def text(number):
        """A message whole, when it is short and at hand at once: bytes, or None to ask ``read``.

        As ``read`` writes it; it never waits for a disk and never fails.
        """

    def read(number, consumer, lines=None):
        """Write a message to *consumer* (``IConsumer``), all lines ending in CRLF, the last too.

        Not dot-stuffed, without the terminator.  With *lines*, only the header, the empty line and
        that many lines of the body (TOP).  Small messages are written at once; larger ones through
        a registered producer, as the consumer asks for them.

        :returns: a Deferred that fires with None when the last block was written.  It fails with
            :class:`mailsvc.errors.MessageVanished` if the file is gone (then nothing was written),
            or :class:`mailsvc.errors.TemporaryFailure` when it cannot be read (and something may
            have been).  Cancelling it stops the producer; when the consumer stops it, it fails with
            :class:`twisted.internet.defer.CancelledError` likewise.
        """


class IMaildrop(IView):
    """An open, exclusively locked maildrop: the avatar of a POP3 login.

    Deletion marks are the session's (RFC 1939 §5), not the store's.
    """

    lost = Attribute("A Deferred that fires when the lock is known to be lost; often never.")

    def update(deleted):
        """Remove the messages numbered in *deleted* (a collection of ints), then release.

        :returns: a Deferred of None when all are gone for good (a power loss would not bring them
            back); fails with :class:`mailsvc.errors.SomeNotRemoved`.  The lock is released in
            either case.
        """

    def release():
        """Give the lock back, deleting nothing; synchronous, idempotent, never raises."""


class IDirectory(Interface):
    """Which domains, accounts and aliases there are.  Look-ups are local and quick: no Deferreds.

    Names arrive as in :class:`mailsvc.mail.Address`; the directory folds them by its own case rule.
    Each method raises :class:`mailsvc.errors.TemporaryFailure` when the directory cannot be read.
    """

    def version():
        """A value that is another one after any change: until then each look-up finds the same."""

    def domain(name):
        """The :class:`mailsvc.mail.Domain` of that name, or None when it is not ours."""

    def account(local_part, domain):
        """The :class:`mailsvc.mail.Account`, or None."""

    def alias(local_part, domain):
        """The :class:`mailsvc.mail.Alias`, or None."""

    def credentials(name):
        """What a login as *name* (``local-part@domain``) is checked against.

        :returns: a :class:`mailsvc.logins.Credentials`, or None when there is no such account.
        """

    def keyed(purpose, value):
        """The HMAC-SHA-256 of *value* (bytes) for *purpose* (str), under a key that this directory
        keeps to itself and never changes."""

    def domains(most=-1):
        """The :class:`mailsvc.mail.Domain` there are, the oldest first; an iterator.

        :param most: of at most so many; -1 for all.
        """

    def oldest_account(domain):
        """The first :class:`mailsvc.mail.Account` made in a domain that receives mail, or None."""

    def renew_password(password, verifier, scram):
        """Keep other hashes of the same password, unless it was changed or removed meanwhile.

        May wait, and be called in any thread.

        :param password: the :class:`mailsvc.logins.StoredPassword` as it was found.
        """

    def record_uses(uses):
        """Note when, and from where, passwords were last used.

        May wait, and be called in any thread.

        :param uses: tuples of :attr:`mailsvc.logins.StoredPassword.id`, Unix time and address.
        """


class ISubmitter(Interface):
    """Somebody who may submit mail: the avatar of a submission login."""

    account = Attribute("The :class:`mailsvc.mail.Account` that logged in.")


class IAccountHolder(Interface):
    """Somebody who looks after an account of theirs: the avatar of a login to the console."""

    account = Attribute("The :class:`mailsvc.mail.Account` that logged in.")


class IKeyring(Interface):
    """Where SCRAM mechanisms get the keys that a client's proof is checked against."""

    def scram_keys(name, attempt):
        """The :class:`mailsvc.credentials.ScramKeys` of whoever *name* (bytes, UTF-8) is.

        Synchronous and quick.  Where there is no such account, or it has no keys, or none that are
        good for *attempt*, they are keys that no password has, and that are the same each time: a
        client cannot tell.

        :raises mailsvc.errors.TemporaryFailure: when the directory cannot be read.
        """


class IRouter(Interface):
    """Where a forward-path leads."""

    def route(forward_path, relay=False):
        """Where mail to *forward_path* is delivered or relayed to.

        :param relay: whether its sender may send through us to whatever host.
        :returns: a non-empty tuple of :class:`mailsvc.mail.Account` and
            :class:`mailsvc.mail.Remote`, or a Deferred of it.
        :raises mailsvc.errors.MailFailure: ``UnknownMailbox``, ``MailboxMoved``, ``RelayDenied``,
            ``RoutingLoop`` or ``TemporaryFailure``.
        """

    def relays(domain):
        """Whether mail for *domain*, which is not served here, is taken from anybody."""

    fetched = Attribute("Whether some account may fetch mail by ATRN.")

    def runs(domain):
        """Whether anybody may ask for mail for *domain* to be sent on (ETRN)."""

    def turns(account):
        """The domains, a tuple, whose mail the account of that name may fetch (ATRN)."""

    def verify(name):
        """What VRFY may say of *name*: the :class:`mailsvc.mail.Address` it means, or raises."""

    def expand(name):
        """What EXPN may say of *name*: the addresses a list or alias leads to, or raises."""
