"""Estimates of what the missing answers cost: before a run, and when the cap stops it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from mlx_distill.errors import BudgetError
from mlx_distill.records import Usage
from mlx_distill.teachers.base import BatchTeacher, Teacher
from mlx_distill.teachers.pending import BatchMode, PendingRequest, Requests
from mlx_distill.teachers.pricing import Budget, cost_of, max_input_tokens, worst_case_usd
from mlx_distill.teachers.session import Session
from mlx_distill.teachers.store import AnswerStore

BYTES_PER_TOKEN = 3.0
"""A low estimate for prompts: English has about four bytes a token, code and other languages fewer."""
ASSUMED_OUTPUT_TOKENS = 300
"""Tokens of an answer, until there are MIN_ANSWERS to take the mean of."""
MIN_ANSWERS = 5


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
    batch_mode: BatchMode = "none",
) -> Estimate:
    """Estimate what `ask` would send and its cost. Sends and writes nothing, takes no lock."""
    store = AnswerStore(journal, budget or Budget()).read()
    session = Session(teacher, requests, store, retry=retry, batch_mode=batch_mode)
    missing = session.missing() if batch_mode != "wait" else []
    output_tokens, n_known = _mean_output_tokens(session)
    usages = [_expected_usage(each, output_tokens) for each in missing]
    usd = worst = batch_usd = worst_batch_usd = None if teacher.billed_model else 0.0
    if session.paid:
        usd, worst, _ = _costs(session, missing, output_tokens)
        discount = store.budget.price_of(teacher.billed_model).batch
        batch_usd, worst_batch_usd = usd * discount, worst * discount
    has_batches = batch_mode != "none" and isinstance(teacher, BatchTeacher)
    source = f"the mean of {n_known} answers" if n_known else "an assumption"
    return Estimate(
        teacher=teacher.name,
        n_prompts=session.n_prompts,
        n_answered=session.n_answered,
        n_to_ask=len(missing),
        n_in_batches=len(session.in_batches()),
        uses_batches=batch_mode == "submit",
        input_tokens=sum(usage.input_tokens for usage in usages),
        output_tokens=sum(usage.output_tokens for usage in usages),
        basis=f"input at {BYTES_PER_TOKEN:g} bytes a token, output {output_tokens} an answer, {source}",
        usd=usd,
        batch_usd=batch_usd if has_batches else None,
        worst_usd=worst,
        worst_batch_usd=worst_batch_usd if has_batches else None,
        spent_usd=store.spent_usd,
        max_cost=store.budget.max_cost,
    )


def over_budget(session: Session) -> BudgetError:
    """Return the error for a reached cap: what was spent, what is left, and the cap that would be enough."""
    store, failed = session.store, {item.key for item in session.failed}
    left = [each for each in session.missing() if each.request.key not in failed]
    likely, worst, largest = _costs(session, left, _mean_output_tokens(session)[0])
    in_batches = session.batch_mode in ("wait", "submit")
    discount = store.budget.price_of(session.teacher.billed_model).batch if in_batches else 1.0
    likely, worst, largest = likely * discount, worst * discount, largest * discount
    spent, unknown = store.spent_usd, store.report().total.unknown_usd
    lost = f" ({unknown:.2f} of it for requests of unknown outcome)" if unknown else ""
    enough = math.ceil(100.0 * (spent + likely + largest)) / 100.0
    return BudgetError(
        f"The cap of {store.budget.max_cost:.2f} USD is reached: {spent:.2f} USD are spent{lost}, and the next request "
        f"could exceed it. {len(left):,} of {session.n_prompts:,} prompts are left: about {likely:.2f} USD, at most "
        f"{worst:.2f} USD.",
        "Every answer so far is saved. To continue, run the same command again with a higher cap: "
        f"--max-cost {enough:.2f}",
    )


def _mean_output_tokens(session: Session) -> tuple[int, int]:
    """Return the expected tokens of an answer, and the number of answers that this is the mean of (0: assumed)."""
    answers = (session.store.answers.get(key) for key in set(session.keys))
    counts = [answer.output_tokens for answer in answers if answer and answer.output_tokens]
    if len(counts) < MIN_ANSWERS:
        return ASSUMED_OUTPUT_TOKENS, 0
    return -(-sum(counts) // len(counts)), len(counts)


def _expected_usage(pending: PendingRequest, output_tokens: int) -> Usage:
    input_tokens = round(max_input_tokens(pending.request.messages) / BYTES_PER_TOKEN)
    return Usage(input_tokens, min(output_tokens, pending.request.max_tokens))


def _costs(session: Session, requests: Iterable[PendingRequest], output_tokens: int) -> tuple[float, float, float]:
    """Return the likely and the worst cost of live requests, and the worst cost of the largest one.

    The worst case includes the retry of each truncated answer. Requests that are too long for the price are not sent.
    """
    price = session.store.budget.price_of(session.teacher.billed_model)
    likely = worst = largest = 0.0
    for each in requests:
        messages, limit = each.request.messages, each.request.max_tokens
        likely += cost_of(price, _expected_usage(each, output_tokens)) or 0.0
        first = worst_case_usd(price, messages, limit) or 0.0
        retry_limit = 0 if each.has_answer else min(2 * limit, session.teacher.max_retry_tokens)
        retry = worst_case_usd(price, messages, retry_limit) or 0.0 if retry_limit > limit else 0.0
        worst, largest = worst + first + retry, max(largest, first)
    return likely, worst, largest
