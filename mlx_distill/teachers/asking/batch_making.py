"""Makes batches of what is missing, within the provider's sizes and the cap, so that no batch is lost or paid twice.

The worst case is reserved in the ledger and the requests are in the log before the provider is asked to make a batch;
its name is in the log before anything else happens. A batch whose making was cut off is looked for in the provider's
list by its size and time; what is found there is known for ours when its results name our requests.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from datetime import UTC, datetime, timedelta

from mlx_distill.errors import TeacherError
from mlx_distill.events import Note, Report, Warning
from mlx_distill.teachers.asking.batch_log import BatchLog, OpenBatch, custom_ids
from mlx_distill.teachers.asking.patient import Patient
from mlx_distill.teachers.asking.plan import Ask
from mlx_distill.teachers.asking.telling import clock, span
from mlx_distill.teachers.batching import Batches, BatchGoneError
from mlx_distill.teachers.money.ledger import Ledger
from mlx_distill.teachers.protocol import Teacher, TryLaterError, UnreadableError

SLACK = timedelta(days=2)
"""How far the provider's clock may be from ours, and ours from itself before it was set: more than a time zone."""
LISTED_AFTER_SECONDS = 120.0
"""A batch that is not in the provider's list so long after its making was cut off was never made."""
LOOK_AGAIN_SECONDS = 10.0
ROUNDING_USD = 1e-9
"""More than what the sum of many prices may be off by."""


