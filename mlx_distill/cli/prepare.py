"""`mlx-distill prepare`: make train, valid and test rows from the teacher's answers."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from mlx_distill.cli.options import config_options, json_option, resolve
from mlx_distill.cli.output import print_facts, print_json, reporting
from mlx_distill.prepare import PrepareConfig, PrepareResult
from mlx_distill.run.pipeline import run_standalone
from mlx_distill.run.stages import PREPARE
from mlx_distill.sanitize import printable
from mlx_distill.storage import files


@click.command("prepare")
@config_options(PrepareConfig)
@click.option(
    "--show", type=click.IntRange(min=1), metavar="N", help="Print N train rows and mark the supervised text."
)
@json_option
def command(show: int | None, as_json: bool, **flags: Any) -> None:
    """Make train, valid and test rows from the teacher's answers, split by family.

    \b
    Examples:
      mlx-distill prepare --show 2
      mlx-distill prepare --data data/quickstart --model models/SmolLM2-135M-Instruct --max-length 1024
    """
    if show and as_json:
        raise click.UsageError("--show prints text and --json an object: choose one.")
    config = resolve(PrepareConfig, "prepare", flags)
    with reporting() as report:
        result = run_standalone(PREPARE, config, report)
    if as_json:
        print_json(result)
        return
    _print_result(result)
    if show:
        _print_rows(config, show)


def _print_result(result: PrepareResult) -> None:
    n_rejected = sum(result.rejected.values())
    facts = [("answers", f"{result.n_records} read, {result.n_rows} kept, {n_rejected} rejected")]
    facts += [("rejected", f"{count} {reason}") for reason, count in result.rejected.items()]
    families = ", ".join(f"{split} {count}" for split, count in result.n_families.items())
    print_facts("Prepared", [*facts, ("families", families), ("written to", str(result.data))])
    click.echo("\n  tokens a row    rows   min  median   p90   max       tokens   supervised  share")
    for stats in (*result.splits, *result.categories, result.total):
        lengths = f"{stats.shortest:>4}  {stats.median:>6}  {stats.p90:>4}  {stats.longest:>4}"
        totals = f"{stats.n_tokens:>11,}  {stats.n_supervised:>11,}  {stats.supervised_share:>5.0%}"
        click.echo(f"  {printable(stats.name):<12}  {stats.n_rows:>6,}  {lengths}  {totals}")


def _print_rows(config: PrepareConfig, n_rows: int) -> None:
    """Print supervised text in green on a terminal with colours, and between ⟦ and ⟧ elsewhere."""
    from mlx_distill.prepare.rows import preview_rows  # imports mlx

    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for row, segments in preview_rows(config.data / files.TRAIN, config.model, n_rows):
        click.echo(f"\n--- {printable(row.example.id)}: {row.n_tokens} tokens, {row.n_supervised} supervised")
        for text, supervised in segments:
            shown = printable(text)
            if supervised:
                shown = click.style(shown, fg="green", bold=True) if coloured else f"⟦{shown}⟧"
            click.echo(shown, nl=False)
        click.echo()
