"""`mlx-distill collect`: ask the teacher for the answers that are missing."""

from __future__ import annotations

from typing import Any

import click

from mlx_distill.cli.options import config_options, json_option, resolve
from mlx_distill.cli.output import duration, print_facts, print_json, reporting
from mlx_distill.collect import CollectConfig, CollectResult, unanswered_lines
from mlx_distill.errors import TeacherError
from mlx_distill.pipeline import alone
from mlx_distill.records import COMPLETE_STOP_REASONS


@click.command("collect")
@config_options(CollectConfig, leave_out=("first_wait_seconds",))
@json_option
def command(as_json: bool, **flags: Any) -> None:
    """Ask the teacher for the answers that are missing.

    Every answer is on the disk as soon as it arrives, and none is asked for twice: stop it at any time and run it
    again. Training on a provider's answers is bound by its terms of use.

    \b
    Examples:
      mlx-distill collect --limit 3
      mlx-distill collect --prompts my.txt --teacher anthropic:claude-sonnet-4-6 --out data/mine
    """
    config = resolve(CollectConfig, "collect", flags)
    with reporting() as report:
        result = alone("collect", config, report)
    if as_json:
        print_json(result)
    else:
        _print(result)
    if result.unanswered:
        raise TeacherError(
            f"{len(result.unanswered)} of {result.n_prompts} prompts have no answer; the others are saved.",
            "Change these prompts or the teacher and run it again, or go on without them: mlx-distill prepare",
            unanswered_lines(result.unanswered),
        )


def _print(result: CollectResult) -> None:
    new = "" if result.n_new == result.n_answered else f", {result.n_new} of them new"
    cost = f"{result.cost_usd:.2f} USD"
    if result.total_cost_usd > result.cost_usd:
        cost += f" (all answers: {result.total_cost_usd:.2f} USD)"
    n_incomplete = sum(n for reason, n in result.stop_reasons.items() if reason not in COMPLETE_STOP_REASONS)
    left_out = f" ({n_incomplete} without an end: kept, but never learnt)" if n_incomplete else ""
    print_facts(
        f"{result.n_answered} of {result.n_prompts} answered{new}",
        [
            ("endings", ", ".join(f"{reason} {n}" for reason, n in result.stop_reasons.items()) + left_out),
            ("time", duration(result.seconds)),
            ("cost", cost),
            ("model", ", ".join(result.models) or result.teacher),
            ("output", str(result.path)),
        ],
    )
