"""Certificates from an authority that speaks ACME (RFC 8555), got and renewed by the service.

Who asks for a certificate has to show that a name is his: the authority fetches a file from port 80
of that name (HTTP-01, §8.3).  What is in it depends on nothing but the question and the key of our
account there, so whoever knows the account's *thumbprint* can answer at any time, and need not know
what is asked, nor by whom::

    renewal    in one process of the service: when to ask; it starts
    order      a program of its own, which asks, and writes certificate.pem
    page       behind the listeners of the kind ``acme``: answers the authority
    files      what these leave for each other, in {data}/acme
"""
