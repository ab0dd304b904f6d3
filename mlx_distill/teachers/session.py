"""One run of `ask`: the plan, the counts, the errors and the messages that live requests and batches share."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Collection

from msgspec import structs

from mlx_distill.errors import DistillError, Interrupted
from mlx_distill.events import Progress, Report, Warning
from mlx_distill.formatting import format_duration, format_time_of_day
from mlx_distill.records import Answer, TeacherRecord
from mlx_distill.teachers import signals
from mlx_distill.teachers.base import RetryableError, RetryPolicy, Teacher
from mlx_distill.teachers.pending import FailedPrompt, PendingRequest, Requests, make_plan
from mlx_distill.teachers.pricing import is_paid, worst_case_usd
from mlx_distill.teachers.store import AnswerStore

REPEAT_SECONDS = 10.0
"""The same failure is reported at most this often."""
SHORT_WAIT_SECONDS = 1.0
"""Shorter rate-limit waits are not reported."""
BATCHES_CONTINUE = "Batches continue without this machine: run the same command again to import their answers."


class Session:
    """State of a run: its pending requests, its results, and the reason for a stop."""

    def __init__(
        self,
        teacher: Teacher,
        requests: Requests,
        store: AnswerStore,
        *,
        retry: Collection[str],
        with_batches: bool,
        policy: RetryPolicy,
        report: Report,
        job: str,
    ) -> None:
        self.teacher, self.store, self.policy, self.report = teacher, store, policy, report
        self.paid = is_paid(teacher, store.budget)
        self.retry = retry
        """Completion statuses to ask for again."""
        self.new_keys: set[str] = set()
        """Keys of the requests answered in this run."""
        self.cost_usd = 0.0
        """Cost of the new answers, as far as it is known."""
        self.failed: list[FailedPrompt] = []
        self.signal: signal.Signals | None = None
        """The signal that stops the run."""
        self.stopped_by: DistillError | None = None
        self._requests, self._with_batches, self._job = requests, with_batches, job
        self._silent_until: dict[str, float] = {}
        self._n_done = 0
        self.replan()

    def replan(self) -> None:
        """Compare the requests with the journal and the pending batches again."""
        self.plan = make_plan(
            self._requests,
            self.store.journal,
            max_retry_tokens=self.teacher.max_retry_tokens,
            retry=self.retry,
            in_batches=self.store.keys_in_batches() if self._with_batches else (),
        )

    def run(
        self,
        main: Callable[[], Awaitable[None]],
        on_signal: Callable[[signal.Signals], None],
        loop_factory: signals.LoopFactory,
    ) -> None:
        """Run `main` inside the teacher. What stops it is in `stopped_by`."""

        async def inside_teacher() -> None:
            try:
                async with self.teacher:
                    await main()
            except DistillError as error:
                self.stopped_by = error
            except asyncio.CancelledError:
                if self.signal is None:
                    raise
            if self.signal:
                n_known, n_all, n_in_batches = len(self.plan.known), len(self.plan.unique), len(self.plan.in_batches)
                missing = f"Run the same command again to ask for the {n_all - n_known:,} missing answers."
                self.stopped_by = Interrupted(
                    f"{n_known:,} of {n_all:,} answers are saved in {self.store.journal}"
                    + (f", {n_in_batches:,} are in batches." if n_in_batches else "."),
                    BATCHES_CONTINUE if n_in_batches else missing,
                    exit_code=128 + self.signal,
                )

        signals.run(inside_teacher(), on_signal, loop_factory)

    def worst_usd(self, pending: PendingRequest, *, batch: bool = False) -> float | None:
        """Return the most that a request can cost; None if its prompt may be longer than the price holds for."""
        if not self.paid:
            return 0.0
        price = self.store.budget.price_of(self.teacher.billed_model)
        return worst_case_usd(price, pending.request.messages, pending.request.max_tokens, batch=batch)

    def record(self, pending: PendingRequest, answer: Answer, *, paid: bool, batch: str = "") -> TeacherRecord:
        """Return the record of an answer that arrives now, with its cost if the cost is known."""
        record = pending.record(answer, batch)
        return structs.replace(record, cost_usd=self.store.cost_of(record, batch=bool(batch))) if paid else record

    def save(self, record: TeacherRecord) -> int:
        """Count an answer and write it to the journal. Return the byte at which its line begins."""
        self.new_keys.add(record.key)
        self.cost_usd += record.cost_usd or 0.0
        return self.store.add(record, durable=not record.batch)

    # Messages, each said once or once in a while, however many requests it concerns

    def progress(self, n_done: int | None = None, note: str = "") -> None:
        """Report how many requests are done, their cost, and a note."""
        self._n_done = self._n_done if n_done is None else n_done
        cost = f"{self.cost_usd:.2f} USD" if self.cost_usd else ""
        text = "  ".join(filter(None, [cost, note]))
        self.report(Progress(self._job, self._n_done, len(self.plan.unique), "prompts", text))

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
