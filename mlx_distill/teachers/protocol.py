"""What a teacher is: something that answers one request at a time, and says why when it does not.

Asking again, waiting, counting and writing down are not a teacher's work: `asking` does that for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self

from mlx_distill.errors import TeacherError
from mlx_distill.records import Answer, Request


class TryLaterError(Exception):
    """The teacher did not answer now but may in a while: a rate limit, an overload, a dropped connection."""

    def __init__(
        self,
        reason: str,
        *,
        after_seconds: float | None = None,
        overloaded: bool = False,
        may_be_charged: bool = True,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.after_seconds = after_seconds
        """How long the teacher asks to be left alone; None where it does not say."""
        self.overloaded = overloaded
        """Whether everybody must slow down, not only this request."""
        self.may_be_charged = may_be_charged
        """False only where it is certain that this attempt costs nothing (refused before any work was done)."""


class NoAnswerError(Exception):
    """The teacher will never answer this one request (too long, not recorded); others may still be answered.

    Nothing is charged for it.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class RefusedError(TeacherError):
    """The teacher does not take this request as it is, and does not say whether it would take others.

    Nothing is charged for it.
    """


class LimitError(TeacherError):
    """The model does not write answers as long as this request allows. Nothing is charged for it."""


class UnreadableError(TeacherError):
    """What came back is no answer, so that it is not known what was charged."""


@dataclass(frozen=True)
class Limit:
    """How much more may be asked for now, as the provider says it with an answer."""

    of: Literal["requests", "input tokens", "output tokens"]
    full: int
    """What there is again after a reset; 0 where the provider does not say."""
    remaining: int
    resets_in_seconds: float
    """Until all of it is there again; 0 or less where that is already so."""


class Teacher(Protocol):
    """Who answers. Entering makes it ready to be asked, leaving gives back what it holds; it may be entered again."""

    @property
    def name(self) -> str:
        """As the user names it, provider and model: part of every request's key."""

    @property
    def terms(self) -> str:
        """What the user must know before training on its answers; empty where there is nothing to say."""

    @property
    def billed_model(self) -> str:
        """The model whose price holds for every answer; empty where nothing is charged (a recording, a local server).

        Answers of a billed model come without `cost_usd`: the ledger works it out.
        """

    @property
    def longest_retry(self) -> int:
        """Up to which `max_tokens` an answer that was cut off is asked for again; 0 where that changes nothing."""

    @property
    def limits(self) -> tuple[Limit, ...]:
        """What the provider said with the last answer about how much more may be asked; empty where it does not."""

    async def __aenter__(self) -> Self:
        """Get ready. TeacherError or another DistillError where it cannot be asked at all (no key, no file)."""

    async def answer(self, request: Request) -> Answer:
        """Ask once.

        Raises TryLaterError or NoAnswerError for this request, and TeacherError where no request can succeed
        (a refused key, an unknown model, an empty balance); with TeacherError nothing is charged, unless it is an
        UnreadableError. Whatever else is raised, or a cancellation, counts as charged in full.
        """

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give back connections."""
