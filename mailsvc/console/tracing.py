"""What happened to a message: ``mailsvc trace`` as a page.

Administrators see everything; everybody else what concerns their own account
(:class:`mailsvc.tracing.search.OwnReader`).
"""

from __future__ import annotations

from mailsvc.console.call import ADMINISTRATOR, Answer, Call, Page
from mailsvc.tracing.archive import Reader
from mailsvc.tracing.search import OwnReader, stories
from mailsvc.tracing.story import Story

#: Most messages that are told of, and most characters that are looked for.
MOST, _CHARACTERS = 20, 1000
#: What can befall a message, as stories call it, and how that is coloured.
PHASES = {
    "came in": "", "checks": "", "accepted": "good", "refused": "bad", "queue": "later",
    "delivered": "good", "fetched": "good", "deleted": "", "restored": "good", "report": "later",
    "login": "", "note": "",
}


async def show(call: Call) -> Answer:
    """The stories of what is looked for; of the reader's own account when nothing is."""
    wanted = call.query["q"][:_CHARACTERS]

    def read() -> tuple[list[Story], float | None, list[str]]:
        directory = call.backend.data / "trace"
        with (Reader(directory) if call.role == ADMINISTRATOR
              else OwnReader(directory, call.user.name)) as reader:
            found = stories(reader, wanted or call.user.name, most=MOST)
            return found, reader.began(), reader.problems

    found, began, problems = await call.backend.threads.run(read)
    return Page("trace.html", {
        "wanted": wanted, "stories": found, "began": began, "phases": PHASES, "most": MOST,
        "problems": problems if call.role == ADMINISTRATOR else [],
        "enabled": call.backend.settings.trace.enabled})
