"""Webhooks: events told to other programs by HTTP, signed and retried."""
