"""What of a set of requests a journal answers already, and what is to be asked: the same for asking and estimating."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlx_distill.records import Prompt, Request, TeacherRecord
from mlx_distill.storage.jsonl import each_jsonl

RETRIES = ("max_tokens", "refusal", "empty")
"""Outcomes that are asked again when the user wants it; `Answer.outcome` has them."""


@dataclass(frozen=True)
class Ask:
    """One request to be sent."""

    key: str
    """Of the request that it answers: a retry with a larger limit has another key of its own."""
    prompt: Prompt
    request: Request
    again: bool = False
    """Whether there is an answer already that does not do."""


@dataclass(frozen=True)
class Plan:
    """A set of requests, sorted by what the journal holds."""

    wanted: tuple[str, ...]
    """The keys of the requests, each once, in their order."""
    records: dict[str, TeacherRecord]
    """By key, what is answered already, perhaps under another `max_tokens`."""
    missing: deque[Ask]


def make_plan(
    asks: Sequence[tuple[Prompt, Request]], journal: Path, *, longest_retry: int, retry: Collection[str] = ()
) -> Plan:
    """Look up every request in the journal (which need not exist); requests with equal keys are one.

    An answer holds for all requests with the same teacher and messages, whatever their `max_tokens`, unless it was cut
    off at a smaller limit. One that was cut off at this request's own limit is asked for once more with twice as much,
    up to `longest_retry`; what was refused or came empty is asked again for outcomes in `retry` only.
    """
    wanted: dict[str, tuple[Prompt, Request]] = {}
    for prompt, request in asks:
        wanted.setdefault(request.key, (prompt, request))
    answers = _answers(journal, {request.question for _, request in wanted.values()})
    plan = Plan(tuple(wanted), {}, deque())
    for key, (prompt, request) in wanted.items():
        known = answers.get(request.question)
        if known and not _cut_below(known, request):
            plan.records[key] = known
            ask = ask_again(Ask(key, prompt, request), known, longest_retry, retry)
        else:
            ask = Ask(key, prompt, request, again=known is not None)
        if ask:
            plan.missing.append(ask)
    return plan


def ask_again(ask: Ask, known: TeacherRecord, longest_retry: int, retry: Collection[str] = ()) -> Ask | None:
    """The request that may bring a better answer than the known one, or None where none is to be sent."""
    outcome = known.answer.outcome
    if outcome == "max_tokens":
        larger = max(known.request.max_tokens, min(2 * known.request.max_tokens, longest_retry))
        untried = known.request.max_tokens <= ask.request.max_tokens < larger
        if untried or outcome in retry:
            return replace(ask, request=replace(ask.request, max_tokens=larger), again=True)
    return replace(ask, again=True) if outcome in retry else None


def _answers(journal: Path, questions: Collection[str]) -> dict[str, TeacherRecord]:
    """The answer that counts for each question: the last complete one, else the last."""
    found: dict[str, TeacherRecord] = {}
    if not journal.exists():
        return found
    for record in each_jsonl(journal, TeacherRecord.from_json, torn_end=True):
        question = record.request.question
        if question in questions and not (
            question in found and found[question].answer.complete and not record.answer.complete
        ):
            found[question] = record
    return found


def _cut_below(known: TeacherRecord, request: Request) -> bool:
    return known.answer.outcome == "max_tokens" and known.request.max_tokens < request.max_tokens
