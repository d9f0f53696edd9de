"""The benchmark: mailsvc beside other mail servers, on one machine and in one run.

``python -m tests.bench --help`` says how to run it; ``docs/performance.rst`` says what it measures
and how to read the figures.

==============  ===================================================================================
messages.py     the messages sent: each says who it is, and is known to the octet
maildirs.py     maildirs filled before a measurement, and read back after it
process.py      a server as a tree of processes: its CPU seconds, its memory, its end
keeper.py       the parent of each such tree, a program of its own
peers.py        what the servers have in common; mailsvc and aiosmtpd
postfix.py …    the configurations of the others: dovecot.py, exim.py, opensmtpd.py
disk.py         what the disk allows: a loop in C, disk.c
fetch.py        peers that cannot be installed side by side, unpacked into a directory
load.py         many connections in a few client processes, over epoll
smtp_load.py    the sending dialogues, SMTP and LMTP
pop3_load.py    the fetching dialogues
scenario.py     what a measurement is made of
receiving.py    the SMTP scenarios
fetching.py     the POP3 scenarios
run.py          rounds of interleaved measurements; idle connections
machine.py      what the figures depend on
report.py       medians, tables, JSON
plot.py         the bars
==============  ===================================================================================
"""
