"""Passwords and tokens that are kept elsewhere: checkers for ``twistd mailsvc --auth``.

Each is a plug-in of ``twisted.cred.strcred`` and takes a library that only its own extra installs:
``ldap``, ``pam``, ``postgresql``, ``oauth``.  The avatar id of all of them is the name of an
account; whether there is such an account is for the realm to say.

A checker that cannot tell fails with :class:`mailsvc.errors.TemporaryFailure`; one that says no
fails with ``UnauthorizedLogin``, and with the same words whether the name exists or not.
"""
