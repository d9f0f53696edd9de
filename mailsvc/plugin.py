"""What the plugin of twistd names: :mod:`mailsvc.tap`, and all that it takes, imported at once."""

from __future__ import annotations

from mailsvc.interrupt import ends_quietly

with ends_quietly():
    from mailsvc.tap import Options, makeService

__all__ = ["Options", "makeService"]
