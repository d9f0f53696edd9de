"""What a submission server does more (RFC 6409): senders' rights, completion, repair."""
