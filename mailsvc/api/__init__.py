"""The API: what the console and the commands do, for programs, in JSON on HTTP.

It is below ``/api/v1`` on the listeners of the console, and alone on those of the kind ``api``.
What each path is, who may use it, what it takes and what it gives, is one table
(:mod:`~mailsvc.api.routes`): by it requests are checked, and from it the description is made
(:mod:`~mailsvc.api.description`), which so says what holds.

Everything is done by what the console and the commands do it by.
"""
