"""What cannot be done, as programs are told it (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

#: The media type of a problem.
MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """A request that is not answered as it was meant.

    :ivar detail: why, and what to do, for people.
    :ivar headers: fields of the answer, such as Allow.
    :ivar members: what else programs may want to know.
    """

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None,
                 **members: Any) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers or {}
        self.members = members

    def plain(self) -> dict[str, Any]:
        """As JSON has it; what there is to say of its type is in the status (RFC 9457 §4.2.1)."""
        return {"type": "about:blank", "title": HTTPStatus(self.status).phrase,
                "status": self.status, "detail": self.detail, **self.members}
