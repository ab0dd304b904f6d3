"""What asking will take and cost, before anything is sent: estimated on this machine, without asking the provider."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mlx_distill.errors import BudgetError
from mlx_distill.records import Usage
from mlx_distill.teachers.asking.plan import Ask, Known, Plan
from mlx_distill.teachers.money.ledger import Budget, Ledger
from mlx_distill.teachers.money.prices import Price, cost_of, most_input_tokens, worst_usd
from mlx_distill.teachers.protocol import Teacher

BYTES_PER_TOKEN = 3.0
"""Of prompts, on the low side: English has about four, code and other languages fewer."""
ASSUMED_OUTPUT_TOKENS = 300
"""Of an answer, until some are there to take the mean of: the shipped system prompt asks for 80 to 200."""
ENOUGH_ANSWERS = 5
"""Answers from which on their mean is taken instead."""


@dataclass(frozen=True)
class Estimate:
    """What is left to ask, and what that will cost.

    Money is None where costs are not counted; that of batches where the teacher, or who asks, makes none.
    """

    teacher: str
    n_prompts: int
    n_answered: int
    n_to_ask: int
    """Prompts without an answer, and answers that are to be asked for again."""
    n_under_way: int
    """Prompts that are in a batch: they are not asked again, and the ledger counts them."""
    in_batches: bool
    """Whether they will be asked in batches."""
    input_tokens: int
    output_tokens: int
    basis: str
    """Where the figures come from."""
    usd: float | None
    batch_usd: float | None
    most_usd: float | None
    """If every answer were cut off at max_tokens, and again when it is asked once more with a larger limit."""
    most_batch_usd: float | None
    spent_usd: float
    """By the project so far."""
    max_cost: float | None

    @property
    def costs_money(self) -> bool:
        return bool(self.n_to_ask and self.usd)


def make_estimate(
    teacher: Teacher, plan: Plan, ledger: Ledger, budget: Budget, *, may_batch: bool, in_batches: bool
) -> Estimate:
    """Estimate what is missing of a plan; InputError where the teacher charges and no price is known."""
    each, n_known = _output_tokens_each(plan.known.values())
    expected = _expected(plan.missing, each)
    outputs = f"{each} an answer, the mean of {n_known} answers" if n_known else f"{each} an answer, which is assumed"
    price = budget.price_of(teacher.billed_model) if teacher.billed_model and budget.counted else None
    free = 0.0 if not teacher.billed_model else None

    def likely(*, batch: bool) -> float | None:
        return _total_usd(price, expected, batch=batch) if price else free

    def most(*, batch: bool) -> float | None:
        return sum(_worst(price, ask, teacher, batch=batch) for ask in plan.missing) if price else free

    return Estimate(
        teacher=teacher.name,
        n_prompts=len(plan.wanted),
        n_answered=len(plan.known),
        n_to_ask=len(plan.missing),
        n_under_way=len(plan.under_way),
        in_batches=in_batches,
        input_tokens=sum(usage.input_tokens for usage in expected),
        output_tokens=sum(usage.output_tokens for usage in expected),
        basis=f"input at {BYTES_PER_TOKEN:g} bytes a token, output {outputs}",
        usd=likely(batch=False),
        batch_usd=likely(batch=True) if may_batch else None,
        most_usd=most(batch=False),
        most_batch_usd=most(batch=True) if may_batch else None,
        spent_usd=ledger.spent_usd,
        max_cost=budget.max_cost,
    )


def over_budget(
    teacher: Teacher, plan: Plan, left: Sequence[Ask], ledger: Ledger, budget: Budget, *, batch: bool = False
) -> BudgetError:
    """The error where a cap is reached: what was spent, what is left and would cost, and the cap that would do."""
    price = budget.price_of(teacher.billed_model)
    each, _ = _output_tokens_each(plan.known.values())
    likely = _total_usd(price, _expected(left, each), batch=batch)
    most = sum(_worst(price, ask, teacher, batch=batch) for ask in left)
    dearest = max(_worst_once(price, ask, ask.request.max_tokens, batch=batch) for ask in left)
    spent, unknown = ledger.spent_usd, ledger.bill().total
    lost = f" ({unknown.unknown_usd:.2f} of it for requests of unknown outcome)" if unknown.n_unknown else ""
    enough = math.ceil(100.0 * (spent + likely + dearest)) / 100.0
    n_left = f"{len(left):,} of {len(plan.wanted):,} prompts are left"
    return BudgetError(
        f"The cap of {budget.max_cost:.2f} USD is reached: {spent:.2f} USD are spent{lost}, and the next request might "
        f"exceed it. {n_left}: about {likely:.2f} USD, at most {most:.2f} USD.",
        "Everything answered so far is saved. To go on, run the same command again with a higher cap: "
        f"--max-cost {enough:.2f}",
    )


def _output_tokens_each(answers: Iterable[Known]) -> tuple[int, int]:
    """The output to expect of an answer, and the number of answers that say so; 0 where it is assumed."""
    counts = [answer.output_tokens for answer in answers if answer.output_tokens]
    if len(counts) < ENOUGH_ANSWERS:
        return ASSUMED_OUTPUT_TOKENS, 0
    return -(-sum(counts) // len(counts)), len(counts)


def _expected(asks: Iterable[Ask], output_tokens: int) -> list[Usage]:
    """What each will use, where its answer has so many tokens."""
    return [Usage(_input_tokens(ask), min(output_tokens, ask.request.max_tokens)) for ask in asks]


def _total_usd(price: Price, usages: Iterable[Usage], *, batch: bool) -> float:
    costs = [cost_of(price, usage, batch=batch) for usage in usages]
    return sum(cost.usd for cost in costs if cost)


def _worst(price: Price, ask: Ask, teacher: Teacher, *, batch: bool) -> float:
    """With the second asking of an answer that is cut off."""
    first = ask.request.max_tokens
    second = 0 if ask.again else min(2 * first, teacher.longest_retry)
    return sum(_worst_once(price, ask, limit, batch=batch) for limit in {first, max(first, second)})


def _worst_once(price: Price, ask: Ask, max_tokens: int, *, batch: bool) -> float:
    """A request that is too long to be priced is not sent, and costs nothing."""
    return worst_usd(price, ask.request.messages, max_tokens, batch=batch) or 0.0


def _input_tokens(ask: Ask) -> int:
    return round(most_input_tokens(ask.request.messages) / BYTES_PER_TOKEN)
