"""`mlx-distill prepare`: train, valid and test rows of the teacher's answers."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from mlx_distill.cli.options import config_options, json_option, resolve
from mlx_distill.cli.output import print_facts, print_json, reporting
from mlx_distill.prepare.run import PrepareConfig, PrepareResult
from mlx_distill.run.pipeline import alone
from mlx_distill.sanitize import printable


@click.command("prepare")
@config_options(PrepareConfig)
@click.option(
    "--show", type=click.IntRange(min=1), metavar="N", help="Print the first N train rows, supervised tokens marked."
)
@json_option
def command(show: int | None, as_json: bool, **flags: Any) -> None:
    """Make train, valid and test rows of the teacher's answers, split by family.

    \b
    Examples:
      mlx-distill prepare --show 2
      mlx-distill prepare --data data/quickstart --model models/SmolLM2-135M-Instruct --max-length 1024
    """
    if show and as_json:
        raise click.UsageError("--show prints text and --json an object: choose one.")
    config = resolve(PrepareConfig, "prepare", flags)
    with reporting() as report:
        result = alone("prepare", config, report)
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
    facts += [("families", families), ("written to", str(result.data))]
    print_facts("Prepared", facts)
    click.echo()
    header: tuple[str, ...] = ("tokens a row", "rows", "min", "median", "p90", "max", "tokens", "supervised", "share")
    lines = [header]
    for lengths in (*result.splits, *result.categories, result.total):
        counts = (lengths.n_rows, lengths.shortest, lengths.median, lengths.p90, lengths.longest)
        totals = (lengths.n_tokens, lengths.n_supervised)
        lines.append((lengths.name, *(f"{n:,}" for n in (*counts, *totals)), f"{lengths.supervised_share:.0%}"))
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        first, *rest = (cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  " + "  ".join([first.strip().ljust(widths[0]), *rest]))


def _print_rows(config: PrepareConfig, count: int) -> None:
    """Supervised tokens in green on a terminal with colours, between ⟦ and ⟧ elsewhere."""
    from mlx_distill.prepare.preview import shown_rows

    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for row in shown_rows(config.data / "train.jsonl", config.model, count):
        click.echo(f"\n--- {printable(row.id)}: {row.n_tokens} tokens, {row.n_supervised} supervised")
        for segment in row.segments:
            text = printable(segment.text)
            if segment.supervised:
                text = click.style(text, fg="green", bold=True) if coloured else f"⟦{text}⟧"
            click.echo(text, nl=False)
        click.echo()
