"""Certificates from an authority that speaks ACME (RFC 8555), got and renewed by the service.

Who asks for a certificate has to show that a name is his.  Either the authority fetches a file from
port 80 of that name (HTTP-01, §8.3): what is in it depends on nothing but the question and the key
of our account there, so whoever knows the account's *thumbprint* can answer at any time, and need
not know what is asked, nor by whom.  Or it looks at the certificate that it is shown on port 443 in
a TLS handshake of its own kind (TLS-ALPN-01, RFC 8737): who asks leaves that one for all::

    renewal    in one process of the service: when to ask; it starts
    order      a program of its own, which asks, and writes certificate.pem
    challenges what the authority asks to see, and what it is shown
    page       behind the listeners of the kind ``acme``: answers HTTP-01
    alpn       the same for TLS-ALPN-01, there and on every listener with TLS
    files      what these leave for each other, in {data}/acme
"""
