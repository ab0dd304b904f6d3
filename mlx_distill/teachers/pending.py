"""Which requests have no answer yet, or an answer that is not good enough."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from msgspec import structs

from mlx_distill.records import Prompt, Record, Request, TeacherRecord

Retry = Literal["max_tokens", "refusal", "empty"]
RETRIES: tuple[Retry, ...] = get_args(Retry)
"""Completion statuses that users can ask to retry."""

BatchMode = Literal["none", "import", "wait", "submit"]
"""Batches are not looked at; those that ended are imported; all are waited for; or new ones are submitted, too."""
Requests = Sequence[tuple[Prompt, Request]]


@dataclass(frozen=True, slots=True)
class AnswerSummary:
    """An answer without its text and its request, which stay in the journal."""

    key: str
    """The record's key. It differs from the request's if the answer was bought with another `max_tokens`."""
    max_tokens: int
    stop_reason: str
    status: str
    """`TeacherRecord.completion_status`."""
    model: str
    detail: str
    output_tokens: int
    cost_usd: float | None
    start: int
    """The byte at which its line of the journal begins."""

    @classmethod
    def of(cls, record: TeacherRecord, start: int) -> AnswerSummary:
        """Summarise a record."""
        return cls(
            key=record.key,
            max_tokens=record.max_tokens,
            stop_reason=record.stop_reason,
            status=record.completion_status,
            model=record.model,
            detail=record.detail,
            output_tokens=record.usage.output_tokens,
            cost_usd=record.cost_usd,
            start=start,
        )

    @property
    def complete(self) -> bool:
        """Return whether the answer is complete and not empty."""
        return self.status == "complete"


class PendingRequest(Record, frozen=True):
    """One request to send."""

    prompt: Prompt
    request: Request
    has_answer: bool = False
    """True if there is an answer that is not good enough."""


@dataclass(frozen=True, slots=True)
class FailedPrompt:
    """A prompt that the teacher will not answer, and why."""

    prompt_id: str
    key: str
    reason: str


def pending_request(
    prompt: Prompt,
    request: Request,
    answer: AnswerSummary | None,
    max_retry_tokens: int,
    retry: Collection[str] = (),
) -> PendingRequest | None:
    """Return the request to send for a prompt; None if its answer is good enough.

    A truncated answer is retried once: with the request's limit if that is larger, or else with twice the limit, up to
    `max_retry_tokens`. Other answers are retried only if `retry` names their status.
    """
    if answer is None:
        return PendingRequest(prompt, request)
    if answer.status == "max_tokens":
        is_retry = answer.max_tokens > request.max_tokens
        limit = request.max_tokens
        if answer.max_tokens >= limit:
            limit = max(answer.max_tokens, min(2 * answer.max_tokens, max_retry_tokens))
        if (limit > answer.max_tokens and not is_retry) or answer.status in retry:
            return PendingRequest(prompt, structs.replace(request, max_tokens=limit), has_answer=True)
    return PendingRequest(prompt, request, has_answer=True) if answer.status in retry else None
