"""Batch jobs, over any number of runs: submit, find again, poll, and import the results.

The store has a batch, and `batches/NAME.jsonl` its requests, before the provider is asked to create it. Answers are in
the journal before the store forgets the batch. So a kill at any moment neither loses nor doubles a batch.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from msgspec import structs

from mlx_distill.errors import BudgetError, TeacherError
from mlx_distill.events import Note, Warning
from mlx_distill.formatting import format_duration, format_time_of_day, plural
from mlx_distill.records import TeacherRecord
from mlx_distill.storage import files
from mlx_distill.storage.jsonl import each_jsonl
from mlx_distill.teachers.base import (
    MAX_RETRY_AFTER_SECONDS,
    BatchGoneError,
    BatchState,
    BatchTeacher,
    MalformedResponseError,
    PromptError,
    RetryableError,
)
from mlx_distill.teachers.pending import BatchMode, FailedPrompt, PendingRequest
from mlx_distill.teachers.session import BATCHES_CONTINUE, Session
from mlx_distill.teachers.store import ROUNDING_USD, PendingBatch

Result = TypeVar("Result")

KEPT = timedelta(days=29)
"""How long the provider keeps the results of a batch."""
MAX_READINGS = 4
"""Results that are missing this often will not come."""
MAX_TRIES = 3
"""How often one run submits a request that errors or expires."""
CLOCK_SLACK = timedelta(days=2)
"""Maximum difference between the provider's clock and ours: more than a time zone."""
LISTED_AFTER_SECONDS = 120.0
"""A batch that is not in the provider's list after this time was not created."""
LIST_EVERY_SECONDS = 10.0


