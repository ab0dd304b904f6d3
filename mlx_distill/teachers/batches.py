"""Batch jobs, over any number of runs: submit, find again, poll, and import the results.

The store has a batch, and `batches/NAME.jsonl` its requests, before the provider is asked to create it. Answers are in
the journal before the store forgets the batch. So a kill at any moment neither loses nor doubles a batch.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from msgspec import structs

from mlx_distill.errors import BudgetError, TeacherError
from mlx_distill.events import Note, Warning
from mlx_distill.formatting import format_duration, plural
from mlx_distill.storage import files
from mlx_distill.teachers.base import (
    BatchGoneError,
    BatchResult,
    BatchState,
    BatchTeacher,
    MalformedResponseError,
    PromptError,
    RetryableError,
)
from mlx_distill.teachers.pending import PendingRequest
from mlx_distill.teachers.retry import Backoff
from mlx_distill.teachers.session import Session
from mlx_distill.teachers.store import ROUNDING_USD, PendingBatch

Result = TypeVar("Result")

KEPT = timedelta(days=29)
"""How long the provider keeps the results of a batch."""
MAX_READINGS = 4
"""Results that are missing this often will not come."""
MAX_TRIES = 3
"""How often one run submits a request that errors or expires, or a batch that is not created."""
CLOCK_SLACK = timedelta(days=2)
"""Maximum difference between the provider's clock and ours: more than a time zone."""
LISTED_AFTER = timedelta(minutes=2)
"""A batch that is not in the provider's list after this time was not created."""


