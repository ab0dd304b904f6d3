"""Asking in batches, over any number of runs: makes them, waits for them, and brings their answers in."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from typing import Literal

from mlx_distill.errors import DistillError, Interrupted, TeacherError
from mlx_distill.events import Note, Report, Warning
from mlx_distill.storage.journal import Journal
from mlx_distill.teachers.asking import stopping
from mlx_distill.teachers.asking.batch_log import BatchLog, OpenBatch
from mlx_distill.teachers.asking.batch_making import BatchMaker
from mlx_distill.teachers.asking.batch_taking import MissingResultsError, NotOursError, Taken, take
from mlx_distill.teachers.asking.estimate import over_budget
from mlx_distill.teachers.asking.pacing import Patience
from mlx_distill.teachers.asking.patient import Patient
from mlx_distill.teachers.asking.plan import Ask, Plan
from mlx_distill.teachers.asking.round import Unanswered
from mlx_distill.teachers.asking.telling import Teller, span
from mlx_distill.teachers.batching import Batches, BatchGoneError, BatchState
from mlx_distill.teachers.money.ledger import Budget, Ledger
from mlx_distill.teachers.protocol import Teacher

KEPT = timedelta(days=29)
"""For so long the provider keeps the results of a batch."""
MOST_READINGS = 4
"""Results that are missing so often will not come."""
MOST_TRIES = 3
"""How often one run puts a request into a batch that errors or expires."""
STEP = "Batches go on without this machine: run the same command again, and it brings in their answers."

Makes = Literal["nothing", "again", "all"]
"""What is put into new batches: nothing, what a batch left unanswered, or all that is missing."""
MakePlan = Callable[[Collection[str], Collection[str]], Plan]
"""A plan of what the journal lacks, by the questions that are under way and the outcomes to ask again."""


class BatchRound:
    """Brings in the open batches of a teacher; where it makes batches it waits for them, else it only looks."""

    def __init__(
        self,
        teacher: Teacher,
        batches: Batches,
        plan: Plan,
        journal: Journal,
        log: BatchLog,
        *,
        make_plan: MakePlan,
        retry: Collection[str],
        makes: Makes,
        ledger: Ledger | None,
        budget: Budget,
        report: Report,
        patience: Patience,
        job: str,
    ) -> None:
        self._teacher, self._batches, self._journal, self._log = teacher, batches, journal, log
        self._make_plan, self._makes = make_plan, makes
        self._ledger, self._budget = ledger, budget
        self._report, self._patience, self._retry = report, patience, retry
        self._plan, self._plan_is_old = plan, False
        self._teller = Teller(report, job, len(plan.wanted), patience.limit_seconds)
        patient = Patient(teacher.name, patience, self._teller, STEP)
        self._call = patient.call
        self._maker = BatchMaker(teacher, batches, log, ledger, patient, report)
        self._tries: Counter[str] = Counter()
        self._again: dict[str, str] = {}
        """By question, what a batch left unanswered or cut off, and how."""
        self._never: dict[str, str] = {}
        """By question, what is not asked again in this run, and why."""
        self._states: dict[str, BatchState] = {}
        self._n_short: Counter[str] = Counter()
        """By the name of a batch, how often not all of its results came."""
        self.n_new = 0
        """Answers that batches brought."""
        self.stopped_by: DistillError | None = None
        self._main: asyncio.Task[None] | None = None
        self._signal: signal.Signals | None = None
        self._began = time.monotonic()

    @property
    def plan(self) -> Plan:
        """What is missing now: the journal and the log say it, and are read anew only once they have changed."""
        if self._plan_is_old:
            self._plan = self._make_plan(self._log.questions_under_way(), self._retry)
            self._plan_is_old = False
        return self._plan

    @property
    def cost_usd(self) -> float:
        """Of these answers, as far as it is known."""
        return self._teller.cost_usd

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def unanswered(self) -> list[Unanswered]:
        """What no batch will answer, and why; where none is made, others may."""
        if self._makes == "nothing":
            return []
        never = [(ask, self._never.get(ask.request.prompt_key)) for ask in self.plan.missing if not ask.again]
        return [Unanswered(ask.prompt.id, ask.key, reason) for ask, reason in never if reason]

    async def run(self) -> None:
        """Do it; ends early where the teacher cannot be asked or the user stops it."""
        with stopping.signals_call(self.interrupt):
            self._main = asyncio.create_task(self._enter())
            try:
                await self._main
            except asyncio.CancelledError:
                if self._signal is None:
                    raise
            except DistillError as error:
                self.stopped_by = error
            if self._signal:
                self.stopped_by = self._interrupted(self._signal)

    def interrupt(self, which: signal.Signals) -> None:
        """Stop; a batch that is being made is waited for, unless this is called again."""
        again, self._signal = self._signal is not None, which
        if self._main and (again or not self._maker.is_making):
            self._main.cancel()
        elif self._main:
            self._report(Warning("Stopping when the batch is made. Once more stops at once."))

    async def _enter(self) -> None:
        async with self._teacher:
            if self._teacher.terms and self._makes == "all":
                self._report(Note(self._teacher.terms))
            self._tell_of_others()
            await self._bring_in(wait=self._makes == "again")
            while self._makes != "nothing" and await self._make():
                await self._bring_in(wait=True)

    async def _make(self) -> bool:
        """Batches of what is to be asked, as far as the cap allows; False where there is nothing left to wait for."""
        asks = [ask for ask in self.plan.missing if self._is_to_ask(ask.request.prompt_key)]
        again = all(ask.again or ask.request.prompt_key in self._again for ask in asks)
        left = deque(asks)
        self._plan_is_old = True
        n_made = await self._maker.make(left, again=again)
        self._retry = ()  # what the user wants asked again is asked again once
        for ask in self._maker.too_long:
            self._give_up(ask, "it is too long for a batch, or for the price that is known")
        self._tries.update(ask.request.prompt_key for ask in asks if ask.key in self.plan.under_way)
        if self._signal:
            raise asyncio.CancelledError
        if left and not self._open:
            assert self._ledger is not None
            raise over_budget(self._teacher, self.plan, left, self._ledger, self._budget, batch=True)
        if left:
            self._report(Note(f"The cap lets {len(left):,} requests wait until the batches' real cost is known."))
        return n_made > 0 or bool(self._open)

    def _is_to_ask(self, question: str) -> bool:
        if question in self._never or (self._makes == "again" and question not in self._again):
            return False
        if self._tries[question] >= MOST_TRIES:
            self._never[question] = f"{self._again.get(question, 'no answer')}, {MOST_TRIES} times"
            return False
        return True

    @property
    def _open(self) -> list[OpenBatch]:
        return self._log.open_of(self._teacher.name)

    async def _bring_in(self, *, wait: bool) -> None:
        """The answers of the batches that have ended; where it is to wait, of all."""
        n_looks = 0
        while self._open:
            for batch in self._open:
                await self._look_at(batch)
            self._tell_progress()
            if not wait or not self._open:
                return
            n_looks += 1
            await asyncio.sleep(self._patience.wait_seconds(n_looks))

    async def _look_at(self, batch: OpenBatch) -> None:
        if not batch.id:  # its making was cut off, or what was found in its place was another one
            self._plan_is_old = True
            await self._maker.find(batch)
        if not batch.id:  # it was never made, or nobody can say
            return
        try:
            state = await self._call(lambda: self._batches.state(batch.id))
            self._states[batch.id] = state
            if not state.ended:
                return
            self._plan_is_old = True
            self._count(batch, await self._call(lambda: self._take(batch)))
        except NotOursError:
            self._report(Warning(f"Batch {batch.id} is not ours: its results name other requests."))
            self._log.disowned(batch)
        except BatchGoneError as error:
            if datetime.now(UTC) - batch.announced_at < KEPT:  # rather another key than a batch that was deleted
                raise TeacherError(
                    f"{self._teacher.name}: {error}, as the account of this API key sees it.",
                    f"Use the key that {batch.id} was made with. If it was deleted there, remove {self._log.folder}: "
                    "what no batch answers is missing then, and the ledger counts it in full.",
                ) from error
            self._plan_is_old = True
            self._maker.lose(batch, str(error))

    async def _take(self, batch: OpenBatch) -> Taken:
        are_all = self._n_short[batch.name] >= MOST_READINGS
        try:
            return await take(self._batches, batch, self._log, self._journal, self._ledger, are_all=are_all)
        except MissingResultsError:
            self._n_short[batch.name] += 1
            raise

    def _count(self, batch: OpenBatch, taken: Taken) -> None:
        self.n_new += taken.n_new
        self._teller.cost_usd += taken.cost_usd
        for ask, outcome in taken.answered:
            if outcome == "max_tokens":
                self._again[ask.request.prompt_key] = "cut off"
        for ask, reason in taken.to_ask_again:
            self._again[ask.request.prompt_key] = reason
        if self._makes != "nothing":
            for ask, reason in taken.never_answered:
                self._give_up(ask, reason)
        n_lost = batch.n_requests - len(taken.answered)
        why = Counter(reason for _, reason in (*taken.to_ask_again, *taken.never_answered)).most_common(3)
        reasons = f" ({'; '.join(f'{count:,}: {reason}' for reason, count in why)})" if why else ""
        left = f"; {n_lost:,} are not{reasons}" if n_lost else ""
        self._report(Note(f"Batch {batch.id}: {len(taken.answered):,} of {batch.n_requests:,} are answered{left}."))

    def _give_up(self, ask: Ask, reason: str) -> None:
        self._never[ask.request.prompt_key] = reason
        self._teller.say_once(f"{ask.prompt.id} is skipped: {reason}.", about=reason)

    def _interrupted(self, which: signal.Signals) -> Interrupted:
        under_way = f", {len(self.plan.under_way):,} are in batches" if self.plan.under_way else ""
        unsure = "" if all(batch.id for batch in self._open) else " (one of which may not have been made)"
        return Interrupted(
            f"{len(self.plan.known):,} of {len(self.plan.wanted):,} answers are saved in {self._journal.path}"
            f"{under_way}{unsure}.",
            STEP if self._open else "Run the same command again: it asks only for what is missing.",
            exit_code=128 + which,
        )

    def _tell_of_others(self) -> None:
        for name in dict.fromkeys(batch.teacher for batch in self._log.open.values()):
            if name != self._teacher.name:
                step = f"run collect with --wait --teacher {name}."
                self._report(Note(f"A batch of {name} is under way too. To bring it in, {step}"))

    def _tell_progress(self) -> None:
        states = [self._states[batch.id] for batch in self._open if batch.id in self._states]
        note = ""
        if states:
            first = min(states, key=lambda state: state.created_at)
            age = span((datetime.now(UTC) - first.created_at).total_seconds())
            which = f"batch {first.id}" if len(states) == 1 else f"{len(states)} batches"
            note = f"waiting for {which}, {age} old"
        n_done = sum(state.n_done for state in states)
        self._teller.progress(min(len(self.plan.known) + n_done, len(self.plan.wanted)), note)
