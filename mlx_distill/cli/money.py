"""Costs on the screen: the estimate before asking, the question whether to go on, and the usage report afterwards."""

from __future__ import annotations

import sys

import click

from mlx_distill.cli.output import print_facts, print_json, safe
from mlx_distill.formatting import format_usd, plural
from mlx_distill.teachers.estimate import Estimate
from mlx_distill.teachers.pricing import PRICES_AS_OF, ModelUsage, UsageReport


def print_estimate(estimate: Estimate, *, as_json: bool) -> None:
    """Print the estimate, for --dry-run."""
    if as_json:
        print_json(estimate)
        return
    print_facts(f"{estimate.n_to_ask:,} of {estimate.n_prompts:,} prompts to ask", _facts(estimate))


def show_estimate(estimate: Estimate) -> None:
    """Print the estimate to standard error if asking may cost something."""
    if estimate.costs_money:
        click.echo(f"{estimate.n_to_ask:,} of {estimate.n_prompts:,} prompts to ask", err=True)
        for name, text in _facts(estimate):
            click.echo(safe(f"  {name}: {text}"), err=True)


def ask_once(estimate: Estimate, *, yes: bool) -> None:
    """Ask on a terminal whether to spend the money, unless `yes`."""
    if estimate.costs_money and not yes and sys.stdin.isatty() and sys.stderr.isatty():
        click.confirm("Go on?", default=True, abort=True, err=True)


def usage_facts(run: UsageReport, project: UsageReport) -> list[tuple[str, str]]:
    """Return the cost of a run and what each model was paid for, as `name  value` lines."""
    total = f" (project: {format_usd(project.total_usd)})" if project.total_usd > run.total_usd else ""
    models = [(f"usage, {usage.model}", _usage(usage)) for usage in run.models]
    return [("cost", f"{format_usd(run.total_usd)}{total}"), *models]


def _usage(usage: ModelUsage) -> str:
    thinking = f" (thinking {usage.thinking_tokens:,})" if usage.thinking_tokens else ""
    parts = [
        f"{plural(usage.n_answers, 'answer')}: input {usage.input_tokens:,} tokens {format_usd(usage.input_usd)}",
        f"output {usage.output_tokens:,} tokens{thinking} {format_usd(usage.output_usd)}",
        f"cache {usage.cache_tokens:,} tokens {format_usd(usage.cache_usd)}" if usage.cache_tokens else "",
        f"unknown outcome {usage.n_unknown:,}, in full {format_usd(usage.unknown_usd)}" if usage.n_unknown else "",
        f"pending batches {usage.n_pending:,}, in full {format_usd(usage.pending_usd)}" if usage.n_pending else "",
        f"of this, retries {usage.n_repeated:,} {format_usd(usage.repeated_usd)}" if usage.n_repeated else "",
        f"batches saved {format_usd(usage.batch_saved_usd)}" if usage.batch_saved_usd else "",
    ]
    return ", ".join(filter(None, parts))


def _facts(estimate: Estimate) -> list[tuple[str, str]]:
    facts = [("teacher", estimate.teacher)]
    if estimate.n_in_batches:
        facts.append(("in pending batches", f"{estimate.n_in_batches:,} prompts, which are not asked again"))
    if estimate.n_to_ask:
        tokens = f"{estimate.input_tokens:,} in, {estimate.output_tokens:,} out ({estimate.basis})"
        facts.append(("tokens, about", tokens))
    if estimate.usd is None or estimate.worst_usd is None:
        return [*facts, ("cost", "not counted")]
    cap = "no --max-cost" if estimate.max_cost is None else f"of at most {format_usd(estimate.max_cost)}"
    spent = ("spent so far", f"{format_usd(estimate.spent_usd)}, {cap}")
    if not estimate.usd:
        return [*facts, ("cost", "nothing"), *([spent] if estimate.spent_usd else [])]
    worst = _amounts(estimate, estimate.worst_usd, estimate.worst_batch_usd)
    return [
        *facts,
        ("cost, about", _amounts(estimate, estimate.usd, estimate.batch_usd)),
        ("worst case", f"{worst}: every answer and its retry reach max_tokens"),
        spent,
        ("prices", f"as of {PRICES_AS_OF}, unless [prices] in distill.toml overrides them"),
    ]


def _amounts(estimate: Estimate, live: float, batched: float | None) -> str:
    """Return the cost of the way that is configured, and of the other way in parentheses."""
    if batched is None:
        return format_usd(live)
    if estimate.uses_batches:
        return f"{format_usd(batched)} in batches ({format_usd(live)} live)"
    return f"{format_usd(live)} ({format_usd(batched)} in batches)"
