"""`mlx-distill expand`: ask the teacher for variations of the base prompts."""

from __future__ import annotations

from typing import Any

import click

from mlx_distill.cli.money import bill_lines, cost_line, print_estimate, show_estimate
from mlx_distill.cli.options import config_options, given, json_option, resolve
from mlx_distill.cli.output import duration, print_facts, print_json, reporting
from mlx_distill.collect.expand import ExpandConfig, estimate, is_paid, run
from mlx_distill.collect.run import unanswered_lines
from mlx_distill.errors import TeacherError


@click.command("expand")
@config_options(ExpandConfig, leave_out=("first_wait_seconds",))
@click.option("--dry-run", is_flag=True, help="Say what is missing and what it would cost; send nothing.")
@json_option
def command(dry_run: bool, as_json: bool, **flags: Any) -> None:
    """Ask the teacher for variations of the base prompts, and write a larger prompt file.

    \b
    Examples:
      mlx-distill expand --dry-run
      mlx-distill expand --variations 5
      mlx-distill expand --prompts my.txt --teacher anthropic:claude-sonnet-4-6 --data data/mine --out more.jsonl
    """
    config = resolve(ExpandConfig, "expand", flags)
    if dry_run:
        expected = estimate(config)
        print_json(expected) if as_json else print_estimate(expected)
        return
    if is_paid(config):  # or there is nothing to show, and the files are read once
        show_estimate(estimate(config))
    with reporting() as report:
        result = run(config, report)
    if as_json:
        print_json(result)
    else:
        print_facts(
            f"{result.n_variations} variations of {result.n_bases} base prompts",
            [
                ("left out", f"{result.n_near_copies} near copies"),
                ("prompts", f"{result.n_prompts} in all"),
                ("time", duration(result.seconds)),
                ("cost", cost_line(result.bill, result.total_bill)),
                *bill_lines(result.bill),
                ("output", str(result.path)),
                (
                    "next",
                    f"mlx-distill collect{given(prompts=result.path, teacher=flags['teacher'], out=flags['data'])}",
                ),
            ],
        )
    if result.unanswered:
        raise TeacherError(
            f"{len(result.unanswered)} of {result.n_bases} base prompts got no variations.",
            "The file holds the others; change these prompts or the teacher and run it again.",
            unanswered_lines(result.unanswered),
        )
