"""`mlx-distill collect`: ask the teacher for the answers that are missing."""

from __future__ import annotations

from typing import Any

import click

from mlx_distill.cli.money import print_estimate, show_estimate, usage_facts
from mlx_distill.cli.options import config_options, field_help, json_option, repeat_options, resolve
from mlx_distill.cli.output import print_facts, print_json, reporting
from mlx_distill.collect.config import CollectConfig, CollectResult
from mlx_distill.collect.run import estimate, failed_lines
from mlx_distill.errors import TeacherError
from mlx_distill.formatting import format_duration, plural
from mlx_distill.records import COMPLETE_STOP_REASONS
from mlx_distill.run.pipeline import run_standalone
from mlx_distill.run.stages import COLLECT


@click.command("collect")
@config_options(CollectConfig, leave_out=("first_wait_seconds", "wait", "retry"))
@click.option("--wait", is_flag=True, default=None, help=f"{field_help(CollectConfig, 'wait')}.")
@click.option("--retry", metavar="STATUS,...", help=f"{field_help(CollectConfig, 'retry')}; separate with commas.")
@click.option("--dry-run", is_flag=True, help="Print what is missing and its cost; send nothing.")
@json_option
def command(retry: str | None, dry_run: bool, as_json: bool, **flags: Any) -> None:
    """Ask the teacher for the answers that are missing.

    Every answer is saved as it arrives, and none is asked for twice: stop at any time and run the command again. With
    --batch the answers come within a day, at half price: stop the command, and come back with --wait. With --max-cost
    nothing is sent that could exceed the cap, over all runs of the project. A provider's terms of use apply to training
    on its answers.

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
    statuses = tuple(part.strip() for part in (retry or "").split(",") if part.strip())
    config = resolve(CollectConfig, "collect", {**flags, "retry": statuses})
    if dry_run:
        print_estimate(estimate(config), as_json=as_json)
        return
    show_estimate(estimate(config))
    with reporting() as report:
        result = run_standalone(COLLECT, config, report)
    if as_json:
        print_json(result)
    else:
        _print(result)
    if result.failed:
        raise TeacherError(
            f"{len(result.failed):,} of {result.n_prompts:,} prompts have no answer; the others are saved.",
            "Change these prompts or the teacher and run the command again, or continue without them: "
            f"mlx-distill prepare{repeat_options(data=flags['out'])}",
            failed_lines(result.failed),
        )
    n_left = result.n_prompts - result.n_answered - result.n_in_batches
    if n_left:
        raise TeacherError(
            f"No batch is pending, and {n_left:,} of {result.n_prompts:,} answers are missing.",
            "To ask them, run the same command without --wait, or with --batch instead, at half price.",
        )


def _print(result: CollectResult) -> None:
    new = "" if result.n_new == result.n_answered else f", {result.n_new:,} of them new"
    n_incomplete = sum(n for reason, n in result.stop_reasons.items() if reason not in COMPLETE_STOP_REASONS)
    left_out = f" ({n_incomplete:,} incomplete: kept, but not used for training)" if n_incomplete else ""
    endings = ", ".join(f"{reason} {n:,}" for reason, n in result.stop_reasons.items())
    facts = [
        *([("stop reasons", endings + left_out)] if endings else []),
        ("time", format_duration(result.seconds)),
        *usage_facts(result.usage, result.total_usage),
        ("model", ", ".join(result.models) or result.teacher),
        ("output", str(result.path)),
    ]
    if result.n_in_batches:
        pending = plural(result.n_in_batches, "prompt")
        facts.append(("pending", f"{pending} in batches: run the command again with --wait to import the answers"))
    print_facts(f"{result.n_answered:,} of {result.n_prompts:,} answered{new}", facts)
