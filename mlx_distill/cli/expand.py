"""`mlx-distill expand`: ask the teacher for variations of the base prompts."""

from __future__ import annotations

from typing import Any

import click

from mlx_distill.cli.money import print_estimate, show_estimate, usage_facts
from mlx_distill.cli.options import config_options, json_option, repeat_options, resolve
from mlx_distill.cli.output import print_facts, print_json, reporting
from mlx_distill.collect.expand import ExpandConfig, estimate, run
from mlx_distill.collect.run import failed_lines
from mlx_distill.errors import TeacherError
from mlx_distill.formatting import format_duration
from mlx_distill.run.pipeline import keep_awake


@click.command("expand")
@config_options(ExpandConfig, leave_out=("first_wait_seconds",))
@click.option("--dry-run", is_flag=True, help="Print what is missing and its cost; send nothing.")
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
        print_estimate(estimate(config), as_json=as_json)
        return
    show_estimate(estimate(config))
    with keep_awake(), reporting() as report:
        result = run(config, report)
    if as_json:
        print_json(result)
    else:
        next_options = repeat_options(prompts=result.path, teacher=flags["teacher"], out=flags["data"])
        print_facts(
            f"{result.n_variations} variations of {result.n_bases} base prompts",
            [
                ("left out", f"{result.n_near_copies} near copies"),
                ("prompts", f"{result.n_prompts} in total"),
                ("time", format_duration(result.seconds)),
                *usage_facts(result.usage, result.total_usage),
                ("output", str(result.path)),
                ("next", f"mlx-distill collect{next_options}"),
            ],
        )
    if result.failed:
        raise TeacherError(
            f"{len(result.failed)} of {result.n_bases} base prompts have no variations.",
            "The file has the others. Change these prompts or the teacher and run the command again.",
            failed_lines(result.failed),
        )
