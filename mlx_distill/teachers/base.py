"""The teacher protocol: answer one request, or raise an error that says what to do next.

A teacher does not retry, wait, count costs or save answers. The runner does that for all teachers.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Literal, Protocol, Self, runtime_checkable

from mlx_distill.errors import TeacherError
from mlx_distill.records import Answer, Request

DEFAULT_CONCURRENCY = 64
"""Requests at once to a server that does not state its limits."""


class RetryableError(Exception):
    """The teacher did not answer now, but may answer later: a rate limit, an overload, a dropped connection."""

    def __init__(
        self, reason: str, *, retry_after: float | None = None, overloaded: bool = False, may_be_charged: bool = True
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after = retry_after
        """Seconds that the teacher asks to wait. None if it does not say."""
        self.overloaded = overloaded
        """True if all requests must slow down, not only this one."""
        self.may_be_charged = may_be_charged
        """False only if this attempt certainly costs nothing."""


class PromptError(Exception):
    """The teacher will never answer this request (too long, blocked, not recorded). Nothing is charged for it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class BadRequestError(TeacherError):
    """The teacher rejects this request and does not say whether it rejects all others too. Nothing is charged."""


class MalformedResponseError(TeacherError):
    """The response is not an answer, so the cost of the request is unknown."""


class BatchGoneError(Exception):
    """The provider no longer has this batch or its results."""


@dataclass(frozen=True)
class RateLimit:
    """The rest of a rate limit, as the provider reports it with an answer."""

    unit: Literal["requests", "input tokens", "output tokens"]
    limit: int
    """Allowed after each reset. 0 if the provider does not say."""
    remaining: int
    reset_seconds: float
    """Seconds until the reset."""


@dataclass(frozen=True)
class Reply:
    """An answer, and the rate limits that came with it."""

    answer: Answer
    rate_limits: tuple[RateLimit, ...] = ()


class Teacher(Protocol):
    """A model that answers requests inside `async with teacher:`. It can be entered more than once."""

    @property
    def name(self) -> str:
        """Provider and model as the user names them: part of every request's key."""

    @property
    def terms(self) -> str:
        """Terms that the user must know before training on the answers. May be empty."""

    @property
    def billed_model(self) -> str:
        """The model whose price holds for every answer. Empty if the teacher is free (a recording, a local server)."""

    @property
    def default_concurrency(self) -> int:
        """Requests at once, unless the user says otherwise."""

    @property
    def max_retry_tokens(self) -> int:
        """Largest `max_tokens` to retry a truncated answer with. 0 disables such retries."""

    async def __aenter__(self) -> Self:
        """Connect. Raises TeacherError or another DistillError if the teacher cannot be asked (no key, no file)."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect."""

    async def complete(self, request: Request) -> Reply:
        """Send the request once and return the reply.

        Raises RetryableError or PromptError for this request, and TeacherError if no request can succeed (rejected key,
        unknown model, empty balance). A TeacherError costs nothing, except MalformedResponseError. Any other exception,
        cancellation included, counts as charged in full.
        """


@dataclass(frozen=True)
class BatchState:
    """A batch job as the provider reports it."""

    id: str
    created_at: datetime
    expires_at: datetime
    n_requests: int
    n_done: int
    ended: bool


@dataclass(frozen=True)
class BatchResult:
    """The result of one request of a batch."""

    custom_id: str
    answer: Answer | None
    reason: str = ""
    """Why there is no answer."""
    retryable: bool = False
    """True if the same request may succeed in another batch: it expired, or the provider failed."""


@runtime_checkable
class BatchTeacher(Protocol):
    """A teacher that also has batch jobs. Raises what `Teacher.complete` raises, and BatchGoneError."""

    max_requests: int
    """Requests in one batch."""
    max_bytes: int
    """Bytes of one batch, as it is sent."""

    def size_bytes(self, request: Request) -> int:
        """Return the bytes that a request takes in a batch."""

    async def create(self, requests: Mapping[str, Request]) -> BatchState:
        """Submit one batch of requests by custom_id (at most 64 letters, digits, - and _).

        The batch may exist after a RetryableError that may be charged, and after a MalformedResponseError.
        """

    async def retrieve(self, batch_id: str) -> BatchState:
        """Return the state of a batch."""

    async def list_since(self, moment: datetime) -> list[BatchState]:
        """Return the account's batches that were created at `moment` or later."""

    def results(self, batch_id: str, n_requests: int) -> AsyncGenerator[BatchResult, None]:
        """Yield the results of an ended batch of so many requests, in any order. Unreadable results are left out."""
