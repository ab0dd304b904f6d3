"""`mlx-distill collect`: ask the teacher for the answers that are missing."""

from __future__ import annotations

from typing import Any

import click

from mlx_distill.cli.money import bill_lines, cost_line, print_estimate, show_estimate
from mlx_distill.cli.options import config_options, field_help, given, json_option, resolve
from mlx_distill.cli.output import duration, print_facts, print_json, reporting
from mlx_distill.collect.run import CollectConfig, CollectResult, estimate, is_paid, unanswered_lines
from mlx_distill.errors import TeacherError
from mlx_distill.records import COMPLETE_STOP_REASONS
from mlx_distill.run.pipeline import alone


@click.command("collect")
@config_options(CollectConfig, leave_out=("first_wait_seconds", "wait", "retry"))
@click.option("--wait", is_flag=True, default=None, help=f"{field_help(CollectConfig, 'wait')}.")
@click.option("--retry", metavar="OUTCOME,...", help=f"{field_help(CollectConfig, 'retry')}; split by commas.")
@click.option("--dry-run", is_flag=True, help="Say what is missing and what it would cost; send nothing.")
@json_option
def command(retry: str | None, dry_run: bool, as_json: bool, **flags: Any) -> None:
    """Ask the teacher for the answers that are missing.

    Every answer is on the disk as soon as it arrives, and none is asked for twice: stop it at any time and run it
    again. With --batch the answers come within a day, at half price: leave it, and come back with --wait. With
    --max-cost nothing is sent that could exceed it, over all runs of the project; what was spent is in ledger.jsonl.
    Training on a provider's answers is bound by its terms of use.

    \b
    Examples:
      mlx-distill collect --dry-run
      mlx-distill collect --limit 3
      mlx-distill collect --max-cost 5
      mlx-distill collect --batch
      mlx-distill collect --wait
      mlx-distill collect --retry max_tokens,refusal
      mlx-distill collect --prompts my.txt --teacher anthropic:claude-sonnet-4-6 --out data/mine
    """
    retried = tuple(part.strip() for part in (retry or "").split(",") if part.strip())
    config = resolve(CollectConfig, "collect", {**flags, "retry": retried})
    if dry_run:
        expected = estimate(config)
        print_json(expected) if as_json else print_estimate(expected)
        return
    if is_paid(config):  # or there is nothing to show, and the files are read once
        show_estimate(estimate(config))
    with reporting() as report:
        result = alone("collect", config, report)
    if as_json:
        print_json(result)
    else:
        _print(result)
    _tell_what_is_missing(result, f"mlx-distill prepare{given(data=flags['out'])}")


def _tell_what_is_missing(result: CollectResult, prepare: str) -> None:
    """Raise TeacherError where prompts have no answer; the others are saved, and `prepare` goes on with them."""
    if result.unanswered:
        raise TeacherError(
            f"{len(result.unanswered):,} of {result.n_prompts:,} prompts have no answer; the others are saved.",
            f"Change these prompts or the teacher and run it again, or go on without them: {prepare}",
            unanswered_lines(result.unanswered),
        )
    if result.n_under_way:
        verb = "prompt is" if result.n_under_way == 1 else "prompts are"
        raise TeacherError(
            f"{result.n_under_way:,} {verb} in a batch that is under way.",
            "To wait for their answers and bring them in, run the same command with --wait.",
        )
    if result.n_answered < result.n_prompts:
        n_left = result.n_prompts - result.n_answered
        verb = "prompt has" if n_left == 1 else "prompts have"
        raise TeacherError(
            f"No batch is under way, and {n_left:,} {verb} not been asked.",
            "To ask them, run the same command without --wait, or, at half price, with --batch in its place.",
        )


def _print(result: CollectResult) -> None:
    new = "" if result.n_new == result.n_answered else f", {result.n_new:,} of them new"
    n_incomplete = sum(n for reason, n in result.stop_reasons.items() if reason not in COMPLETE_STOP_REASONS)
    left_out = f" ({n_incomplete:,} without an end: kept, but never learnt)" if n_incomplete else ""
    endings = ", ".join(f"{reason} {n:,}" for reason, n in result.stop_reasons.items())
    print_facts(
        f"{result.n_answered:,} of {result.n_prompts:,} answered{new}",
        [
            *([("endings", endings + left_out)] if endings else []),
            ("time", duration(result.seconds)),
            ("cost", cost_line(result.bill, result.total_bill)),
            *bill_lines(result.bill),
            ("model", ", ".join(result.models) or result.teacher),
            ("output", str(result.path)),
        ],
    )
