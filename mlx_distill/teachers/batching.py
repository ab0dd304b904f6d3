"""What a teacher that also answers in batches can do: many requests at once, cheaper, within a day."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, runtime_checkable

from mlx_distill.records import Answer, Request


@dataclass(frozen=True)
class BatchState:
    """A batch as the provider knows it."""

    id: str
    created_at: datetime
    expires_at: datetime
    n_requests: int
    n_done: int
    """Requests with a result; Anthropic counts them only when the whole batch has ended."""
    ended: bool


@dataclass(frozen=True)
class BatchResult:
    """What became of one request of a batch."""

    custom_id: str
    answer: Answer | None
    reason: str = ""
    """Why there is no answer."""
    again: bool = False
    """Whether the same request may be answered another time: it expired, or the provider failed."""


class BatchGoneError(Exception):
    """The provider does not have this batch, or its results, any more."""


class Batches(Protocol):
    """A provider's batches, for use while the teacher is entered.

    Raises what `Teacher.answer` raises, and BatchGoneError.
    """

    @property
    def most_requests(self) -> int:
        """Of one batch."""

    @property
    def most_bytes(self) -> int:
        """Of one batch, as it is sent."""

    def size_of(self, request: Request) -> int:
        """The bytes that a request takes in a batch, its custom_id included."""

    async def create(self, requests: Mapping[str, Request]) -> BatchState:
        """Make one batch of requests by their custom_id (64 letters, digits, - and _ at most).

        After a TryLaterError that may be charged, or an UnreadableError, it is not known whether there is one now.
        """

    async def state(self, batch_id: str) -> BatchState:
        """How far it is."""

    async def since(self, moment: datetime) -> list[BatchState]:
        """The account's batches that were made at that moment or later."""

    def results(self, batch_id: str) -> AsyncGenerator[BatchResult, None]:
        """What became of the requests of a batch that has ended, in any order; what cannot be read is left out."""


@runtime_checkable
class HasBatches(Protocol):
    """A teacher that answers in batches too."""

    @property
    def batches(self) -> Batches:
        """Of the teacher's account."""
