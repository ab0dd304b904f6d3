"""The journalled way to ask a teacher: only what is missing, many at once, every answer on the disk as it arrives.

Used by collect, expand and the comparison. Trouble is waited out in the open; what cannot be waited out stops the run.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from mlx_distill.errors import DistillError, Interrupted, TeacherError
from mlx_distill.events import Caution, Note, Progress, Report, ignore
from mlx_distill.records import Prompt, Request, TeacherRecord
from mlx_distill.storage.durable import missing_parents, remove_empty
from mlx_distill.storage.journal import Journal
from mlx_distill.storage.jsonl import read_jsonl
from mlx_distill.teachers import stopping
from mlx_distill.teachers.pacing import Pace, Patience
from mlx_distill.teachers.protocol import NoAnswerError, Teacher, TryLaterError

DRAIN_SECONDS = 20.0
"""How long answers that are under way, and will be charged, are waited for when the run has to stop."""
SAY_AGAIN_SECONDS = 10.0
"""One trouble is told at most so often, however many requests meet it."""


@dataclass(frozen=True)
class Unanswered:
    """A prompt that the teacher will not answer, and why."""

    prompt_id: str
    key: str
    reason: str


@dataclass(frozen=True)
class Asked:
    """Where a round of asking ended."""

    records: Mapping[str, TeacherRecord]
    """The answered requests of this round by key, those answered in earlier rounds among them."""
    n_new: int
    """Answers that arrived in this round."""
    cost_usd: float
    """Of the new answers, as far as prices are known."""
    unanswered: tuple[Unanswered, ...]
    seconds: float
    stopped_by: DistillError | None = None
    """What ended the round before its end; None where every request was settled."""


def ask_all(
    teacher: Teacher,
    asks: Sequence[tuple[Prompt, Request]],
    journal: Path,
    *,
    concurrency: int,
    report: Report = ignore,
    patience: Patience = Patience(),  # noqa: B008 - frozen
    job: str = "ask",
) -> Asked:
    """Ask what the journal does not hold yet and return all answers of these requests.

    Requests with equal keys are asked once. Raises TeacherError where the teacher cannot be asked (any more) and
    Interrupted after Ctrl-C or SIGTERM; every answer that arrived is in the journal by then.
    """
    asked = ask_until_stopped(
        teacher, asks, journal, concurrency=concurrency, report=report, patience=patience, job=job
    )
    if asked.stopped_by:
        raise asked.stopped_by
    return asked


def ask_until_stopped(
    teacher: Teacher,
    asks: Sequence[tuple[Prompt, Request]],
    journal: Path,
    *,
    concurrency: int,
    report: Report = ignore,
    patience: Patience = Patience(),  # noqa: B008 - frozen
    job: str = "ask",
) -> Asked:
    """`ask_all` for a caller with something to write whatever happens: what stopped it is returned, not raised."""
    made = missing_parents(journal)
    with Journal(journal) as opened:
        if opened.torn:
            report(Caution(f"{journal}: a half-written last line ({len(opened.torn)} bytes) was removed."))
        asking = _Asking(teacher, asks, opened, concurrency=concurrency, report=report, patience=patience, job=job)
        if asking.missing:
            stopping.run(asking.run(), asking.interrupt)
        if journal.stat().st_size == 0:  # nothing was answered: leave no file that looks like data
            journal.unlink()
            remove_empty(made)
        return asking.result()


class _Asking:
    """One round: the queue of what is missing, and what became of it."""

    def __init__(
        self,
        teacher: Teacher,
        asks: Sequence[tuple[Prompt, Request]],
        journal: Journal,
        *,
        concurrency: int,
        report: Report,
        patience: Patience,
        job: str,
    ) -> None:
        known = {record.key: record for record in read_jsonl(journal.path, TeacherRecord.from_json)}
        wanted: dict[str, tuple[Prompt, Request]] = {}
        for prompt, request in asks:
            wanted.setdefault(request.key, (prompt, request))
        self.records = {key: known[key] for key in wanted if key in known}
        self.missing = deque((key, *ask) for key, ask in wanted.items() if key not in known)
        self._wanted, self._n_wanted, self._n_known = tuple(wanted), len(wanted), len(self.records)
        self._unanswered: list[Unanswered] = []
        self._stopped_by: DistillError | None = None
        self._teacher, self._journal, self._report = teacher, journal, report
        self._patience, self._concurrency, self._job = patience, concurrency, job
        self._pace = Pace(concurrency)
        self._began = time.monotonic()
        self._last_answer_at = 0.0
        self._cost_usd = 0.0
        self._in_flight: set[asyncio.Task[None]] = set()
        self._closing = False
        self._stop = asyncio.Event()
        self._signal: signal.Signals | None = None
        self._said: dict[str, float] = {}

    def result(self) -> Asked:
        n_new = len(self.records) - self._n_known
        seconds = time.monotonic() - self._began
        records = {key: self.records[key] for key in self._wanted if key in self.records}
        return Asked(records, n_new, self._cost_usd, tuple(self._unanswered), seconds, self._stopped_by)

    async def run(self) -> None:
        """Ask for all that is missing; ends early where the teacher cannot be asked or the user stops it."""
        with stopping.signals_call(self.interrupt):
            try:
                async with self._teacher:
                    if self._teacher.terms:
                        self._report(Note(self._teacher.terms))
                    self._tell_progress()
                    await self._ask_everything()
            except DistillError as error:
                self._stopped_by = error

    def interrupt(self, which: signal.Signals) -> None:
        """Stop the round."""
        self._signal = which
        self._stop.set()

    async def _ask_everything(self) -> None:
        workers = [asyncio.create_task(self._work()) for _ in range(min(self._concurrency, len(self.missing)))]
        stop = asyncio.create_task(self._stop.wait())
        ended = asyncio.create_task(asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION))
        try:
            await asyncio.wait({ended, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not stop.done():
                await self._drain(workers, stop)
        finally:
            for task in (*workers, stop, ended):
                task.cancel()
            outcomes = await asyncio.gather(*workers, return_exceptions=True)
        if self._signal:
            raise Interrupted(
                f"{len(self.records)} of {self._n_wanted} answers are saved in {self._journal.path}.",
                f"Run the same command again: it asks only for the {self._n_wanted - len(self.records)} missing.",
                exit_code=128 + self._signal,
            )
        errors = [error for error in outcomes if isinstance(error, Exception)]
        for error in sorted(errors, key=lambda error: isinstance(error, DistillError)):  # a bug before all else
            raise error

    async def _drain(self, workers: Sequence[asyncio.Task[None]], stop: asyncio.Task[bool]) -> None:
        """After an error that stops the run: keep what is under way, which is paid for, but start nothing."""
        self._closing = True
        for task in set(workers) - self._in_flight:
            task.cancel()
        began = time.monotonic()
        while self._in_flight and not stop.done() and time.monotonic() < began + DRAIN_SECONDS:
            await asyncio.wait({stop, *self._in_flight}, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
            if self._in_flight and time.monotonic() > began + 1.0:
                text = f"Stopping; {len(self._in_flight)} answers are under way and waited for ({DRAIN_SECONDS:g} s)."
                self._say_once_in(DRAIN_SECONDS, text, about="stopping")

    async def _work(self) -> None:
        while self.missing and not self._closing:
            key, prompt, request = self.missing.popleft()
            try:
                await self._ask(key, prompt, request)
            except NoAnswerError as error:
                self._unanswered.append(Unanswered(prompt.id, key, error.reason))
                self._say_once_in(float("inf"), f"{prompt.id} is skipped: {error.reason}.", about=error.reason)
                self._tell_progress()

    async def _ask(self, key: str, prompt: Prompt, request: Request) -> None:
        """Ask one request until it is answered and written down."""
        n_failures, troubled_since = 0, 0.0
        while not self._closing:
            started = await self._pace.turn()
            try:
                trouble = await self._attempt(key, prompt, request)
            finally:
                self._pace.done()
            if trouble is None or self._closing:
                return
            n_failures += 1
            troubled_since = troubled_since or time.monotonic()
            left = troubled_since + self._patience.limit_seconds - time.monotonic()
            if left <= 0.0 or (trouble.after_seconds or 0.0) > left:
                self._give_up(trouble, troubled_since)
            if trouble.overloaded:
                self._pace.slow_down(started)
                n_failures = max(n_failures, self._pace.n_overloads)
            wait = self._patience.wait_seconds(n_failures, trouble.after_seconds)
            if not trouble.after_seconds:
                wait = min(wait, left)
            if trouble.overloaded:
                self._pace.hold(wait)
            self._tell_trouble(trouble, wait)
            await asyncio.sleep(wait)

    async def _attempt(self, key: str, prompt: Prompt, request: Request) -> TryLaterError | None:
        """Ask once. Nothing is awaited between an answer's arrival and its being on the disk: no signal falls there."""
        task = asyncio.current_task()
        assert task is not None
        self._in_flight.add(task)
        try:
            answer = await self._teacher.answer(request)
        except TryLaterError as trouble:
            return trouble
        finally:
            self._in_flight.discard(task)
        asked_at = datetime.now(UTC).isoformat(timespec="seconds")
        record = TeacherRecord(key, prompt, request, answer, asked_at)
        self._journal.append(record.to_json())
        self.records[key] = record
        self._last_answer_at = time.monotonic()
        self._cost_usd += answer.cost_usd or 0.0
        self._pace.went_well()
        if answer.cost_usd is None and answer.usage.output_tokens:
            self._say_once_in(float("inf"), f"No price is known for {answer.model}: its cost is not counted.")
        self._tell_progress()
        return None

    def _give_up(self, trouble: TryLaterError, troubled_since: float) -> NoReturn:
        """Waiting has not helped: skip the request where others were answered meanwhile, else end the run."""
        limit = _minutes(self._patience.limit_seconds)
        if self._last_answer_at > troubled_since:
            raise NoAnswerError(f"it failed for {limit}, while others were answered: {trouble.reason}")
        asks_for = f" It asks to wait {trouble.after_seconds:.0f} s." if trouble.after_seconds else ""
        raise TeacherError(
            f"{self._teacher.name} cannot be waited for longer than {limit}: {trouble.reason}.{asks_for}",
            f"{len(self.records)} of {self._n_wanted} answers are saved. Run the same command again later, or wait "
            "longer with --wait-minutes.",
        )

    def _tell_progress(self, note: str = "") -> None:
        cost = f"{self._cost_usd:.2f} USD" if self._cost_usd else ""
        done = len(self.records) + len(self._unanswered)
        text = "  ".join(filter(None, [cost, note]))
        self._report(Progress(self._job, done, self._n_wanted, "answers", text))

    def _tell_trouble(self, trouble: TryLaterError, wait: float) -> None:
        self._say_once_in(
            max(wait, SAY_AGAIN_SECONDS),
            f"{trouble.reason}: asking again in {wait:.1f} s; gives up after "
            f"{_minutes(self._patience.limit_seconds)} without an answer.",
            about=trouble.reason,
        )
        self._tell_progress(f"waiting {wait:.0f} s")

    def _say_once_in(self, seconds: float, text: str, about: str = "") -> None:
        """Say it unless the same was said a moment ago."""
        now = time.monotonic()
        if now >= self._said.get(about or text, 0.0):
            self._said[about or text] = now + seconds
            self._report(Caution(text))


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:g} min" if seconds >= 60 else f"{seconds:g} s"
