"""Sends the missing requests of a plan live, many at once, and retries them."""

from __future__ import annotations

import asyncio
import signal

from mlx_distill.errors import BudgetError, DistillError, TeacherError
from mlx_distill.events import Note
from mlx_distill.formatting import format_duration
from mlx_distill.teachers.base import (
    MAX_RETRY_AFTER_SECONDS,
    BadRequestError,
    MalformedResponseError,
    MaxTokensError,
    PromptError,
    Reply,
    RetryableError,
)
from mlx_distill.teachers.limiter import ConcurrencyLimiter, Permit
from mlx_distill.teachers.pending import AnswerSummary, FailedPrompt, PendingRequest, better_request
from mlx_distill.teachers.session import Session

DRAIN_SECONDS = 20.0
"""How long a run that stops waits for answers in flight, which are paid for."""
TICK_SECONDS = 5.0
"""How often to check whether a progress message is due."""
SILENCE_SECONDS = 20.0
"""After this long without an answer, report what the run waits for."""
MAX_BAD_REQUESTS = 2
"""If more requests are rejected before the first answer, the configuration is wrong: stop."""
MAX_BAD_REQUESTS_IN_A_ROW = 50
"""Stop also if this many are rejected in a row later."""


class Runner:
    """Sends live requests until all are answered or skipped, or something stops the run."""

    def __init__(self, session: Session, concurrency: int) -> None:
        self._session, self._concurrency = session, concurrency
        self._max_retry_tokens = session.teacher.max_retry_tokens
        self._n_left = len(session.plan.missing)
        self._n_bad_requests = 0
        self._last_answer_at = -1.0
        self._outage_deadline: float | None = None
        """When to give up if no request is answered; None while requests succeed."""
        self._in_flight: dict[asyncio.Task[None], float] = {}
        """When each request was sent."""
        self._closing = False
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()

    def interrupt(self, which: signal.Signals) -> None:
        """Stop. Paid answers in flight are waited for, unless this is called again."""
        if self._closing or self._session.signal or not self._session.paid:
            self._stop_now.set()
        self._session.signal = which
        self._stop.set()

    async def run(self) -> None:
        """Send everything that is missing. Raises what stops the run."""
        self._time = asyncio.get_running_loop().time
        self._limiter = ConcurrencyLimiter(self._concurrency, self._session.exhausted)
        self._slot_freed = asyncio.Event()
        if self._session.teacher.terms:
            self._session.report(Note(self._session.teacher.terms))
        self._report_progress()
        await self._send_all()

    async def _send_all(self) -> None:
        workers = [
            asyncio.create_task(self._work()) for _ in range(min(self._concurrency, len(self._session.plan.missing)))
        ]
        ended = asyncio.create_task(asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION))
        stop, stop_now = asyncio.create_task(self._stop.wait()), asyncio.create_task(self._stop_now.wait())
        try:
            while not (await asyncio.wait({ended, stop}, timeout=TICK_SECONDS, return_when=asyncio.FIRST_COMPLETED))[0]:
                self._report_silence()
            await self._drain(workers, stop_now)
        finally:
            for task in (*workers, ended, stop, stop_now):
                task.cancel()
            outcomes = await asyncio.gather(*workers, return_exceptions=True)
        errors = [error for error in outcomes if isinstance(error, Exception)]
        errors.sort(key=lambda error: isinstance(error, DistillError))  # bugs come first
        if errors and not self._session.signal:
            raise errors[0]

    async def _drain(self, workers: list[asyncio.Task[None]], stop_now: asyncio.Task[bool]) -> None:
        """Start no more requests, and wait for the answers in flight."""
        self._closing = True
        for task in set(workers) - self._in_flight.keys():
            task.cancel()
        deadline = self._time() + DRAIN_SECONDS
        while self._in_flight and not stop_now.done() and self._time() < deadline:
            if self._session.signal or self._time() > deadline - DRAIN_SECONDS + 1.0:
                again = " Press Ctrl-C again to stop at once." if self._session.signal else ""
                text = f"Stopping: waiting up to {DRAIN_SECONDS:g} s for {len(self._in_flight)} answers in flight."
                self._session.warn(text + again, "stopping")
            await asyncio.wait({stop_now, *self._in_flight}, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)

    async def _work(self) -> None:
        while self._session.plan.missing and not self._closing:
            pending = self._session.plan.missing.popleft()
            try:
                await self._answer(pending)
                if pending.key not in self._session.plan.known:  # the run stops before it was answered
                    self._session.plan.missing.appendleft(pending)
            except PromptError as error:
                self._skip(pending, error.reason)
            except (BadRequestError, BudgetError) as error:
                if not self._may_skip(pending, error):
                    self._session.plan.missing.appendleft(pending)  # it is left
                    raise
                self._skip(pending, error.message)
            except BaseException:
                self._session.plan.missing.appendleft(pending)
                raise

    def _may_skip(self, pending: PendingRequest, error: DistillError) -> bool:
        """Decide whether a rejection concerns only this request. If an answer exists already, a retry is optional."""
        if isinstance(error, BudgetError):
            return pending.key in self._session.plan.known
        if isinstance(error, MaxTokensError):
            self._max_retry_tokens = 0
            return pending.key in self._session.plan.known
        self._n_bad_requests += 1
        if self._n_bad_requests <= (MAX_BAD_REQUESTS_IN_A_ROW if self._session.plan.known else MAX_BAD_REQUESTS):
            return True
        error.message = f"{pending.prompt.id}: {error.message}"
        return False

    def _skip(self, pending: PendingRequest, reason: str) -> None:
        name, reason = pending.prompt.id, reason.rstrip(".")
        known = self._session.plan.known.get(pending.key)
        if known:
            self._session.warn(f"{name}: keeping the first answer ({known.status}): {reason}.", reason)
        else:
            self._session.failed.append(FailedPrompt(name, pending.key, reason))
            self._session.warn(f"{name} is skipped: {reason}.", reason)
        self._n_left -= 1
        self._report_progress()

    async def _answer(self, pending: PendingRequest) -> None:
        """Send a request until it is answered. Raises PromptError or TeacherError if retries do not help."""
        n_failures, waited = 0, 0.0
        while not self._closing:
            permit = await self._limiter.acquire()
            try:
                error = await self._attempt(pending, permit)
            finally:
                self._limiter.release()
            if error is None or self._closing:
                return
            n_failures += 1
            wait = self._wait_seconds(error, permit, n_failures, waited)
            waited += 0.0 if error.retry_after else wait
            self._session.retrying(error, wait)
            await asyncio.sleep(wait)

    def _wait_seconds(self, error: RetryableError, permit: Permit, n_failures: int, waited: float) -> float:
        """Return the wait before the next attempt; slow everyone down if the failure concerns everyone.

        A request fails for good after `limit_seconds` of waits, if others are answered meanwhile. The run stops if none
        is answered for that long. Waits that the provider asks for do not count.
        """
        now, limit = self._time(), self._session.policy.limit_seconds
        unanswered = self._last_answer_at < permit.started
        concerns_all = error.overloaded or unanswered
        if self._outage_deadline is None:
            self._outage_deadline = now + limit
        asked = error.retry_after or 0.0
        if now >= self._outage_deadline or asked > MAX_RETRY_AFTER_SECONDS:
            asks = f" It asks to wait {format_duration(asked)}." if asked else ""
            raise TeacherError(
                f"{self._session.teacher.name} has not answered for {format_duration(limit)}: {error.reason}.{asks}",
                f"{len(self._session.plan.known):,} of {len(self._session.plan.unique):,} answers are saved. Run the "
                "same command again later; collect and expand wait longer with --wait-minutes (in distill.toml: "
                "wait_minutes).",
            )
        if waited >= limit and not asked:
            raise PromptError(f"failed for {format_duration(limit)} while others were answered: {error.reason}")
        if concerns_all:
            n_failures = max(n_failures, self._limiter.n_overloads)
        wait = self._session.policy.wait_seconds(n_failures, error.retry_after)
        if asked:
            self._outage_deadline = max(self._outage_deadline, now + wait + limit)
        else:
            wait = min(wait, self._outage_deadline - now)
        if concerns_all:
            self._limiter.failed(permit, overloaded=error.overloaded, pause_seconds=wait)
        return wait

    async def _attempt(self, pending: PendingRequest, permit: Permit) -> RetryableError | None:
        """Send a request once. Nothing is awaited between the arrival of an answer and its line on the disk."""
        worst = await self._reserve(pending)
        task = asyncio.current_task()
        assert task is not None
        self._in_flight[task] = self._time()
        try:
            reply = await self._session.teacher.complete(pending.request)
            self._save(pending, reply, permit, worst)
            return None
        except RetryableError as error:
            self._lost(worst, may_be_charged=error.may_be_charged)
            return error
        except BaseException as error:
            is_free = isinstance(error, PromptError | TeacherError) and not isinstance(error, MalformedResponseError)
            self._lost(worst, may_be_charged=not is_free)
            raise
        finally:
            del self._in_flight[task]
            self._session.store.release(worst)
            self._slot_freed.set()

    async def _reserve(self, pending: PendingRequest) -> float:
        """Reserve the worst case of a request and return it.

        If it does not fit under the cap now, wait: requests in flight may cost less than their reservations.
        """
        if not self._session.paid:
            return 0.0
        model, worst = self._session.teacher.billed_model, self._session.worst_usd(pending)
        if worst is None:
            limit = self._session.store.budget.price_of(model).max_input_tokens
            raise PromptError(
                f"the prompt may have more than the {limit} tokens that the price of {model} holds for (set "
                "max_input_tokens under [prices] in distill.toml)"
            )
        while True:
            try:
                self._session.store.reserve(model, worst)
                return worst
            except BudgetError:
                if not self._in_flight:
                    raise
            self._slot_freed.clear()
            await self._slot_freed.wait()

    def _lost(self, worst: float, *, may_be_charged: bool) -> None:
        if may_be_charged and self._session.paid:
            self._session.store.add_unknown(self._session.teacher.billed_model, worst)

    def _save(self, pending: PendingRequest, reply: Reply, permit: Permit, worst: float) -> None:
        """Write an answer to the disk, count it, and ask again if it was truncated."""
        record = self._session.record(pending, reply.answer, paid=self._session.paid)
        start = self._session.save(record)
        if self._session.paid and record.cost_usd is None:
            self._session.warn(f"The cost of an answer by {record.model} is unknown: its worst case is counted.")
            self._session.store.add_unknown(self._session.teacher.billed_model, worst)
        self._limiter.answered(permit, record.usage, reply.rate_limits)
        self._last_answer_at, self._outage_deadline, self._n_bad_requests = self._time(), None, 0
        summary = self._session.plan.known[pending.key] = AnswerSummary.of(record, start)
        better = None if pending.has_answer else better_request(pending, summary, self._max_retry_tokens)
        if better:
            self._session.plan.missing.appendleft(better)
        self._n_left -= better is None
        self._report_progress()

    def _report_silence(self) -> None:
        if self._in_flight:
            silent = self._time() - max(self._last_answer_at, min(self._in_flight.values()))
            if silent > SILENCE_SECONDS:
                text = f"{len(self._in_flight)} in flight, no answer for {format_duration(round(silent))}"
                self._session.progress(note=text)

    def _report_progress(self) -> None:
        self._session.progress(len(self._session.plan.unique) - len(self._session.plan.in_batches) - self._n_left)
