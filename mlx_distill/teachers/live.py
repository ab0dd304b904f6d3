"""Live requests: send what is missing, many at once, and retry what fails."""

from __future__ import annotations

import asyncio
from collections import deque

from mlx_distill.errors import BudgetError, DistillError, TeacherError
from mlx_distill.formatting import format_duration
from mlx_distill.teachers.base import BadRequestError, MalformedResponseError, PromptError, Reply, RetryableError
from mlx_distill.teachers.limiter import ConcurrencyLimiter, Permit
from mlx_distill.teachers.pending import PendingRequest, pending_request
from mlx_distill.teachers.retry import Backoff
from mlx_distill.teachers.session import Session

DRAIN_SECONDS = 20.0
"""How long a run that stops waits for answers in flight, which are paid for."""
SILENCE_SECONDS = 20.0
"""After this long without an answer, report what the run waits for."""
TICK_SECONDS = 5.0
"""How often to check whether that is so."""
MAX_BAD_REQUESTS = 2
"""If more requests are rejected before the first answer, the configuration is wrong: stop."""
MAX_BAD_REQUESTS_IN_A_ROW = 50
"""Stop also if this many are rejected in a row later."""


class LiveRunner:
    """Sends live requests until all are answered or skipped, or something stops the run."""

    def __init__(self, session: Session, concurrency: int) -> None:
        self._session, self._store, self._concurrency = session, session.store, concurrency
        self._max_retry_tokens = session.teacher.max_retry_tokens
        self._outage = Backoff(session.policy)
        self._answered_at = -1.0
        self._n_bad_requests = 0
        self._workers: list[asyncio.Task[None]] = []
        self._in_flight: dict[asyncio.Task[None], float] = {}
        """When the workers sent the requests that they wait for."""
        self._stopping = False

    def interrupt(self, *, at_once: bool) -> None:
        """Stop. Paid answers in flight are waited for, unless `at_once` or the run is stopping already."""
        if at_once or self._stopping or not self._session.paid:
            self._cancel()
        self._stop()

    async def run(self) -> None:
        """Send everything that is missing. Raises what stops the run."""
        self._time = asyncio.get_running_loop().time
        self._limiter = ConcurrencyLimiter(self._concurrency, self._session.exhausted)
        self._missing = deque(self._session.missing())
        self._n_left = len(self._missing)
        self._n_in_batches = len(self._session.in_batches())
        if self._stopping or not self._missing:
            return
        self._report_progress()
        self._workers = [asyncio.create_task(self._work()) for _ in range(min(self._concurrency, self._n_left))]
        silence = asyncio.create_task(self._report_silence())
        try:
            await asyncio.wait(self._workers, return_when=asyncio.FIRST_EXCEPTION)
            self._stop()
            await asyncio.wait(self._workers)
        finally:
            silence.cancel()
            self._cancel()
            outcomes = await asyncio.gather(*self._workers, return_exceptions=True)
        errors = [error for error in outcomes if isinstance(error, Exception)]
        errors.sort(key=lambda error: isinstance(error, DistillError))  # bugs come first
        if errors and not self._session.signal:
            raise errors[0]

    def _stop(self) -> None:
        """Send nothing more. Wait for the answers in flight, but not for long."""
        if self._stopping:
            return
        self._stopping = True
        for task in self._workers:
            if task not in self._in_flight:
                task.cancel()
        asyncio.get_running_loop().call_later(DRAIN_SECONDS, self._cancel)
        if self._in_flight:
            again = " Press Ctrl-C again to stop at once." if self._session.signal else ""
            text = f"Stopping: waiting up to {DRAIN_SECONDS:g} s for {len(self._in_flight)} answers in flight."
            self._session.warn(text + again)

    def _cancel(self) -> None:
        for task in self._workers:
            task.cancel()

    async def _work(self) -> None:
        while self._missing and not self._stopping:
            pending = self._missing.popleft()
            try:
                await self._send(pending)
            except PromptError as error:
                self._skip(pending, error.reason)
            except (BadRequestError, BudgetError) as error:
                self._raise_if_general(pending, error)
                self._skip(pending, error.message)

    def _raise_if_general(self, pending: PendingRequest, error: BadRequestError | BudgetError) -> None:
        """Raise the error of a rejected request if others will be rejected too. A retry is optional: it is skipped."""
        if pending.has_answer:
            if isinstance(error, BadRequestError):
                self._max_retry_tokens = 0  # the model does not allow more
            return
        if isinstance(error, BudgetError):
            raise error
        self._n_bad_requests += 1
        if self._n_bad_requests > (MAX_BAD_REQUESTS if self._answered_at < 0.0 else MAX_BAD_REQUESTS_IN_A_ROW):
            error.message = f"{pending.prompt.id}: {error.message}"
            raise error

    def _skip(self, pending: PendingRequest, reason: str) -> None:
        self._session.fail(pending, reason)
        self._n_left -= 1
        self._report_progress()

    async def _send(self, pending: PendingRequest) -> None:
        """Send a request until it is answered. Raises PromptError or TeacherError if retries do not help."""
        worst, backoff = self._session.worst_usd(pending), Backoff(self._session.policy)
        while True:
            permit = await self._limiter.acquire(lambda: self._store.fits(worst))
            try:
                self._store.reserve(self._session.teacher.billed_model, worst)
                await self._attempt(pending, permit, worst)
                return
            except RetryableError as error:
                if self._stopping:
                    return
                wait = self._wait_seconds(error, permit, backoff)
                self._session.retrying(error, wait)
            finally:
                self._limiter.release()
            await asyncio.sleep(wait)

    async def _attempt(self, pending: PendingRequest, permit: Permit, worst: float) -> None:
        """Send a request once. Nothing is awaited between the arrival of an answer and its line on the disk."""
        task = asyncio.current_task()
        assert task is not None
        self._in_flight[task] = self._time()
        try:
            self._save(pending, await self._session.teacher.complete(pending.request), permit, worst)
        except BaseException as error:
            is_free = isinstance(error, PromptError | TeacherError) and not isinstance(error, MalformedResponseError)
            if not (is_free or (isinstance(error, RetryableError) and not error.may_be_charged)):
                self._store.add_unknown(self._session.teacher.billed_model, worst)
            raise
        finally:
            del self._in_flight[task]
            self._store.release(worst)

    def _wait_seconds(self, error: RetryableError, permit: Permit, backoff: Backoff) -> float:
        """Return the wait before the next attempt. Raises TeacherError or PromptError to give up.

        The run gives up if no request is answered, a request if only others are. An overload, and a failure without an
        answer since the request was sent, concern everyone: all requests wait.
        """
        general_wait, own_wait = self._outage.wait_seconds(error, self._time()), backoff.wait_seconds(error)
        if general_wait is None:
            raise self._session.give_up(error)
        if own_wait is None:
            limit = format_duration(self._session.policy.limit_seconds)
            raise PromptError(f"failed for {limit} while others were answered: {error.reason}")
        if error.overloaded or self._answered_at < permit.started:
            self._limiter.failed(permit, overloaded=error.overloaded, pause_seconds=general_wait)
            return max(general_wait, own_wait)
        return own_wait

    def _save(self, pending: PendingRequest, reply: Reply, permit: Permit, worst: float) -> None:
        """Write an answer to the disk, count it, and ask again if it was truncated."""
        record = self._session.record(pending, reply.answer, paid=self._session.paid)
        answer = self._session.save(record)
        if self._session.paid and record.cost_usd is None:
            self._session.warn(f"The cost of an answer by {record.model} is unknown: its worst case is counted.")
            self._store.add_unknown(self._session.teacher.billed_model, worst)
        self._limiter.answered(permit, record.usage, reply.rate_limits)
        self._outage.succeeded()
        self._answered_at, self._n_bad_requests = self._time(), 0
        if not pending.has_answer:
            better = pending_request(pending.prompt, pending.request, answer, self._max_retry_tokens)
            if better:
                self._missing.appendleft(better)
                return
        self._n_left -= 1
        self._report_progress()

    async def _report_silence(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            if self._in_flight:
                silent = self._time() - max(self._answered_at, min(self._in_flight.values()))
                if silent > SILENCE_SECONDS:
                    text = f"{len(self._in_flight)} in flight, no answer for {format_duration(round(silent))}"
                    self._session.progress(note=text)

    def _report_progress(self) -> None:
        self._session.progress(self._session.n_prompts - self._n_in_batches - self._n_left)
