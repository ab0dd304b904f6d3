"""Which requests a journal does not answer yet: the same for asking and for estimates."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

from msgspec import structs

from mlx_distill.records import Answer, Prompt, Record, Request, TeacherRecord
from mlx_distill.storage.jsonl import each_jsonl

Retry = Literal["max_tokens", "refusal", "empty"]
RETRIES: tuple[Retry, ...] = get_args(Retry)
"""Completion statuses that users can ask to retry."""

BatchMode = Literal["off", "wait", "all"]
"""The content of new batches: nothing, what a batch left unanswered, or everything that is missing."""
Requests = Sequence[tuple[Prompt, Request]]


@dataclass(frozen=True, slots=True)
class AnswerSummary:
    """An answer without its text and its request, which stay in the journal."""

    key: str
    """The record's key. The request's own key differs if the answer was bought with another `max_tokens`."""
    prompt_id: str
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
    def of(cls, record: TeacherRecord, start: int, prompt_id: str = "") -> AnswerSummary:
        """Summarise a record."""
        return cls(
            record.key,
            prompt_id or record.prompt_id,
            record.max_tokens,
            record.stop_reason,
            record.completion_status,
            record.model,
            record.detail,
            record.usage.output_tokens,
            record.cost_usd,
            start,
        )

    @property
    def complete(self) -> bool:
        """Return whether the answer is complete and not empty."""
        return self.status == "complete"


class PendingRequest(Record, frozen=True):
    """One request to send."""

    key: str
    """Key of the original request: a retry with a larger limit keeps it."""
    prompt: Prompt
    request: Request
    has_answer: bool = False
    """True if there is an answer that is not good enough."""

    def record(self, answer: Answer, batch: str = "") -> TeacherRecord:
        """Return the journal's record of an answer that arrives now."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return TeacherRecord.of(self.prompt, self.request, answer, key=self.key, asked_at=now, batch=batch)


@dataclass(frozen=True, slots=True)
class FailedPrompt:
    """A prompt that the teacher will not answer, and why."""

    prompt_id: str
    key: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """A set of requests, sorted by what the journal holds."""

    keys: tuple[str, ...]
    """The keys of all requests, in their order."""
    known: dict[str, AnswerSummary]
    """Answers by key."""
    missing: deque[PendingRequest]
    in_batches: Collection[str]
    """Keys of requests that a pending batch will answer. They are not missing."""

    @cached_property
    def unique(self) -> tuple[str, ...]:
        """Each key once, in order."""
        return tuple(dict.fromkeys(self.keys))


def make_plan(
    requests: Requests,
    journal: Path,
    *,
    max_retry_tokens: int,
    retry: Collection[str] = (),
    in_batches: Collection[str] = (),
) -> Plan:
    """Look up every request in the journal, which may not exist. Requests with equal keys are one.

    An answer is valid for any `max_tokens`, unless it was truncated at a smaller limit. `in_batches` holds the prompt
    keys of requests in pending batches.
    """
    prompt_keys = [request.prompt_key for _, request in requests]
    answers = _answers(journal, {key: prompt for key, (prompt, _) in zip(prompt_keys, requests, strict=True)})
    plan = Plan(tuple(request.key for _, request in requests), {}, deque(), set())
    seen: set[str] = set()
    for key, prompt_key, (prompt, request) in zip(plan.keys, prompt_keys, requests, strict=True):
        if key in seen:
            continue
        seen.add(key)
        answer = answers.get(prompt_key)
        pending: PendingRequest | None = PendingRequest(key, prompt, request, has_answer=answer is not None)
        assert pending
        if answer and not (answer.status == "max_tokens" and answer.max_tokens < request.max_tokens):
            plan.known[key] = answer
            pending = better_request(pending, answer, max_retry_tokens, retry)
        if prompt_key in in_batches:
            assert isinstance(plan.in_batches, set)
            plan.in_batches.add(key)
        elif pending:
            plan.missing.append(pending)
    return plan


def better_request(
    pending: PendingRequest, answer: AnswerSummary, max_retry_tokens: int, retry: Collection[str] = ()
) -> PendingRequest | None:
    """Return the request that may bring a better answer; None if there is nothing to retry.

    An answer that was truncated at the request's own limit is retried once with twice the limit, up to
    `max_retry_tokens`. Other statuses are retried only if `retry` names them.
    """
    if answer.status == "max_tokens":
        limit = pending.request.max_tokens
        larger = max(answer.max_tokens, min(2 * answer.max_tokens, max_retry_tokens))
        if answer.max_tokens <= limit < larger or answer.status in retry:
            request = structs.replace(pending.request, max_tokens=larger)
            return structs.replace(pending, request=request, has_answer=True)
    return structs.replace(pending, has_answer=True) if answer.status in retry else None


def _answers(journal: Path, prompts: dict[str, Prompt]) -> dict[str, AnswerSummary]:
    """Return the answer that counts for each prompt key: the last complete one, else the last."""
    found: dict[str, AnswerSummary] = {}
    if not journal.exists():
        return found
    for start, record in each_jsonl(journal, TeacherRecord.from_json, skip_partial_line=True):
        key = record.request.prompt_key
        if key in prompts and (record.complete or key not in found or not found[key].complete):
            found[key] = AnswerSummary.of(record, start, prompts[key].id)
    return found