class BatchRunner:
    """Imports the pending batches of a teacher. Depending on the mode, it also waits for them and submits new ones."""

    def __init__(self, session: Session, client: BatchTeacher) -> None:
        self._session, self._client, self._mode = session, client, session.batch_mode
        self._store, self._report, self._teacher = session.store, session.report, session.teacher
        self._was_in_batch: set[str] = set()
        """Prompt keys of the batches that this run imported."""
        self._n_failures: Counter[str] = Counter()
        self._given_up: dict[str, str] = {}
        """Why no batch will answer a prompt, by prompt key."""
        self._n_short: Counter[str] = Counter()
        self._n_not_created = 0
        self._states: dict[str, BatchState] = {}
        self._submitting = False
        self._task: asyncio.Task[None] | None = None

    def interrupt(self, *, at_once: bool) -> None:
        """Stop; but wait for a submission, unless `at_once`."""
        if self._task and (at_once or not self._submitting):
            self._task.cancel()
        elif self._task:
            self._report(Warning("Stopping when the batch is submitted. Press Ctrl-C again to stop at once."))

    async def run(self) -> None:
        """Import, and submit what is missing. Raises what stops the run."""
        self._time, self._task = asyncio.get_running_loop().time, asyncio.current_task()
        self._store.remove_orphans()
        for name in {batch.teacher for batch in self._store.batches} - {self._teacher.name}:
            self._report(Note(f"A batch of {name} is pending too. To import it: collect --wait --teacher {name}"))
        try:
            await self._import_all(wait=self._mode == "wait")
            while self._mode != "import" and await self._submit_missing():
                await self._import_all(wait=True)
        finally:
            self._task = None
            for pending in self._session.missing() if self._given_up else ():
                reason = self._given_up.get(pending.request.prompt_key)
                if reason:
                    self._session.fail(pending, reason)

    @property
    def _batches(self) -> list[PendingBatch]:
        return [batch for batch in self._store.batches if batch.teacher == self._teacher.name]

    # Submitting

    async def _submit_missing(self) -> bool:
        """Submit what is missing, as far as the cap allows. Return False if nothing is missing or pending."""
        missing = deque(each for each in self._session.missing() if self._is_wanted(each.request.prompt_key))
        is_missing, self._session.retry = bool(missing), ()  # the user's retries are sent once
        while missing and (chunk := self._next_chunk(missing)):
            await self._submit(chunk)
        if self._session.signal:
            raise asyncio.CancelledError
        if missing and not self._batches:
            raise BudgetError("The next batch could exceed the cap.")
        if missing:
            waiting = plural(len(missing), "request")
            self._report(Note(f"{waiting} wait for the current batches: sending them now could exceed the cap."))
        return is_missing or bool(self._batches)

    def _is_wanted(self, prompt_key: str) -> bool:
        return prompt_key not in self._given_up and (self._mode == "submit" or prompt_key in self._was_in_batch)

    def _next_chunk(self, missing: deque[PendingRequest]) -> list[PendingRequest]:
        """Take as many requests as one batch may hold and the cap allows."""
        chunk: list[PendingRequest] = []
        left_usd, left_bytes = self._store.left_usd + ROUNDING_USD, self._client.max_bytes
        while missing and len(chunk) < self._client.max_requests:
            try:
                size, worst = self._size_bytes(missing[0]), self._session.worst_usd(missing[0], batch=True)
            except PromptError as error:
                self._given_up[missing.popleft().request.prompt_key] = error.reason
                continue
            left_usd, left_bytes = left_usd - worst, left_bytes - size
            if left_usd < 0.0 or left_bytes < 0:
                break
            chunk.append(missing.popleft())
        return chunk

    def _size_bytes(self, pending: PendingRequest) -> int:
        size = self._client.size_bytes(pending.request)
        if size > self._client.max_bytes:
            raise PromptError("it is too long for a batch")
        return size

    async def _submit(self, chunk: list[PendingRequest]) -> None:
        usd = sum(self._session.worst_usd(each, batch=True) for each in chunk)
        submitted_at = datetime.now(UTC).isoformat()
        batch = PendingBatch(secrets.token_hex(4), self._teacher.name, len(chunk), usd, submitted_at)
        requests = {batch.custom_id(pending): pending.request for pending in chunk}
        self._store.add_batch(batch, chunk)
        self._submitting = True
        try:
            state = await self._call(lambda: self._client.create(requests), only_free=True)
        except (RetryableError, MalformedResponseError) as error:
            reason = error.reason if isinstance(error, RetryableError) else error.message.rstrip(".")
            self._report(Warning(f"The batch may not have been created ({reason}). Checking the provider's list."))
        except TeacherError:
            self._store.close_batch(batch)
            raise
        else:
            self._store.set_batch(structs.replace(batch, id=state.id))
            worst = f", at most {usd:.2f} USD" if usd else ""
            ends = f"{state.expires_at.astimezone():%a %H:%M}"
            self._report(
                Note(
                    f"Batch {state.id}: {plural(len(chunk), 'request')}{worst}. It continues without this machine and "
                    f"ends by {ends} at the latest."
                )
            )
        finally:
            self._submitting = False

    # Importing

    async def _import_all(self, *, wait: bool) -> None:
        """Import the batches that have ended; if `wait`, until all have."""
        began = self._time()
        while self._batches:
            for batch in self._batches:
                await self._import_if_ended(batch)
            self._report_progress()
            if not wait or not self._batches:
                return
            await asyncio.sleep(self._session.policy.wait_seconds(self._time() - began))

    async def _import_if_ended(self, batch: PendingBatch) -> None:
        try:
            if not batch.id:
                await self._find(batch)
                return
            state = self._states[batch.id] = await self._call(lambda: self._client.retrieve(batch.id))
            if state.ended:
                await self._call(lambda: self._import(batch))
        except BatchGoneError as error:
            if datetime.now(UTC) - datetime.fromisoformat(batch.submitted_at) < KEPT:  # probably another key
                raise TeacherError(
                    f"{self._teacher.name}: {error} for the account of this API key.",
                    f'Use the key that submitted {batch.id}. If it was deleted there, remove it from "batches" in '
                    f"{self._store.folder / files.SPENDING}.",
                ) from error
            self._store.close_batch(batch, unknown_usd=self._store.open_usd(batch), n_unknown=batch.n_requests)
            counted = " Its worst case counts as spent." if batch.usd else ""
            requests = plural(batch.n_requests, "request")
            self._report(Warning(f"A batch of {requests} is lost ({error}).{counted}"))

    async def _find(self, batch: PendingBatch) -> None:
        """Look in the provider's list for a batch that may not have been created. Forget it if it is not there.

        The likeliest of the listed batches was created soon after the submission. Its results tell whether it is ours.
        """
        submitted_at = datetime.fromisoformat(batch.submitted_at)
        listed = await self._call(lambda: self._client.list_since(submitted_at - CLOCK_SLACK))
        known = {*batch.not_ours, *(each.id for each in self._store.batches)}
        delays = {
            each.id: each.created_at - submitted_at
            for each in listed
            if each.id not in known and each.n_requests == batch.n_requests
        }
        if delays:
            best = min(delays, key=lambda name: (delays[name] < timedelta(), abs(delays[name])))
            self._store.set_batch(structs.replace(batch, id=best))
            self._report(Note(f"Found batch {best}: its submission was interrupted."))
        elif datetime.now(UTC) - submitted_at >= LISTED_AFTER:
            self._store.close_batch(batch)
            requests = plural(batch.n_requests, "request")
            self._report(Note(f"A batch of {requests} was not created: they are missing again."))
            self._n_not_created += 1
            if self._n_not_created == MAX_TRIES:
                raise TeacherError(
                    f"{self._teacher.name} has not created a batch {MAX_TRIES} times.",
                    "Nothing was charged for it. Run the same command again later.",
                )

    async def _import(self, batch: PendingBatch) -> None:
        """Write the results of an ended batch to the journal, each once, and close the batch.

        Raises RetryableError if results are missing: the same call continues.
        """
        requests = self._store.read_batch(batch)
        unanswered: dict[str, BatchResult] = {}
        answered: set[str] = set()
        unknown: list[PendingRequest] = []
        """Requests whose cost is unknown."""
        n_foreign = 0
        async with aclosing(self._client.results(batch.id, batch.n_requests)) as results:
            async for result in results:
                pending = requests.get(result.custom_id)
                if pending is None:
                    n_foreign += 1
                elif result.answer is None:
                    unanswered[result.custom_id] = result
                elif result.custom_id not in answered:
                    answered.add(result.custom_id)
                    record = self._session.record(pending, result.answer, paid=batch.usd > 0.0, batch=batch.id)
                    if record.cost_usd is None:
                        unknown.append(pending)
                    if not self._store.is_imported(record):
                        self._session.save(record)
        missing = requests.keys() - answered - unanswered.keys()
        if n_foreign and len(missing) == len(requests):
            self._report(Warning(f"Batch {batch.id} is not ours: its results name other requests."))
            self._store.set_batch(structs.replace(batch, id="", not_ours=(*batch.not_ours, batch.id)))
            return
        if missing and self._n_short[batch.name] < MAX_READINGS:
            self._n_short[batch.name] += 1
            n_read = len(requests) - len(missing)
            raise RetryableError(f"the results of {batch.id} have {n_read:,} of its {len(requests):,} requests")
        unanswered |= {name: BatchResult(name, None, "no result came", retryable=True) for name in missing}
        unknown += [requests[name] for name in missing]
        usd = sum(self._session.worst_usd(each, batch=True) for each in unknown) if batch.usd else 0.0
        self._store.close_batch(batch, unknown_usd=usd, n_unknown=len(unknown))
        self._was_in_batch |= {each.request.prompt_key for each in requests.values()}
        for name, result in unanswered.items():
            self._count_failure(requests[name].request.prompt_key, result)
        reasons = Counter(result.reason for result in unanswered.values()).most_common(3)
        why = "; ".join(f"{count:,}: {reason}" for reason, count in reasons)
        left = f"; {len(unanswered):,} are not ({why})" if unanswered else ""
        n_answered = len(requests) - len(unanswered)
        self._report(Note(f"Batch {batch.id}: {n_answered:,} of {len(requests):,} are answered{left}."))

    def _count_failure(self, key: str, result: BatchResult) -> None:
        """Give a prompt up if its request would fail again. If live requests follow, they try."""
        self._n_failures[key] += 1
        if self._mode != "import" and not result.retryable:
            self._given_up[key] = result.reason
        elif self._mode != "import" and self._n_failures[key] == MAX_TRIES:
            self._given_up[key] = f"{result.reason}, {MAX_TRIES} times"

    async def _call(self, call: Callable[[], Awaitable[Result]], *, only_free: bool = False) -> Result:
        """Return the result of `call`; retry it while the provider cannot be reached.

        Raises TeacherError if the provider rejects it or stays out of reach. With `only_free`, a RetryableError of a
        call that may have succeeded is raised at once.
        """
        backoff = Backoff(self._session.policy)
        while True:
            try:
                return await call()
            except PromptError as error:
                raise TeacherError(f"{self._teacher.name}: {error.reason}.") from error
            except RetryableError as error:
                if only_free and error.may_be_charged:
                    raise
                wait = backoff.wait_seconds(error, self._time())
                if wait is None:
                    raise self._session.give_up(error) from error
                self._session.retrying(error, wait)
                await asyncio.sleep(wait)

    def _report_progress(self) -> None:
        states = [self._states[batch.id] for batch in self._batches if batch.id in self._states]
        note = ""
        if states:
            age = datetime.now(UTC) - min(state.created_at for state in states)
            which = f"batch {states[0].id}" if len(states) == 1 else f"{len(states)} batches"
            note = f"waiting for {which}, {format_duration(round(age.total_seconds()))} old"
        n_done = self._session.n_answered + sum(state.n_done for state in states)
        self._session.progress(min(n_done, self._session.n_prompts), note)
