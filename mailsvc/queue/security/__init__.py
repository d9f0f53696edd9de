"""What the hosts of a domain have to prove before mail is sent to them (docs/relaying.rst)."""
