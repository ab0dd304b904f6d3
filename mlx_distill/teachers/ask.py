"""Ask a teacher for what a journal lacks, or estimate what that costs. Used by collect, expand and compare."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlx_distill.errors import BudgetError, DistillError, InputError
from mlx_distill.events import Report, ignore
from mlx_distill.records import TeacherRecord, Usage
from mlx_distill.storage.jsonl import each_jsonl
from mlx_distill.teachers import signals
from mlx_distill.teachers.base import BatchTeacher, RetryPolicy, Teacher
from mlx_distill.teachers.batches import BatchRunner
from mlx_distill.teachers.pending import AnswerSummary, BatchMode, FailedPrompt, PendingRequest, Requests, make_plan
from mlx_distill.teachers.pricing import Budget, UsageReport, cost_of, is_paid, max_input_tokens, worst_case_usd
from mlx_distill.teachers.runner import Runner
from mlx_distill.teachers.session import Session
from mlx_distill.teachers.store import AnswerStore

BYTES_PER_TOKEN = 3.0
"""A low estimate for prompts: English has about four bytes a token, code and other languages fewer."""
ASSUMED_OUTPUT_TOKENS = 300
"""Tokens of an answer, until there are MIN_ANSWERS to take the mean of."""
MIN_ANSWERS = 5


@dataclass(frozen=True)
class AskResult:
    """The answers to a set of requests, and what stopped the run, if anything."""

    journal: Path
    keys: tuple[str, ...]
    """The keys of all requests, in their order."""
    known: Mapping[str, AnswerSummary]
    """Answers by the request's key, those of earlier runs included."""
    n_new: int
    """Requests answered in this run."""
    cost_usd: float
    """Cost of the new answers, as far as it is known."""
    failed: tuple[FailedPrompt, ...]
    in_batches: Collection[str]
    """Keys of requests that pending batches will answer."""
    seconds: float
    usage: UsageReport
    """Usage of this run."""
    total_usage: UsageReport
    """Usage of the whole project."""
    stopped_by: DistillError | None = None

    def raise_if_stopped(self) -> None:
        """Raise what stopped the run."""
        if self.stopped_by:
            raise self.stopped_by

    def answers(self) -> list[AnswerSummary]:
        """Return the answers in the order of the requests, each once."""
        return [self.known[key] for key in dict.fromkeys(self.keys) if key in self.known]

    def records(self) -> dict[str, TeacherRecord]:
        """Return the answers' records by the request's key, in the order of the requests."""
        keys = {self.known[key].start: key for key in self.keys if key in self.known}
        found = (
            {
                keys[start]: record
                for start, record in each_jsonl(self.journal, TeacherRecord.from_json, skip_partial_line=True)
                if start in keys
            }
            if keys
            else {}
        )
        return {key: found[key] for key in dict.fromkeys(self.keys) if key in found}


def ask(
    teacher: Teacher,
    requests: Requests,
    journal: Path,
    *,
    concurrency: int | None = None,
    budget: Budget | None = None,
    retry: Collection[str] = (),
    batch_mode: BatchMode | None = None,
    report: Report = ignore,
    policy: RetryPolicy | None = None,
    job: str = "ask",
    loop_factory: signals.LoopFactory = asyncio.new_event_loop,
) -> AskResult:
    """Send the requests that the journal does not answer yet, each once, and save every answer as it arrives.

    `concurrency` defaults to the teacher's own. `retry` names completion statuses (`pending.RETRIES`) to ask for again.
    Without `batch_mode` pending batches are not looked at. Raises InputError for a missing price, a locked folder or
    damaged files. What stops the run later (TeacherError, BudgetError, Interrupted) is returned in `stopped_by`: every
    answer that arrived is saved.
    """
    budget, began = budget or Budget(), time.monotonic()
    _check_batches(teacher, batch_mode)
    with AnswerStore(journal, budget, report) as store:
        session = Session(
            teacher,
            requests,
            store,
            retry=retry,
            with_batches=batch_mode is not None,
            policy=policy or RetryPolicy(),
            report=report,
            job=job,
        )
        if session.paid and (session.plan.missing or teacher.name in {batch.teacher for batch in store.batches}):
            budget.price_of(teacher.billed_model)
        if batch_mode and isinstance(teacher, BatchTeacher) and (store.batches or batch_mode == "all"):
            batch_runner = BatchRunner(session, teacher, batch_mode)
            session.run(batch_runner.run, batch_runner.interrupt, loop_factory)
        if session.plan.missing and batch_mode in (None, "off") and not session.stopped_by:
            runner = Runner(session, concurrency or teacher.default_concurrency)
            session.run(runner.run, runner.interrupt, loop_factory)
        if isinstance(session.stopped_by, BudgetError):
            session.stopped_by = _over_budget(session, batch=batch_mode in ("wait", "all"))
        return AskResult(
            journal=journal,
            keys=session.plan.keys,
            known=session.plan.known,
            n_new=len(session.new_keys),
            cost_usd=session.cost_usd,
            failed=tuple(session.failed),
            in_batches=session.plan.in_batches,
            seconds=time.monotonic() - began,
            usage=store.run_report(),
            total_usage=store.report(),
            stopped_by=session.stopped_by,
        )


def _check_batches(teacher: Teacher, batch_mode: BatchMode | None) -> None:
    if batch_mode in ("wait", "all") and not isinstance(teacher, BatchTeacher):
        advice = "Leave out --batch (in distill.toml: batch) and --wait, or choose another teacher."
        raise InputError(f"{teacher.name} has no batches.", advice)


