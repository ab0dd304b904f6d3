"""One run of `ask`: what is missing, what was answered, and the messages that live requests and batches share."""

from __future__ import annotations

import time
from collections.abc import Collection
from datetime import UTC, datetime
from signal import Signals

from msgspec import structs

from mlx_distill.errors import InputError, TeacherError
from mlx_distill.events import Progress, Report, Warning, ignore
from mlx_distill.formatting import format_duration, format_time_of_day
from mlx_distill.records import Answer, TeacherRecord
from mlx_distill.teachers.base import BatchTeacher, PromptError, RetryableError, Teacher
from mlx_distill.teachers.pending import (
    AnswerSummary,
    BatchMode,
    FailedPrompt,
    PendingRequest,
    Requests,
    pending_request,
)
from mlx_distill.teachers.pricing import is_paid, worst_case_usd
from mlx_distill.teachers.retry import RetryPolicy
from mlx_distill.teachers.store import AnswerStore

REPEAT_SECONDS = 10.0
"""The same failure is reported at most this often."""
SHORT_WAIT_SECONDS = 1.0
"""Shorter rate-limit waits are not reported."""


class Session:
    """The requests of a run and its results so far."""

    def __init__(
        self,
        teacher: Teacher,
        requests: Requests,
        store: AnswerStore,
        *,
        retry: Collection[str] = (),
        batch_mode: BatchMode = "none",
        policy: RetryPolicy | None = None,
        report: Report = ignore,
        job: str = "ask",
    ) -> None:
        if batch_mode in ("wait", "submit") and not isinstance(teacher, BatchTeacher):
            advice = "Leave out --batch (in distill.toml: batch) and --wait, or choose another teacher."
            raise InputError(f"{teacher.name} has no batches.", advice)
        self.teacher, self.store, self.batch_mode = teacher, store, batch_mode
        self.policy, self.report, self._job = policy or RetryPolicy(), report, job
        self.paid = is_paid(teacher, store.budget)
        self.retry = retry
        """Completion statuses to ask for again."""
        self.keys = tuple(request.prompt_key for _, request in requests)
        """The prompt key of each request, in order."""
        self.n_prompts = len(set(self.keys))
        self.failed: list[FailedPrompt] = []
        self.cost_usd = 0.0
        """Cost of the new answers, as far as it is known."""
        self.signal: Signals | None = None
        """The signal that stops the run."""
        self._requests = requests
        self._new_keys: set[str] = set()
        self._silent_until: dict[str, float] = {}
        self._n_done = 0

    @property
    def n_new(self) -> int:
        """Requests answered in this run."""
        return len(self._new_keys)

    @property
    def n_answered(self) -> int:
        """Prompts with an answer."""
        return len(self.store.answers.keys() & set(self.keys))

    def in_batches(self) -> set[str]:
        """Return the keys of the prompts that pending batches will answer."""
        return self.store.keys_in_batches() & set(self.keys) if self.batch_mode != "none" else set()

    def missing(self) -> list[PendingRequest]:
        """Return the requests to send: no good answer, and not in a batch. Requests for one prompt are one."""
        done = self.in_batches()
        found: list[PendingRequest] = []
        for key, (prompt, request) in zip(self.keys, self._requests, strict=True):
            if key not in done:
                done.add(key)
                answer = self.store.answers.get(key)
                pending = pending_request(prompt, request, answer, self.teacher.max_retry_tokens, self.retry)
                if pending:
                    found.append(pending)
        return found

    def worst_usd(self, pending: PendingRequest, *, batch: bool = False) -> float:
        """Return the most that a request can cost. PromptError if the price does not hold for such a long prompt."""
        if not self.paid:
            return 0.0
        model = self.teacher.billed_model
        price = self.store.budget.price_of(model)
        usd = worst_case_usd(price, pending.request.messages, pending.request.max_tokens, batch=batch)
        if usd is None:
            raise PromptError(
                f"the prompt may have more than the {price.max_input_tokens} tokens that the price of {model} holds "
                "for (set max_input_tokens under [prices] in distill.toml)"
            )
        return usd

    def record(self, pending: PendingRequest, answer: Answer, *, paid: bool, batch: str = "") -> TeacherRecord:
        """Return the record of an answer that arrives now, with its cost if the cost is known."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        record = TeacherRecord.of(pending.prompt, pending.request, answer, asked_at=now, batch=batch)
        return structs.replace(record, cost_usd=self.store.budget.cost_of(record)) if paid else record

    def save(self, record: TeacherRecord) -> AnswerSummary:
        """Count an answer and write it to the journal."""
        self._new_keys.add(record.request.prompt_key)
        self.cost_usd += record.cost_usd or 0.0
        return self.store.add(record)

    def fail(self, pending: PendingRequest, reason: str) -> None:
        """Skip a prompt, and say so. An answer that is not good enough is kept."""
        name, reason = pending.prompt.id, reason.rstrip(".")
        answer = self.store.answers.get(pending.request.prompt_key)
        if answer:
            self.warn(f"{name}: keeping the first answer ({answer.status}): {reason}.", reason)
        else:
            self.failed.append(FailedPrompt(name, pending.request.key, reason))
            self.warn(f"{name} is skipped: {reason}.", reason)

    def give_up(self, error: RetryableError) -> TeacherError:
        """Return the error for a teacher that is out of reach for too long."""
        asks = f" It asks to wait {format_duration(error.retry_after)}." if error.retry_after else ""
        limit = format_duration(self.policy.limit_seconds)
        return TeacherError(
            f"{self.teacher.name} has not answered for {limit}: {error.reason}.{asks}",
            f"{self.n_answered:,} of {self.n_prompts:,} answers are saved. To continue later, run the same command "
            "again; collect and expand wait longer with --wait-minutes (in distill.toml: wait_minutes).",
        )

    # Messages, each said once or once in a while, however many requests it concerns

    def progress(self, n_done: int | None = None, note: str = "") -> None:
        """Report how many prompts are done, their cost, and a note."""
        self._n_done = self._n_done if n_done is None else n_done
        cost = f"{self.cost_usd:.2f} USD" if self.cost_usd else ""
        text = "  ".join(filter(None, [cost, note]))
        self.report(Progress(self._job, self._n_done, self.n_prompts, "prompts", text))

    def retrying(self, error: RetryableError, wait: float) -> None:
        """Report a failure and the time of the retry."""
        limit = self.policy.limit_seconds
        gives_up = f"; gives up after {format_duration(limit)} without an answer" if wait <= limit else ""
        self._waiting(f"{error.reason}: retrying", error.reason, wait, gives_up)

    def exhausted(self, unit: str, wait: float) -> None:
        """Report that a rate limit is used up, unless the wait is short."""
        if wait >= SHORT_WAIT_SECONDS:
            self._waiting(f"The rate limit of {unit} is used up: continuing", unit, wait)

    def _waiting(self, what: str, topic: str, wait: float, limit: str = "") -> None:
        at = format_time_of_day(wait)
        self.warn(f"{what} in {format_duration(wait)}, at {at}{limit}.", topic, wait)
        self.progress(note=f"waiting until {at}")

    def warn(self, text: str, topic: str = "", seconds: float = float("inf")) -> None:
        """Warn, unless the topic was reported within `seconds` or REPEAT_SECONDS."""
        now = time.monotonic()
        if now >= self._silent_until.get(topic or text, 0.0):
            self._silent_until[topic or text] = now + max(seconds, REPEAT_SECONDS)
            self.report(Warning(text))
