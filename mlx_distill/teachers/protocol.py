"""What a teacher is: something that answers one request at a time, and says why when it does not.

Asking again, waiting, counting and writing down are not a teacher's work: `asking` does that for all of them.
"""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from mlx_distill.records import Answer, Request


class TryLaterError(Exception):
    """The teacher did not answer now but may in a while: a rate limit, an overload, a dropped connection."""

    def __init__(self, reason: str, *, after_seconds: float | None = None, overloaded: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.after_seconds = after_seconds
        """How long the teacher asks to be left alone; None where it does not say."""
        self.overloaded = overloaded
        """Whether everybody must slow down, not only this request."""


class NoAnswerError(Exception):
    """The teacher will never answer this one request (too long, not recorded); others may still be answered."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Teacher(Protocol):
    """Who answers. Entering makes it ready to be asked, leaving gives back what it holds; it may be entered again."""

    @property
    def name(self) -> str:
        """As the user names it, provider and model: part of every request's key."""

    @property
    def terms(self) -> str:
        """What the user must know before training on its answers; empty where there is nothing to say."""

    async def __aenter__(self) -> Self:
        """Get ready. TeacherError or another DistillError where it cannot be asked at all (no key, no file)."""

    async def answer(self, request: Request) -> Answer:
        """Ask once.

        Raises TryLaterError or NoAnswerError for this request, and TeacherError where no request can succeed
        (a refused key, an unknown model, an empty balance).
        """

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give back connections."""
