"""Mail for other hosts: kept on disk, sent, tried again, and reported on."""
