"""What happened to each message: events of the log, kept for ``mailsvc trace``."""
