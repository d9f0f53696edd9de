"""The console: pages for users and administrators, and what stands behind them.

A listener of the kind ``console`` is served by the workers, as those for mail are: the pages need
the store, the directory and the brakes, which they have.  Any worker answers any request, since a
session of the console is a row in ``state.sqlite`` (:mod:`~mailsvc.console.sessions`) and nothing
else is remembered between two requests.  Even the dialogue of a message that is being sent is the
answer to the one request that sends it, written as it goes on.

Pages are HTML made here (:mod:`~mailsvc.console.pages`), usable without JavaScript.  What each
address is, who may use it and by which method, is one table: :mod:`~mailsvc.console.routes`.
"""
