"""One round of asking: the queue of what is missing, and what becomes of it."""

from __future__ import annotations

import asyncio
import signal
import time
from asyncio import FIRST_COMPLETED
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from mlx_distill.errors import BudgetError, DistillError, Interrupted, TeacherError
from mlx_distill.events import Note, Report
from mlx_distill.records import TeacherRecord
from mlx_distill.storage.journal import Journal
from mlx_distill.teachers.asking import stopping
from mlx_distill.teachers.asking.estimate import over_budget
from mlx_distill.teachers.asking.pacing import Pace, Patience, Trouble, Turn
from mlx_distill.teachers.asking.plan import Ask, Known, Plan, ask_again
from mlx_distill.teachers.asking.purse import Purse
from mlx_distill.teachers.asking.telling import Teller, span
from mlx_distill.teachers.money.ledger import Budget, Ledger
from mlx_distill.teachers.protocol import LimitError, NoAnswerError, RefusedError, Teacher, TryLaterError

DRAIN_SECONDS = 20.0
"""How long answers that are under way, and will be charged, are waited for when the run has to stop."""
LOOK_SECONDS = 5.0
"""So often it is looked whether there is something to say."""
SILENCE_SECONDS = 20.0
"""Without an answer for so long, it is said what is waited for."""
FEW_REFUSED = 2
"""More requests refused, and none answered: it is not the prompts, and the run stops."""
MOST_REFUSED = 50
"""More requests refused in a row stop it also where others were answered before."""


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A prompt that the teacher will not answer, and why."""

    prompt_id: str
    key: str
    reason: str


class Round:
    """Asks all that a plan misses, into the journal, and keeps of each answer what the plan knows of it."""

    def __init__(
        self,
        teacher: Teacher,
        plan: Plan,
        journal: Journal,
        *,
        ledger: Ledger | None,
        budget: Budget,
        concurrency: int,
        report: Report,
        patience: Patience,
        job: str,
    ) -> None:
        self._teacher, self._plan, self._journal, self._report = teacher, plan, journal, report
        self._ledger, self._budget = ledger, budget
        self._patience, self._concurrency = patience, concurrency
        self._teller = Teller(report, job, len(plan.wanted), patience.limit_seconds)
        self._pace = Pace(concurrency, self._teller.used_up)
        self._purse = Purse(ledger, teacher.billed_model, budget.prices)
        self._n_left = len(plan.missing)
        """Requests that are not settled, answers that are to be asked for again among them."""
        self._begun: dict[str, Ask] = {}
        """What was taken from the queue and is not settled, by key."""
        self._asked_for_more: set[str] = set()
        """Keys of answers of this round that were cut off, until there is another."""
        self.n_new = 0
        """Requests that an answer arrived for."""
        self.unanswered: list[Unanswered] = []
        self.stopped_by: DistillError | None = None
        self._began = time.monotonic()
        self._last_answer_at = 0.0
        self._failing_since = 0.0
        """Monotonic seconds of the first failure since the last answer; 0 where there is none."""
        self._stated_until = 0.0
        """Monotonic seconds of the end of the last wait that was longer than patience, as the teacher stated it."""
        self._longest_retry = teacher.longest_retry
        self._in_flight: dict[asyncio.Task[None], float] = {}
        """Who waits for an answer, and since when (monotonic seconds)."""
        self._put_aside: list[tuple[Ask, RefusedError]] = []
        """Refused while nothing is answered yet, so that it may not be their fault."""
        self._n_refused = 0
        """In a row, with nothing answered since."""
        self._closing = False
        self._stop, self._stop_now = asyncio.Event(), asyncio.Event()
        self._signal: signal.Signals | None = None

    @property
    def cost_usd(self) -> float:
        """Of the new answers, as far as it is known."""
        return self._teller.cost_usd

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    async def run(self) -> None:
        """Ask for all that is missing; ends early where the teacher cannot be asked or the user stops it."""
        with stopping.signals_call(self.interrupt):
            try:
                async with self._teacher:
                    if self._teacher.terms:
                        self._report(Note(self._teacher.terms))
                    self._tell_progress()
                    await self._ask_everything()
            except BudgetError:
                self.stopped_by = self._over_budget()
            except DistillError as error:
                self.stopped_by = error

    def interrupt(self, which: signal.Signals) -> None:
        """Stop the round: answers that are paid for are waited for a moment, unless this is called again."""
        if self._closing or self._signal or not self._ledger:
            self._stop_now.set()
        self._signal = which
        self._stop.set()

    async def _ask_everything(self) -> None:
        n_workers = min(self._concurrency, len(self._plan.missing))
        workers = [asyncio.create_task(self._work()) for _ in range(n_workers)]
        stop, stop_now = asyncio.create_task(self._stop.wait()), asyncio.create_task(self._stop_now.wait())
        ended = asyncio.create_task(asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION))
        try:
            while not (await asyncio.wait({ended, stop}, timeout=LOOK_SECONDS, return_when=FIRST_COMPLETED))[0]:
                self._tell_of_silence()
            await self._drain(workers, stop_now)
        finally:
            for task in (*workers, stop, stop_now, ended):
                task.cancel()
            outcomes = await asyncio.gather(*workers, return_exceptions=True)
        if self._signal:
            raise Interrupted(
                f"{len(self._plan.known):,} of {len(self._plan.wanted):,} answers are saved in {self._journal.path}.",
                "Run the same command again: it asks only for the "
                f"{len(self._plan.wanted) - len(self._plan.known):,} missing.",
                exit_code=128 + self._signal,
            )
        errors = [error for error in outcomes if isinstance(error, Exception)]
        for error in sorted(errors, key=lambda error: isinstance(error, DistillError)):  # a bug before all else
            raise error
        if self._put_aside:
            raise _of_prompt(*self._put_aside[0])

    async def _drain(self, workers: Sequence[asyncio.Task[None]], stop_now: asyncio.Task[bool]) -> None:
        """When the run has to stop: keep what is under way, which is paid for, but start nothing."""
        self._closing = True
        for task in set(workers) - self._in_flight.keys():
            task.cancel()
        began = time.monotonic()
        while self._in_flight and not stop_now.done() and time.monotonic() < began + DRAIN_SECONDS:
            if self._signal or time.monotonic() > began + 1.0:
                text = f"Stopping; {len(self._in_flight)} answers are under way and waited for ({DRAIN_SECONDS:g} s)."
                again = " Ctrl-C once more stops at once." if self._signal else ""
                self._teller.say_once_in(DRAIN_SECONDS, text + again, about="stopping")
            await asyncio.wait({stop_now, *self._in_flight}, timeout=1.0, return_when=FIRST_COMPLETED)

    async def _work(self) -> None:
        while self._plan.missing and not self._closing:
            ask = self._plan.missing.popleft()
            self._begun[ask.key] = ask
            try:
                await self._ask(ask)
            except NoAnswerError as error:
                self._skip(ask, error.reason)
            except LimitError as error:
                if not self._has_an_answer(ask):
                    raise
                self._longest_retry = 0
                self._skip(ask, error.message)
            except RefusedError as error:
                self._refuse(ask, error)
            except BudgetError:
                if not self._has_an_answer(ask):
                    raise
                self._skip(ask, "asking again may cost more than the cap allows")
            if not self._closing:  # or it may have ended before it was answered
                del self._begun[ask.key]

    def _has_an_answer(self, ask: Ask) -> bool:
        """Whether only a better answer than the known one was asked for."""
        return ask.key in self._plan.known

    def _refuse(self, ask: Ask, error: RefusedError) -> None:
        """Skip what is refused once another was answered: then it is not the model or the system prompt."""
        self._n_refused += 1
        if self._n_refused > (MOST_REFUSED if self._plan.known else FEW_REFUSED):
            raise _of_prompt(ask, error)
        if self._plan.known:
            self._skip(ask, error.message)
        else:
            self._put_aside.append((ask, error))

    def _skip(self, ask: Ask, reason: str) -> None:
        name = ask.prompt.id
        if self._has_an_answer(ask):
            how = self._plan.known[ask.key].outcome
            self._teller.say_once(f"{name} stays as it is ({how}): {reason.rstrip('.')}.", about=reason)
        else:
            self.unanswered.append(Unanswered(name, ask.key, reason))
            self._teller.say_once(f"{name} is skipped: {reason}.", about=reason)
        self._n_left -= 1
        self._tell_progress()

    async def _ask(self, ask: Ask) -> None:
        """Ask one request until it is answered and written down."""
        trouble = Trouble(self._patience)
        while not self._closing:
            queued = time.monotonic()
            turn = await self._pace.turn()
            if self._last_answer_at > queued:
                trouble.excuse(time.monotonic() - queued)  # the queue moved on
            try:
                error = await self._attempt(ask, turn, again=ask.again or trouble.n_failures > 0)
            finally:
                self._pace.done()
            if error is None or self._closing:
                return
            # Where nothing is answered, patience is one for all: who waited for a turn does not begin anew, and who was
            # held back while another's stated wait was obeyed has lost nothing.
            self._failing_since = self._failing_since or time.monotonic()
            trouble.since = max(min(trouble.since or self._failing_since, self._failing_since), self._stated_until)
            began = trouble.since
            stalled = self._last_answer_at < turn.started  # what may be charged is not tried by all at once
            if error.overloaded:
                self._pace.slow_down(turn)
            elif stalled:
                self._pace.stall(turn)
            concerns_all = error.overloaded or stalled
            wait = trouble.wait_seconds(error, self._pace.n_overloads if concerns_all else 0)
            if wait is None:
                self._give_up(error, began)
            if trouble.since > began:  # a stated wait is waited
                self._stated_until = max(self._stated_until, trouble.since)
            if concerns_all:
                self._pace.hold(wait)
            self._teller.trouble(error, wait)
            await asyncio.sleep(wait)

    async def _attempt(self, ask: Ask, turn: Turn, *, again: bool) -> TryLaterError | None:
        """Ask once. Nothing is awaited between an answer's arrival and its being on the disk: no signal falls there."""
        request = ask.request
        held = await self._purse.reserve(request, again=again)
        task = asyncio.current_task()
        assert task is not None
        self._in_flight[task] = time.monotonic()
        try:
            answer = await self._teacher.answer(request)
        except BaseException as error:
            self._purse.failed(held, error)
            if isinstance(error, TryLaterError):
                return error
            raise
        finally:
            del self._in_flight[task]
        record = ask.answered(self._purse.priced(answer))
        at = self._journal.append(record.to_json())
        self._purse.settle(held, answer)
        self._pace.went_well()
        self._pace.learn(self._teacher.limits, turn, answer.usage)
        self._take(ask, record, at)
        return None

    def _take(self, ask: Ask, record: TeacherRecord, at: int) -> None:
        """Count an answer that is on the disk, at that byte of the journal, and ask again where it was cut off."""
        if ask.key in self._asked_for_more:
            self._asked_for_more.discard(ask.key)
        else:
            self.n_new += 1
        known = self._plan.known[ask.key] = Known.of(record, at)
        self._last_answer_at = time.monotonic()
        self._failing_since = 0.0
        self._n_refused = 0
        while self._put_aside:
            refused, error = self._put_aside.pop()
            self._skip(refused, error.message)
        self._teller.cost_usd += record.cost_usd or 0.0
        if record.cost_usd is None and record.usage.output_tokens and self._ledger:
            self._teller.say_once(f"No price is known for {record.model}: its worst case is counted.")
        better = None if ask.again else ask_again(ask, known, self._longest_retry)
        if better:
            self._asked_for_more.add(ask.key)
            self._plan.missing.appendleft(better)
        self._n_left -= better is None
        self._tell_progress()

    def _give_up(self, error: TryLaterError, troubled_since: float) -> NoReturn:
        """Waiting has not helped: skip the request where others were answered meanwhile, else end the run."""
        limit = span(self._patience.limit_seconds)
        if self._last_answer_at > troubled_since:
            raise NoAnswerError(f"it failed for {limit}, while others were answered: {error.reason}")
        asks_for = f" It asks to wait {span(error.after_seconds)}." if error.after_seconds else ""
        raise TeacherError(
            f"{self._teacher.name} cannot be waited for longer than {limit}: {error.reason}.{asks_for}",
            f"{len(self._plan.known):,} of {len(self._plan.wanted):,} answers are saved. Run the same command again "
            "later; collect and expand wait longer with --wait-minutes (in distill.toml: wait_minutes).",
        )

    def _over_budget(self) -> BudgetError:
        assert self._ledger is not None
        skipped = {item.key for item in self.unanswered}
        asks = (*self._begun.values(), *self._plan.missing)
        left = [ask for ask in asks if ask.key not in self._plan.known and ask.key not in skipped]
        return over_budget(self._teacher, self._plan, left, self._ledger, self._budget)

    def _tell_of_silence(self) -> None:
        """Say what is waited for where nothing has been answered for a while."""
        if self._in_flight:
            longest = time.monotonic() - max(self._last_answer_at, min(self._in_flight.values()))
            if longest > SILENCE_SECONDS:
                self._teller.progress(note=f"{len(self._in_flight)} under way, no answer for {span(round(longest))}")

    def _tell_progress(self) -> None:
        self._teller.progress(len(self._plan.wanted) - len(self._plan.under_way) - self._n_left)


def _of_prompt(ask: Ask, error: RefusedError) -> RefusedError:
    """The error with the prompt that met it."""
    return RefusedError(f"{ask.prompt.id}: {error.message}", error.next_step)
