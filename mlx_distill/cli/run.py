"""`mlx-distill run`: the whole job of a project, stage after stage."""

from __future__ import annotations

import os
from collections.abc import Sequence

import click

from mlx_distill.cli.money import ask_once, print_estimate, show_estimate
from mlx_distill.cli.options import field_help, json_option
from mlx_distill.cli.output import duration, print_json, reporting, size
from mlx_distill.run import pipeline
from mlx_distill.run.project import ProjectConfig
from mlx_distill.run.stages import RUN_ORDER


@click.command("run")
@click.option("--from", "first", type=click.Choice(RUN_ORDER), help="Do this stage and all after it again.")
@click.option("--force", is_flag=True, help="Do every stage again; answers that are there are not asked for twice.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A setting for this run: train.epochs=2")
@click.option("--full", is_flag=True, help="No time budget for training: the whole recipe.")
@click.option("--max-cost", type=float, help=f"{field_help(ProjectConfig, 'max_cost')}.")
@click.option("--yes", is_flag=True, help="Do not ask whether to spend what the teacher will cost.")
@click.option("--dry-run", is_flag=True, help="Say what the teacher's answers would cost; do nothing.")
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
    """Do the whole job of distill.toml: collect, convert, prepare, train, compare, fuse.

    A stage whose settings and files have not changed since it was done is skipped. After Ctrl-C, the same command
    goes on where it stopped. Where the teacher's answers cost money, the estimate is shown first, and on a terminal you
    are asked once whether to go on.

    \b
    Examples:
      mlx-distill run
      mlx-distill run --max-cost 5 --yes
      mlx-distill run --set train.epochs=5 --set train.rank=16
      mlx-distill -C demo run --from train --full
    """
    if max_cost is not None:
        overrides = (*overrides, f"max_cost={max_cost}")
    config = pipeline.RunConfig(first=first or "", force=force, overrides=overrides, full=full)
    if dry_run:
        expected = pipeline.estimate(config)
        print_json(expected) if as_json else print_estimate(expected)
        return
    if pipeline.is_paid(config):  # or there is nothing to show, and the files are read once
        expected = pipeline.estimate(config)
        show_estimate(expected)
        ask_once(expected, yes=yes)
    with reporting() as report:
        result = pipeline.run(config, report)
    if as_json:
        print_json(result)
    else:
        print_result(result)


def print_result(result: pipeline.RunResult) -> None:
    """A line for each stage, where the report is, and what to do next."""
    click.echo(click.style(f"{result.name}: done in {duration(result.seconds)}", bold=True))
    print_stages(result.stages)
    click.echo(f"Report: {result.report / 'report.html'}")
    click.echo("Next:   mlx-distill chat")


def print_stages(outcomes: Sequence[pipeline.Outcome]) -> None:
    """A line for each stage: its time, its figures and where its results are."""
    rows = [
        (each.stage, "up to date" if each.skipped else duration(each.seconds), figures(each), place(each))
        for each in outcomes
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        click.echo(f"  {'  '.join(cells).rstrip()}")


def figures(outcome: pipeline.Outcome) -> str:
    """What a stage ended with, in a few words."""
    result = outcome.result
    if "summary" in result:
        return str(result["summary"])
    if outcome.stage == "collect":
        return f"{result['n_answered']} of {result['n_prompts']} answered"
    if outcome.stage == "convert":
        return f"{result['n_parameters'] / 1e6:.0f}M parameters, {result['dtype']}"
    if outcome.stage == "prepare":
        return ", ".join(f"{split['name']} {split['n_rows']}" for split in result["splits"]) + " rows"
    if outcome.stage == "train":
        return (
            f"valid loss {result['valid_loss_before']:.3f} → {result['valid_loss']:.3f}, accuracy "
            f"{result['valid_accuracy_before']:.1%} → {result['valid_accuracy']:.1%} ({result['epochs']:g} epochs)"
        )
    return f"test loss {result['fused_loss']:.3f}, {size(result['size_bytes'])}"


def place(outcome: pipeline.Outcome) -> str:
    """Where a stage's results are: the one file, or the folder that they share."""
    return os.path.commonpath(outcome.outputs) if outcome.outputs else ""
