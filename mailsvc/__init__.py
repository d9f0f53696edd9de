"""A combined SMTP and POP3 mail service on Twisted."""

from __future__ import annotations

__version__ = "0.1.0"
