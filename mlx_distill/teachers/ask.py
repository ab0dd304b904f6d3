"""Ask a teacher for what a journal lacks. Used by collect, expand and compare."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from signal import Signals

from mlx_distill.errors import BudgetError, DistillError, Interrupted
from mlx_distill.events import Note, Report, ignore
from mlx_distill.records import TeacherRecord
from mlx_distill.storage.jsonl import each_jsonl
from mlx_distill.teachers import signals
from mlx_distill.teachers.base import BatchTeacher, Teacher
from mlx_distill.teachers.batches import BatchRunner
from mlx_distill.teachers.estimate import over_budget
from mlx_distill.teachers.live import LiveRunner
from mlx_distill.teachers.pending import AnswerSummary, BatchMode, FailedPrompt, Requests
from mlx_distill.teachers.pricing import Budget, UsageReport
from mlx_distill.teachers.retry import RetryPolicy
from mlx_distill.teachers.session import Session
from mlx_distill.teachers.store import AnswerStore


@dataclass(frozen=True)
class AskResult:
    """The answers to a set of requests, and what stopped the run, if anything."""

    journal: Path
    answers: tuple[AnswerSummary | None, ...]
    """One for each request, in order; None if there is none. Answers of earlier runs are included."""
    n_new: int
    """Requests answered in this run."""
    n_in_batches: int
    """Requests without an answer that pending batches will answer."""
    failed: tuple[FailedPrompt, ...]
    seconds: float
    cost_usd: float
    """Cost of the new answers, as far as it is known."""
    usage: UsageReport
    """Usage of this run."""
    total_usage: UsageReport
    """Usage of the whole project."""
    stopped_by: DistillError | None = None

    def raise_if_stopped(self) -> None:
        """Raise what stopped the run."""
        if self.stopped_by:
            raise self.stopped_by

    def records(self) -> list[TeacherRecord | None]:
        """Return the record of each answer."""
        starts = {answer.start for answer in self.answers if answer}
        lines = each_jsonl(self.journal, TeacherRecord.from_json, skip_partial_line=True) if starts else ()
        records = {start: record for start, record in lines if start in starts}
        return [records[answer.start] if answer else None for answer in self.answers]


def ask(
    teacher: Teacher,
    requests: Requests,
    journal: Path,
    *,
    concurrency: int | None = None,
    budget: Budget | None = None,
    retry: Collection[str] = (),
    batch_mode: BatchMode = "none",
    report: Report = ignore,
    policy: RetryPolicy | None = None,
    job: str = "ask",
    loop_factory: signals.LoopFactory = asyncio.new_event_loop,
) -> AskResult:
    """Send the requests that the journal does not answer yet, each once, and save every answer as it arrives.

    `concurrency` defaults to the teacher's own. `retry` names completion statuses (`pending.RETRIES`) to ask for again.
    Raises InputError for a missing price, a locked folder or damaged files. What stops the run later (TeacherError,
    BudgetError, Interrupted) is returned in `stopped_by`: every answer that arrived is saved.
    """
    began, budget = time.monotonic(), budget or Budget()
    with AnswerStore(journal, budget, report) as store:
        session = Session(
            teacher, requests, store, retry=retry, batch_mode=batch_mode, policy=policy, report=report, job=job
        )
        stopped_by = _run(session, concurrency or teacher.default_concurrency, loop_factory)
        answers = tuple(store.answers.get(key) for key in session.keys)
        in_batches = session.in_batches()
        return AskResult(
            journal=journal,
            answers=answers,
            n_new=session.n_new,
            n_in_batches=sum(key in in_batches and key not in store.answers for key in session.keys),
            failed=tuple(session.failed),
            seconds=time.monotonic() - began,
            cost_usd=session.cost_usd,
            usage=store.run_report(),
            total_usage=store.report(),
            stopped_by=stopped_by,
        )


def _run(session: Session, concurrency: int, loop_factory: signals.LoopFactory) -> DistillError | None:
    """Import batches, and send what is missing, live or in batches. Return what stopped the run."""
    teacher, store, mode = session.teacher, session.store, session.batch_mode
    is_missing = bool(session.missing())
    if session.paid and (is_missing or teacher.name in {batch.teacher for batch in store.batches}):
        store.budget.price_of(teacher.billed_model)
    runners: list[BatchRunner | LiveRunner] = []
    if isinstance(teacher, BatchTeacher) and mode != "none" and (store.batches or mode == "submit"):
        runners.append(BatchRunner(session, teacher))
    if mode in ("none", "import") and (is_missing or runners):
        runners.append(LiveRunner(session, concurrency))

    def interrupt(which: Signals) -> None:
        at_once, session.signal = session.signal is not None, which
        for runner in runners:
            runner.interrupt(at_once=at_once)

    async def run_all() -> None:
        if teacher.terms and is_missing and mode != "wait":
            session.report(Note(teacher.terms))
        async with teacher:
            for runner in runners:
                await runner.run()

    try:
        if runners:
            signals.run(run_all(), interrupt, loop_factory)
    except BudgetError:
        return over_budget(session)
    except DistillError as error:
        return error
    except asyncio.CancelledError:
        if session.signal is None:
            raise
    return _interrupted(session, session.signal) if session.signal else None


def _interrupted(session: Session, which: Signals) -> Interrupted:
    n_answered, n_in_batches = session.n_answered, len(session.in_batches())
    missing = f"Run the same command again to ask for the {session.n_prompts - n_answered:,} missing answers."
    continues = "Batches continue without this machine: run the same command again to import their answers."
    return Interrupted(
        f"{n_answered:,} of {session.n_prompts:,} answers are saved in {session.store.journal}"
        + (f", {n_in_batches:,} are in batches." if n_in_batches else "."),
        continues if n_in_batches else missing,
        exit_code=128 + which,
    )
