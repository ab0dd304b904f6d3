"""Money on the screen: the estimate before asking, the question whether to go on, and the bill afterwards."""

from __future__ import annotations

import sys

import click

from mlx_distill.cli.output import print_facts
from mlx_distill.teachers.asking.estimate import Estimate
from mlx_distill.teachers.money.bill import Bill, BillLine
from mlx_distill.teachers.money.prices import PRICES_AS_OF

CUT = "were every answer cut off, and its retry too"


def usd(amount: float) -> str:
    """`12.34 USD`; small amounts with the digits that say something."""
    return f"{amount:.4f} USD" if 0.0 < amount < 0.01 else f"{amount:,.2f} USD"


def print_estimate(estimate: Estimate) -> None:
    """The estimate as a table, for --dry-run."""
    print_facts(f"{estimate.n_to_ask:,} of {estimate.n_prompts:,} prompts are to be asked", _facts(estimate))


def show_estimate(estimate: Estimate) -> None:
    """The estimate in a few lines of standard error, where asking may cost something."""
    if estimate.costs_money:
        click.echo(
            f"{estimate.n_to_ask:,} of {estimate.n_prompts:,} prompts are to be asked of {estimate.teacher}.", err=True
        )
        for name, text in _facts(estimate)[1:]:
            click.echo(f"  {name}: {text}", err=True)


def ask_once(estimate: Estimate, *, yes: bool) -> None:
    """On a terminal, ask whether to spend it; elsewhere, with `yes`, or where nothing is spent, go on."""
    if estimate.costs_money and not yes and sys.stdin.isatty() and sys.stderr.isatty():
        click.confirm("Go on?", default=True, abort=True, err=True)


def cost_line(bill: Bill, total: Bill) -> str:
    """What this run cost, and the project where that is more."""
    whole = f" (the project: {usd(total.total_usd)})" if total.total_usd > bill.total_usd else ""
    return f"{usd(bill.total_usd)}{whole}"


def bill_lines(bill: Bill) -> list[tuple[str, str]]:
    """A bill as `name  value` lines, one a model."""
    return [(f"bill, {line.model}", _line(line)) for line in bill.lines]


def _line(line: BillLine) -> str:
    """What a model was paid for; only what there was."""
    answers = "1 answer" if line.n_answers == 1 else f"{line.n_answers:,} answers"
    thinking = f" (thinking {line.thinking_tokens:,}, {usd(line.thinking_usd)})" if line.thinking_tokens else ""
    parts = [
        f"{answers}: input {line.input_tokens:,} tokens {usd(line.input_usd)}",
        f"output {line.output_tokens:,} tokens {usd(line.output_usd)}{thinking}",
        f"cache {line.cache_tokens:,} tokens {usd(line.cache_usd)}" if line.cache_tokens else "",
        f"unknown outcome {line.n_unknown:,} in full {usd(line.unknown_usd)}" if line.n_unknown else "",
        f"batches under way {line.n_under_way:,} in full {usd(line.under_way_usd)}" if line.n_under_way else "",
        f"retries {line.n_retries:,} {usd(line.retries_usd)} of it" if line.n_retries else "",
        f"batches saved {usd(line.batch_saved_usd)}" if line.batch_saved_usd else "",
    ]
    return ", ".join(filter(None, parts))


def _facts(estimate: Estimate) -> list[tuple[str, str]]:
    facts = [("teacher", estimate.teacher)]
    if estimate.n_under_way:
        facts.append(("in batches under way", f"{estimate.n_under_way:,} prompts, which are not asked again"))
    if estimate.n_to_ask:
        tokens = f"{estimate.input_tokens:,} in, {estimate.output_tokens:,} out ({estimate.basis})"
        facts += [("tokens, about", tokens)]
    if estimate.usd is None:
        return [*facts, ("cost", "not counted")]
    spent = ("spent so far", usd(estimate.spent_usd) + _cap(estimate))
    if not estimate.usd:
        return [*facts, ("cost", "nothing"), *([spent] if estimate.spent_usd else [])]
    assert estimate.most_usd is not None
    return [
        *facts,
        ("cost, about", _either(estimate, estimate.usd, estimate.batch_usd)),
        ("cost, at most", f"{_either(estimate, estimate.most_usd, estimate.most_batch_usd)}, {CUT}"),
        spent,
        ("prices", f"of {PRICES_AS_OF}, unless [prices] in distill.toml says otherwise"),
    ]


def _either(estimate: Estimate, live: float, batched: float | None) -> str:
    """What it costs the way it will be asked, and the other way."""
    if batched is None:
        return usd(live)
    if estimate.in_batches:
        return f"{usd(batched)} in batches (live {usd(live)})"
    return f"{usd(live)} (in batches {usd(batched)})"


def _cap(estimate: Estimate) -> str:
    return f", of at most {usd(estimate.max_cost)}" if estimate.max_cost is not None else ", without a --max-cost"
