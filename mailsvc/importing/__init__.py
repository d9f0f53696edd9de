"""Mail brought from elsewhere into a mailbox."""