class BatchRunner:
    """Imports the pending batches of a teacher. Unless the mode is off, it submits new ones and waits for all."""

    def __init__(self, session: Session, client: BatchTeacher, mode: BatchMode) -> None:
        self._session, self._client, self._mode = session, client, mode
        self._store, self._report, self._teacher = session.store, session.report, session.teacher
        self._tries: Counter[str] = Counter()
        self._unanswered: dict[str, str] = {}
        """Prompt keys that a batch left unanswered or truncated, and why."""
        self._given_up: dict[str, str] = {}
        self._n_short: Counter[str] = Counter()
        self._states: dict[str, BatchState] = {}
        self._submitting = False
        self._n_not_created = 0
        self._main: asyncio.Task[None] | None = None

    def interrupt(self, which: signal.Signals) -> None:
        """Stop; but wait for a submission, unless this is called again."""
        again, self._session.signal = self._session.signal is not None, which
        if self._main and (again or not self._submitting):
            self._main.cancel()
        elif self._main:
            self._report(Warning("Stopping when the batch is submitted. Press Ctrl-C again to stop at once."))

    async def run(self) -> None:
        """Import and submit. Raises what stops the run. If the mode is off, live requests follow."""
        self._time, self._main = asyncio.get_running_loop().time, asyncio.current_task()
        self._store.remove_orphans()
        if self._teacher.terms and self._mode == "all":
            self._report(Note(self._teacher.terms))
        for name in {batch.teacher for batch in self._store.batches} - {self._teacher.name}:
            self._report(Note(f"A batch of {name} is pending too. To import it: collect --wait --teacher {name}"))
        try:
            await self._import_all(wait=self._mode == "wait")
            while self._mode != "off" and await self._submit_missing():
                await self._import_all(wait=True)
        finally:
            self._session.replan()
            for pending in self._session.plan.missing if self._mode != "off" else ():
                reason = self._given_up.get(pending.request.prompt_key)
                if reason and not pending.has_answer:
                    self._session.failed.append(FailedPrompt(pending.prompt.id, pending.key, reason))

    @property
    def _batches(self) -> list[PendingBatch]:
        return [batch for batch in self._store.batches if batch.teacher == self._teacher.name]

    # Submitting

    async def _submit_missing(self) -> bool:
        """Submit what is missing, as far as the cap allows; return whether there is a batch to wait for."""
        missing = deque(each for each in self._session.plan.missing if self._is_wanted(each.request.prompt_key))
        self._session.retry = ()  # the user's retries are sent once
        n_submitted = 0
        while missing:
            chunk = self._next_chunk(missing)
            if not chunk:
                break
            await self._submit(chunk)
            n_submitted += 1
        if self._session.signal:
            raise asyncio.CancelledError
        if missing and not self._batches:
            raise BudgetError("The next batch could exceed the cap.")
        if missing:
            waiting = plural(len(missing), "request")
            self._report(Note(f"{waiting} wait for the current batches: sending them now could exceed the cap."))
        return n_submitted > 0 or bool(self._batches)

    def _is_wanted(self, prompt_key: str) -> bool:
        if prompt_key in self._given_up or (self._mode == "wait" and prompt_key not in self._unanswered):
            return False
        if self._tries[prompt_key] >= MAX_TRIES:
            self._given_up[prompt_key] = f"{self._unanswered.get(prompt_key, 'no answer')}, {MAX_TRIES} times"
            return False
        return True

    def _next_chunk(self, missing: deque[PendingRequest]) -> list[tuple[PendingRequest, float]]:
        """Take as many requests, with their worst cases, as one batch may hold and the cap allows."""
        chunk: list[tuple[PendingRequest, float]] = []
        left_usd, left_bytes = self._store.left_usd + ROUNDING_USD, self._client.max_bytes
        while missing and len(chunk) < self._client.max_requests:
            size, worst = self._client.size_bytes(missing[0].request), self._session.worst_usd(missing[0], batch=True)
            if worst is None or size > self._client.max_bytes:
                self._give_up(missing.popleft(), "it is too long for a batch, or for the known price")
                continue
            left_usd, left_bytes = left_usd - worst, left_bytes - size
            if left_usd < 0.0 or left_bytes < 0:
                break
            chunk.append((missing.popleft(), worst))
        return chunk

    async def _submit(self, chunk: Sequence[tuple[PendingRequest, float]]) -> None:
        name = secrets.token_hex(4)
        usd = sum(worst for _, worst in chunk)
        batch = PendingBatch(name, self._teacher.name, len(chunk), usd, datetime.now(UTC).isoformat())
        requests = {batch.custom_id(pending): pending.request for pending, _ in chunk}
        self._store.add_batch(batch, (pending for pending, _ in chunk))
        self._submitting = True
        try:
            state = await self._call(lambda: self._client.create(requests), only_free=True)
        except (RetryableError, MalformedResponseError) as error:
            self._submitting = False
            reason = error.reason if isinstance(error, RetryableError) else error.message.rstrip(".")
            self._report(Warning(f"The batch may not have been created ({reason}). Checking the provider's list."))
            await self._find(batch, age_seconds=0.0)
            self._n_not_created += all(each.name != name for each in self._store.batches)
            if self._n_not_created >= MAX_TRIES:
                raise TeacherError(
                    f"{self._teacher.name} has not created a batch {MAX_TRIES} times: {reason}.",
                    "Nothing was charged for it. Run the same command again later.",
                ) from error
        except TeacherError:
            self._close(batch)
            raise
        else:
            self._tries.update(pending.request.prompt_key for pending, _ in chunk)
            self._store.set_batch(structs.replace(batch, id=state.id))
            worst = f", at most {usd:.2f} USD" if usd else ""
            self._report(
                Note(
                    f"Batch {state.id}: {plural(len(chunk), 'request')}{worst}. It continues without this machine and "
                    f"ends by {state.expires_at.astimezone():%a %H:%M} at the latest."
                )
            )
        finally:
            self._submitting = False

    async def _find(self, batch: PendingBatch, age_seconds: float) -> None:
        """Look for a batch that may not have been created. If the provider does not list it, forget it."""
        submitted_at = datetime.fromisoformat(batch.submitted_at)
        until = self._time() + max(0.0, LISTED_AFTER_SECONDS - age_seconds)
        self._report(
            Note(f"Looking for the batch in the provider's list until {format_time_of_day(until - self._time())}.")
        )
        known = {*batch.not_ours, *(each.id for each in self._store.batches)}
        while True:
            listed = await self._call(lambda: self._client.list_since(submitted_at - CLOCK_SLACK))
            candidates = [each for each in listed if each.id not in known and each.n_requests == batch.n_requests]
            if candidates:  # the likeliest was created soon after the submission; the results will tell
                offsets = {each.id: each.created_at - submitted_at for each in candidates}
                best = min(offsets, key=lambda name: (offsets[name] < timedelta(), abs(offsets[name])))
                self._store.set_batch(structs.replace(batch, id=best))
                self._report(Note(f"Found batch {best}: its submission was interrupted."))
                return
            left = until - self._time()
            if left <= 0.0:
                self._close(batch)
                requests = plural(batch.n_requests, "request")
                self._report(Note(f"A batch of {requests} was not created: they are missing again."))
                return
            await asyncio.sleep(min(left, LIST_EVERY_SECONDS))

    # Importing

    async def _import_all(self, *, wait: bool) -> None:
        """Import the batches that have ended; if `wait`, until all have."""
        n_polls = 0
        while self._batches:
            for batch in self._batches:
                await self._poll(batch)
            self._report_progress()
            if not wait or not self._batches:
                return
            n_polls += 1
            await asyncio.sleep(self._session.policy.wait_seconds(n_polls))

    async def _poll(self, batch: PendingBatch) -> None:
        try:
            if not batch.id:
                age = datetime.now(UTC) - datetime.fromisoformat(batch.submitted_at)
                await self._find(batch, age_seconds=age.total_seconds())
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
            self._close(batch, batch.usd, batch.n_requests)
            counted = " Its worst case counts as spent." if batch.usd else ""
            requests = plural(batch.n_requests, "request")
            self._report(Warning(f"A batch of {requests} is lost ({error}).{counted}"))

    async def _import(self, batch: PendingBatch) -> None:
        """Bring the results of an ended batch into the journal, each once. After an error the same call continues."""
        requests, paid = self._store.read_batch(batch), batch.usd > 0.0
        saved = {
            record.key
            for _, record in each_jsonl(self._store.journal, TeacherRecord.from_json, skip_partial_line=True)
            if record.batch == batch.id
        }
        seen: dict[str, str] = {}
        """Why a request has no answer, by custom_id; empty if it has one."""
        unknown: list[str] = []
        n_foreign = 0
        async with aclosing(self._client.results(batch.id)) as results:
            async for result in results:
                pending = requests.get(result.custom_id)
                if pending is None or result.custom_id in seen:
                    n_foreign += pending is None
                    continue
                seen[result.custom_id] = "" if result.answer else result.reason
                if result.answer is None:
                    self._left_unanswered(pending, result.reason, retryable=result.retryable)
                    continue
                record = self._session.record(pending, result.answer, paid=paid, batch=batch.id)
                if paid and record.cost_usd is None:
                    unknown.append(result.custom_id)
                if record.key not in saved:
                    saved.add(record.key)
                    self._session.save(record)
                if record.completion_status == "max_tokens":
                    self._unanswered[pending.request.prompt_key] = "truncated"
        if n_foreign and not seen:
            self._report(Warning(f"Batch {batch.id} is not ours: its results name other requests."))
            self._store.set_batch(structs.replace(batch, id="", not_ours=(*batch.not_ours, batch.id)))
            return
        self._finish_import(batch, requests, seen, unknown)

    def _finish_import(
        self, batch: PendingBatch, requests: dict[str, PendingRequest], seen: dict[str, str], unknown: list[str]
    ) -> None:
        """Forget a batch whose answers are in the journal; count answers without a known cost, and missing results."""
        missing = requests.keys() - seen.keys()
        if missing and self._n_short[batch.name] < MAX_READINGS:
            self._n_short[batch.name] += 1
            raise RetryableError(f"the results of {batch.id} have {len(seen):,} of its {len(requests):,} requests")
        for each in missing:
            seen[each] = "no result came"
            self._left_unanswered(requests[each], "no result came", retryable=True)
        self._store.flush()
        lost = [*unknown, *missing] if batch.usd else []
        self._close(batch, sum(self._session.worst_usd(requests[each], batch=True) or 0.0 for each in lost), len(lost))
        reasons = Counter(reason for reason in seen.values() if reason)
        n_left = reasons.total()
        why = "; ".join(f"{count:,}: {reason}" for reason, count in reasons.most_common(3))
        left = f"; {n_left:,} are not ({why})" if n_left else ""
        self._report(Note(f"Batch {batch.id}: {len(seen) - n_left:,} of {len(seen):,} are answered{left}."))

    def _left_unanswered(self, pending: PendingRequest, reason: str, *, retryable: bool) -> None:
        if retryable:
            self._unanswered[pending.request.prompt_key] = reason
        elif self._mode != "off":
            self._give_up(pending, reason)

    def _give_up(self, pending: PendingRequest, reason: str) -> None:
        self._given_up[pending.request.prompt_key] = reason
        self._session.warn(f"{pending.prompt.id} is skipped: {reason}.", reason)

    def _close(self, batch: PendingBatch, unknown_usd: float = 0.0, n_unknown: int = 0) -> None:
        self._store.close_batch(batch, unknown_usd=unknown_usd, n_unknown=n_unknown)
        self._session.replan()

    async def _call(self, call: Callable[[], Awaitable[Result]], *, only_free: bool = False) -> Result:
        """Return the result of `call`; retry it while the provider cannot be reached.

        Raises TeacherError if the provider rejects it or stays out of reach. With `only_free`, a RetryableError of a
        call that may have succeeded is raised at once.
        """
        policy, name = self._session.policy, self._teacher.name
        deadline, n_failures = self._time() + policy.limit_seconds, 0
        while True:
            try:
                return await call()
            except PromptError as error:
                raise TeacherError(f"{name}: {error.reason}.") from error
            except RetryableError as error:
                if only_free and error.may_be_charged:
                    raise
                n_failures += 1
                wait = policy.wait_seconds(n_failures, error.retry_after)
                if self._time() >= deadline or (error.retry_after or 0.0) > MAX_RETRY_AFTER_SECONDS:
                    limit = format_duration(policy.limit_seconds)
                    message = f"{name} has not answered for {limit}: {error.reason}."
                    raise TeacherError(message, BATCHES_CONTINUE) from error
                if error.retry_after:
                    deadline = max(deadline, self._time() + wait + policy.limit_seconds)
                else:
                    wait = min(wait, deadline - self._time())
                self._session.retrying(error, wait)
                await asyncio.sleep(wait)

    def _report_progress(self) -> None:
        states = [self._states[batch.id] for batch in self._batches if batch.id in self._states]
        note = ""
        if states:
            age = datetime.now(UTC) - min(state.created_at for state in states)
            which = f"batch {states[0].id}" if len(states) == 1 else f"{len(states)} batches"
            note = f"waiting for {which}, {format_duration(round(age.total_seconds()))} old"
        n_done = len(self._session.plan.known) + sum(state.n_done for state in states)
        self._session.progress(min(n_done, len(self._session.plan.unique)), note)
