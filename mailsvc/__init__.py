"""A combined SMTP and POP3 mail service on Twisted."""

__version__ = "0.1.0"
