Receive mail by SMTP: RFC 5321 whole, with PIPELINING, SIZE, 8BITMIME, SMTPUTF8, CHUNKING, ENHANCEDSTATUSCODES and LIMITS; only CRLF ends a line and only CRLF.CRLF ends a message.
