"""What of a set of requests a journal answers already, and what is to be asked: the same for asking and estimating."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from msgspec import structs

from mlx_distill.records import Answer, Prompt, Request, TeacherRecord
from mlx_distill.storage.jsonl import each_jsonl

RETRIES = ("max_tokens", "refusal", "empty")
"""Outcomes that are asked again when the user wants it; `Answer.outcome` has them."""

Number = TypeVar("Number", int, float)
Wording = Request | Callable[[Prompt], Request]
"""How a prompt is asked: a request, or what makes it of the prompt whenever it is looked at, so that it takes no memory
while it waits for its turn."""
Asks = Iterable[tuple[Prompt, Wording]]
"""Prompts and how they are asked; gone through more than once, so that it cannot be an iterator."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is kept in memory of an answer: all but its text and its request, which are in the journal."""

    key: str
    """The record's, which is another one than the request's where it was bought with another `max_tokens`."""
    prompt_id: str
    """Of the prompt as it is named now."""
    max_tokens: int
    """It was asked with."""
    stop_reason: str
    outcome: str
    """`Answer.outcome`."""
    model: str
    detail: str
    output_tokens: int
    cost_usd: float | None
    at: int
    """The byte of the journal that its line begins at."""

    @classmethod
    def of(cls, record: TeacherRecord, at: int) -> Known:
        """A record whose line begins at this byte. What many answers have in common is one object."""
        return cls(
            key=record.key,
            prompt_id=record.prompt_id,
            max_tokens=_shared(record.max_tokens),
            stop_reason=sys.intern(record.stop_reason),
            outcome=sys.intern(record.completion_status),
            model=sys.intern(record.model),
            detail=sys.intern(record.detail),
            output_tokens=_shared(record.usage.output_tokens),
            cost_usd=None if record.cost_usd is None else _shared(record.cost_usd),
            at=at,
        )

    @property
    def complete(self) -> bool:
        return self.outcome == "complete"


@lru_cache(maxsize=4096, typed=True)
def _shared(number: Number) -> Number:
    """The same object for numbers that are equal: short answers of one model have few lengths and few costs."""
    return number


@dataclass(frozen=True, slots=True)
class Ask:
    """One request to be sent."""

    key: str
    """Of the request that it answers: a retry with a larger limit has another key of its own."""
    prompt: Prompt
    wording: Wording
    again: bool = False
    """Whether there is an answer already that does not do."""

    @property
    def request(self) -> Request:
        return _request(self.prompt, self.wording)

    def answered(self, answer: Answer, batch: str = "") -> TeacherRecord:
        """What the journal keeps of an answer to it that arrives now, perhaps in a batch."""
        asked_at = datetime.now(UTC).isoformat(timespec="seconds")
        return TeacherRecord.of(self.prompt, self.request, answer, key=self.key, asked_at=asked_at, batch=batch)


def _request(prompt: Prompt, wording: Wording) -> Request:
    return wording if isinstance(wording, Request) else wording(prompt)


@dataclass(frozen=True)
class Plan:
    """A set of requests, sorted by what the journal holds."""

    keys: tuple[str, ...]
    """Of all requests, in their order."""
    wanted: tuple[str, ...]
    """The keys of the requests, each once, in their order."""
    known: dict[str, Known]
    """By key, what is answered already, perhaps under another `max_tokens`."""
    missing: deque[Ask]
    under_way: Collection[str] = ()
    """The keys, answered or not, that are in a batch: they are not missing."""


def make_plan(
    asks: Asks,
    journal: Path,
    *,
    longest_retry: int,
    retry: Collection[str] = (),
    under_way: Collection[str] = (),
) -> Plan:
    """Look up every request in the journal (which need not exist); requests with equal keys are one.

    An answer holds for all requests with the same teacher and messages, whatever their `max_tokens`, unless it was cut
    off at a smaller limit. One that was cut off at this request's own limit is asked for once more with twice as much,
    up to `longest_retry`; what was refused or came empty is asked again for outcomes in `retry` only. Questions in
    `under_way` (`Request.question`) are asked of nobody else.
    """
    answers = _answers(journal, asks)
    keys: list[str] = []
    wanted: dict[str, str] = {}
    answered: dict[str, Known] = {}
    missing: deque[Ask] = deque()
    waiting: set[str] = set()
    for prompt, wording in asks:
        request = _request(prompt, wording)
        key = request.key
        if key in wanted:
            keys.append(wanted[key])
            continue
        question = request.prompt_key if answers or under_way else ""
        known = answers.get(question)
        if known and known.key == key:
            key = known.key  # one object instead of two
        keys.append(wanted.setdefault(key, key))
        if known and not _cut_below(known, request):
            answered[key] = known
            ask = ask_again(Ask(key, prompt, wording), known, longest_retry, retry)
        else:
            ask = Ask(key, prompt, wording, again=known is not None)
        if question in under_way:
            waiting.add(key)
        elif ask:
            missing.append(ask)
    every = tuple(keys)
    unique = every if len(every) == len(wanted) else tuple(wanted)
    return Plan(every, unique, answered, missing, waiting)


def ask_again(ask: Ask, known: Known, longest_retry: int, retry: Collection[str] = ()) -> Ask | None:
    """The request that may bring a better answer than the known one, or None where none is to be sent."""
    if known.outcome == "max_tokens":
        larger = max(known.max_tokens, min(2 * known.max_tokens, longest_retry))
        request = ask.request
        untried = known.max_tokens <= request.max_tokens < larger
        if untried or known.outcome in retry:
            return replace(ask, wording=structs.replace(request, max_tokens=larger), again=True)
    return replace(ask, again=True) if known.outcome in retry else None


def _answers(journal: Path, asks: Asks) -> dict[str, Known]:
    """The answer that counts for each question that has one: the last complete one, else the last."""
    if not journal.exists() or journal.stat().st_size == 0:
        return {}
    questions: dict[str, Prompt] = {}
    for prompt, wording in asks:
        questions.setdefault(_request(prompt, wording).prompt_key, prompt)
    found: dict[str, Known] = {}
    for at, record in each_jsonl(journal, TeacherRecord.from_json, torn_end=True):
        question = record.request.prompt_key
        if question in questions and not (question in found and found[question].complete and not record.complete):
            found[question] = Known.of(structs.replace(record, prompt_id=questions[question].id), at)
    return found


def _cut_below(known: Known, request: Request) -> bool:
    return known.outcome == "max_tokens" and known.max_tokens < request.max_tokens
