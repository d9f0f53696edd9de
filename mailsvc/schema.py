"""The tables of the accounts file, and how a file of an older version becomes one of this.

Version 2 has a table of passwords, several to an account, where version 1 had one in the account's
own row; accounts have roles; and the file has a key of its own.  Accounts lie in ``mailbox``.
Version 3 adds which of them administer the service.  A
file that was migrated has a view ``account`` besides, of the shape of version 1's table: a process
of the older program that has the file open goes on receiving mail and checking main passwords until
it is restarted.  It opens no file anew, and so changes nothing, since the version is another.
"""

from __future__ import annotations

import secrets

#: PRAGMA user_version of the files made by :func:`script`.
VERSION = 3

_DOMAINS_AND_ALIASES = """
CREATE TABLE domain (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    separators TEXT,
    catch_all_local_part TEXT,
    catch_all_domain TEXT
);
CREATE TABLE alias (
    id INTEGER PRIMARY KEY,
    domain TEXT NOT NULL REFERENCES domain (name),
    key TEXT NOT NULL,
    local_part TEXT NOT NULL,
    moved INTEGER NOT NULL,
    UNIQUE (domain, key)
);
CREATE TABLE target (
    alias INTEGER NOT NULL REFERENCES alias (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    domain TEXT NOT NULL,
    key TEXT NOT NULL,
    local_part TEXT NOT NULL,
    PRIMARY KEY (alias, position)
) WITHOUT ROWID;
CREATE INDEX target_by_name ON target (domain, key);
"""

# The ids of passwords are never used again (AUTOINCREMENT): what is noted late about one that was
# removed meanwhile must not be noted about another.
_ACCOUNTS = """
CREATE TABLE mailbox (
    id INTEGER PRIMARY KEY,
    domain TEXT NOT NULL REFERENCES domain (name),
    key TEXT NOT NULL,
    local_part TEXT NOT NULL,
    role TEXT NOT NULL DEFAULT 'both',
    quota_octets INTEGER NOT NULL,
    quota_messages INTEGER NOT NULL,
    UNIQUE (domain, key)
);
CREATE INDEX mailbox_by_age ON mailbox (domain, id);
CREATE TABLE password (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    mailbox INTEGER NOT NULL REFERENCES mailbox (id) ON DELETE CASCADE,
    key TEXT NOT NULL,
    label TEXT NOT NULL,
    verifier TEXT,
    scram TEXT,
    secret TEXT,
    protocols TEXT NOT NULL DEFAULT '',
    networks TEXT NOT NULL DEFAULT '',
    expires INTEGER,
    made INTEGER NOT NULL,
    used INTEGER,
    used_from TEXT NOT NULL DEFAULT '',
    UNIQUE (mailbox, key)
);
CREATE TABLE file_key (value BLOB NOT NULL);
INSERT INTO file_key VALUES (x'{key}');
"""

_ADMINISTRATORS = """
CREATE TABLE administrator (
    mailbox INTEGER PRIMARY KEY REFERENCES mailbox (id) ON DELETE CASCADE
);
"""

# The time that a password of version 1 was made at is not known: 0.
_FROM_1 = """
INSERT INTO mailbox (id, domain, key, local_part, quota_octets, quota_messages)
    SELECT id, domain, key, local_part, quota_octets, quota_messages FROM account;
INSERT INTO password (mailbox, key, label, verifier, secret, made)
    SELECT id, '', '', verifier, secret, 0 FROM account
    WHERE verifier IS NOT NULL OR secret IS NOT NULL ORDER BY id;
DROP TABLE account;
CREATE VIEW account AS
    SELECT mailbox.id, mailbox.domain, mailbox.key, local_part, verifier, secret, quota_octets,
        quota_messages
    FROM mailbox LEFT JOIN password ON password.mailbox = mailbox.id AND password.key = ''
    WHERE role != 'send';
"""


def script() -> str:
    """What makes the tables of a new file, whose key is made up here."""
    return _DOMAINS_AND_ALIASES + _accounts() + _ADMINISTRATORS


def migrations() -> dict[int, str]:
    """For each older version, what makes a file of it one of the next."""
    return {1: _accounts() + _FROM_1, 2: _ADMINISTRATORS}


def _accounts() -> str:
    return _ACCOUNTS.format(key=secrets.token_hex(32))