@dataclass(frozen=True)
class Estimate:
    """Missing answers and their cost. Costs are None if they are not counted, or if there are no batches."""

    teacher: str
    n_prompts: int
    n_answered: int
    n_to_ask: int
    """Prompts without an answer, and answers to ask for again."""
    n_in_batches: int
    """Prompts in pending batches: they are not asked again."""
    uses_batches: bool
    input_tokens: int
    output_tokens: int
    basis: str
    """Basis of the estimate."""
    usd: float | None
    batch_usd: float | None
    worst_usd: float | None
    """If every answer, and its retry with a larger limit, reaches max_tokens."""
    worst_batch_usd: float | None
    spent_usd: float
    """Spent by the project so far."""
    max_cost: float | None

    @property
    def costs_money(self) -> bool:
        """Return whether the missing answers cost money that is counted."""
        return bool(self.n_to_ask and self.usd)


def estimate(
    teacher: Teacher,
    requests: Requests,
    journal: Path,
    *,
    budget: Budget | None = None,
    retry: Collection[str] = (),
    batch_mode: BatchMode | None = None,
) -> Estimate:
    """Estimate what `ask` would send and its cost. Sends and writes nothing, takes no lock."""
    _check_batches(teacher, batch_mode)
    budget = budget or Budget()
    store = AnswerStore(journal, budget).read()
    in_batches = store.keys_in_batches() if batch_mode else ()
    plan = make_plan(requests, journal, max_retry_tokens=teacher.max_retry_tokens, retry=retry, in_batches=in_batches)
    if batch_mode == "wait":
        plan.missing.clear()
    output_tokens, n_known = _mean_output_tokens(plan.known.values())
    usages = [_expected(each, output_tokens) for each in plan.missing]
    usd = batch_usd = worst_usd = worst_batch_usd = None if teacher.billed_model else 0.0
    if is_paid(teacher, budget):
        usd, worst_usd = _costs(teacher, plan.missing, output_tokens, budget, batch=False)
        batch_usd, worst_batch_usd = _costs(teacher, plan.missing, output_tokens, budget, batch=True)
    if batch_mode is None or not isinstance(teacher, BatchTeacher):
        batch_usd = worst_batch_usd = None
    source = f"the mean of {n_known} answers" if n_known else "an assumption"
    return Estimate(
        teacher=teacher.name,
        n_prompts=len(plan.unique),
        n_answered=len(plan.known),
        n_to_ask=len(plan.missing),
        n_in_batches=len(plan.in_batches),
        uses_batches=batch_mode == "all",
        input_tokens=sum(usage.input_tokens for usage in usages),
        output_tokens=sum(usage.output_tokens for usage in usages),
        basis=f"input at {BYTES_PER_TOKEN:g} bytes a token, output {output_tokens} an answer, {source}",
        usd=usd,
        batch_usd=batch_usd,
        worst_usd=worst_usd,
        worst_batch_usd=worst_batch_usd,
        spent_usd=store.spent_usd,
        max_cost=budget.max_cost,
    )


def _over_budget(session: Session, *, batch: bool) -> BudgetError:
    """Return the error for a reached cap: what was spent, what is left, and the cap that would be enough."""
    teacher, plan, store = session.teacher, session.plan, session.store
    done = {*plan.known, *(item.key for item in session.failed)}
    left = [each for each in plan.missing if each.key not in done]
    output_tokens, _ = _mean_output_tokens(plan.known.values())
    likely, worst = _costs(teacher, left, output_tokens, store.budget, batch=batch)
    largest = max(_costs(teacher, [each], 0, store.budget, batch=batch, retry=False)[1] for each in left)
    spent, unknown = store.spent_usd, store.report().total.unknown_usd
    lost = f" ({unknown:.2f} of it for requests of unknown outcome)" if unknown else ""
    enough = math.ceil(100.0 * (spent + likely + largest)) / 100.0
    return BudgetError(
        f"The cap of {store.budget.max_cost:.2f} USD is reached: {spent:.2f} USD are spent{lost}, and the next request "
        f"could exceed it. {len(left):,} of {len(plan.unique):,} prompts are left: about {likely:.2f} USD, at most "
        f"{worst:.2f} USD.",
        "Every answer so far is saved. To continue, run the same command again with a higher cap: "
        f"--max-cost {enough:.2f}",
    )


def _mean_output_tokens(answers: Iterable[AnswerSummary]) -> tuple[int, int]:
    """Return the expected tokens of an answer, and the number of answers that this is the mean of (0: assumed)."""
    counts = [answer.output_tokens for answer in answers if answer.output_tokens]
    if len(counts) < MIN_ANSWERS:
        return ASSUMED_OUTPUT_TOKENS, 0
    return -(-sum(counts) // len(counts)), len(counts)


def _expected(pending: PendingRequest, output_tokens: int) -> Usage:
    input_tokens = round(max_input_tokens(pending.request.messages) / BYTES_PER_TOKEN)
    return Usage(input_tokens, min(output_tokens, pending.request.max_tokens))


def _costs(
    teacher: Teacher,
    requests: Iterable[PendingRequest],
    output_tokens: int,
    budget: Budget,
    *,
    batch: bool,
    retry: bool = True,
) -> tuple[float, float]:
    """Return the likely and the worst cost of requests, with the retry of an answer that is truncated.

    Requests that are too long for the price are not sent, so they cost nothing.
    """
    price, likely, worst = budget.price_of(teacher.billed_model), 0.0, 0.0
    for each in requests:
        cost, limit = cost_of(price, _expected(each, output_tokens), batch=batch), each.request.max_tokens
        second = min(2 * limit, teacher.max_retry_tokens) if retry and not each.has_answer else 0
        likely += cost.usd if cost else 0.0
        for max_tokens in {limit, max(limit, second)}:
            worst += worst_case_usd(price, each.request.messages, max_tokens, batch=batch) or 0.0
    return likely, worst
