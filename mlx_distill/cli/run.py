"""`mlx-distill run`: all stages of a project."""

from __future__ import annotations

import os
from collections.abc import Sequence

import click

from mlx_distill.cli.money import ask_once, print_estimate, show_estimate
from mlx_distill.cli.options import field_help, json_option
from mlx_distill.cli.output import print_json, reporting, safe
from mlx_distill.collect.run import estimate
from mlx_distill.formatting import format_duration
from mlx_distill.run import pipeline
from mlx_distill.run.config import RUN_ORDER, RunConfig, RunResult, StageOutcome
from mlx_distill.run.project import ProjectConfig


@click.command("run")
@click.option("--from", "first", type=click.Choice(RUN_ORDER), help=field_help(RunConfig, "first"))
@click.option("--force", is_flag=True, help=field_help(RunConfig, "force"))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="override a setting: train.epochs=2")
@click.option("--full", is_flag=True, help=field_help(RunConfig, "full"))
@click.option("--max-cost", type=float, help=field_help(ProjectConfig, "max_cost"))
@click.option("--yes", is_flag=True, help="do not ask for confirmation of the cost")
@click.option("--dry-run", is_flag=True, help="print the estimated cost of the missing answers; do nothing")
@json_option
def command(
    first: str | None,
    force: bool,
    overrides: tuple[str, ...],
    full: bool,
    max_cost: float | None,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Run all stages of distill.toml: convert, collect, prepare, logprobs, train, compare, fuse.

    `logprobs` runs only if [train] objective is "kd". A stage is skipped if its settings and files have not changed.
    After Ctrl-C, the same command continues. If the teacher's answers cost money, the estimate is shown first, and on
    a terminal you confirm it once.

    \b
    Examples:
      mlx-distill run
      mlx-distill run --max-cost 5 --yes
      mlx-distill run --set train.epochs=5 --set train.rank=16
      mlx-distill -C demo run --from train --full
    """
    if max_cost is not None:
        overrides = (*overrides, f"max_cost={max_cost}")
    config = RunConfig(first=first or "", force=force, overrides=overrides, full=full)  # type: ignore[arg-type] # a click.Choice
    collect = pipeline.collect_config(config)
    expected = estimate(collect)
    if dry_run:
        print_estimate(expected, as_json=as_json)
        return
    show_estimate(expected)
    ask_once(expected, yes=yes)
    with reporting() as report:
        result = pipeline.run(config, report)
    if as_json:
        print_json(result)
    else:
        print_result(result)


def print_result(result: RunResult) -> None:
    """Print one line per stage, the path of the report, and the next command."""
    click.echo(click.style(f"{result.name}: done in {format_duration(result.seconds)}", bold=True))
    print_stages(result.stages)
    click.echo(f"Report: {result.report / 'report.html'}")
    click.echo("Next:   mlx-distill chat")


def print_stages(outcomes: Sequence[StageOutcome]) -> None:
    """Print a table of the stages: time, figures, and the file or folder of the results."""
    rows = [
        (
            outcome.stage,
            "up to date" if outcome.skipped else format_duration(outcome.seconds),
            outcome.summary,
            os.path.commonpath(outcome.outputs) if outcome.outputs else "",
        )
        for outcome in outcomes
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        click.echo(f"  {safe('  '.join(cells).rstrip())}")