class BatchMaker:
    """Makes the batches of one teacher; without a ledger costs are not counted."""

    def __init__(
        self,
        teacher: Teacher,
        batches: Batches,
        log: BatchLog,
        ledger: Ledger | None,
        patient: Patient,
        report: Report,
    ) -> None:
        self._teacher, self._batches, self._log, self._ledger = teacher, batches, log, ledger
        self._patient, self._report = patient, report
        self.too_long: list[Ask] = []
        """What no batch can hold, or has no known price."""
        self.is_making = False
        """Whether the provider is being asked to make one at this moment."""
        self._failing_since = 0.0
        """Monotonic seconds of the first of the failures in a row; 0 while there is none."""

    async def make(self, asks: deque[Ask], *, again: bool) -> int:
        """Make as many batches as it takes, or as the cap allows; what is in one is taken from `asks`.

        `again` says that all of it was asked before. Returns how many were made.
        """
        n_made = 0
        while asks:
            chunk = self._next_chunk(asks)
            if not chunk:
                break
            await self._make_one(chunk, again=again)
            n_made += 1
        return n_made

    def _next_chunk(self, asks: deque[Ask]) -> list[Ask]:
        """As many of the first requests as one batch may hold and the cap allows."""
        chunk: list[Ask] = []
        left_usd = self._ledger.left_usd - ROUNDING_USD if self._ledger else float("inf")
        left_bytes = self._batches.most_bytes
        while asks and len(chunk) < self._batches.most_requests:
            size, worst = self._batches.size_of(asks[0].request), self._worst_usd(asks[0])
            if worst is None or size > self._batches.most_bytes:
                self.too_long.append(asks.popleft())
                continue
            left_usd, left_bytes = left_usd - worst, left_bytes - size
            if left_usd < 0.0 or left_bytes < 0:
                break
            chunk.append(asks.popleft())
        return chunk

    def _worst_usd(self, ask: Ask) -> float | None:
        if self._ledger is None:
            return 0.0
        return self._ledger.worst_usd(self._teacher.billed_model, [ask.request], batch=True)

    async def _make_one(self, asks: list[Ask], *, again: bool) -> None:
        named = custom_ids(asks)
        requests = {name: ask.request for name, ask in named.items()}
        # In this order: what a kill leaves in the log is closed by the next run, in the ledger it would count for ever.
        reservation = secrets.token_hex(8) if self._ledger else ""
        batch = self._log.announce(self._teacher.name, named, reservation)
        held = None
        if self._ledger:
            model = self._teacher.billed_model
            held = self._ledger.reserve(model, list(requests.values()), batch=True, again=again, name=reservation)
        self.is_making = True
        try:
            state = await self._patient.call(lambda: self._batches.create(requests), once_charged=True)
        except (TryLaterError, UnreadableError) as error:
            self.is_making = False
            reason = error.reason if isinstance(error, TryLaterError) else error.message.rstrip(".")
            self._report(Warning(f"It is not known whether a batch was made ({reason}): it is looked for."))
            self._failing_since = self._failing_since or time.monotonic()
            await self.find(batch, just_now=True)
            if batch.name in self._log.open:
                self._failing_since = 0.0
            elif time.monotonic() - self._failing_since >= self._patient.limit_seconds:
                raise TeacherError(
                    f"{self._teacher.name} has made no batch for {span(self._patient.limit_seconds)}: {reason}.",
                    "Nothing was charged for it. Run the same command again later.",
                ) from error
        except TeacherError as error:  # it was refused: there is none
            self.drop(batch, f"refused: {error.message}")
            raise
        else:
            self._log.created(batch, state.id)
            self._failing_since = 0.0
            cost = f", at most {held.usd:.2f} USD" if held else ""
            self._report(
                Note(
                    f"Batch {state.id}: {len(named):,} requests{cost}. It goes on without this machine and ends by "
                    f"{state.expires_at.astimezone():%a %H:%M} at the latest."
                )
            )
        finally:
            self.is_making = False

    async def find(self, batch: OpenBatch, *, just_now: bool = False) -> None:
        """Look for a batch whose making was cut off, perhaps `just_now`; where it was never made, its requests are
        missing again.
        """
        n_looks = 0
        age = 0.0 if just_now else max(0.0, (datetime.now(UTC) - batch.announced_at).total_seconds())
        until = time.monotonic() + LISTED_AFTER_SECONDS - age
        while True:
            try:
                listed = await self._patient.call(lambda: self._batches.since(batch.announced_at - SLACK))
            except BatchGoneError as error:
                self.lose(batch, str(error))
                return
            fitting = [
                state
                for state in sorted(listed, key=lambda state: _distance(state.created_at - batch.announced_at))
                if state.id not in self._log.known_ids and state.n_requests == batch.n_requests
            ]
            if fitting:
                self._log.created(batch, fitting[0].id)
                self._report(Note(f"Batch {batch.id} was found: its making had been cut off."))
                return
            left = until - time.monotonic()
            if left <= 0.0:
                self.drop(batch, "it was never made")
                self._report(Note(f"A batch of {batch.n_requests:,} requests was never made: they are missing again."))
                return
            if n_looks == 0:
                self._report(Note(f"A batch may have been made: the provider's list is looked at until {clock(left)}."))
            n_looks += 1
            await asyncio.sleep(min(left, LOOK_AGAIN_SECONDS))

    def drop(self, batch: OpenBatch, why: str) -> None:
        """There is no such batch: nothing is charged, and its requests are missing again."""
        if self._ledger and batch.reservation in self._ledger.under_way:
            self._ledger.release(batch.reservation, why)
        self._log.close(batch, why)

    def lose(self, batch: OpenBatch, why: str) -> None:
        """Nobody can say any more what it cost: it counts in full, and its requests are missing again."""
        if self._ledger and batch.reservation in self._ledger.under_way:
            self._ledger.unknown(batch.reservation, why)
        counted = " It counts in full as spent." if self._ledger else ""
        self._report(Warning(f"A batch of {batch.n_requests:,} requests is lost: {why}.{counted}"))
        self._log.close(batch, f"lost: {why}")


def _distance(after: timedelta) -> tuple[bool, timedelta]:
    """By which to look first at what was made after the announcement, and soon after: both clocks may be right."""
    return after < timedelta(), abs(after)
