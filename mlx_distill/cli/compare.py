"""`mlx-distill compare`: base against distilled, or any two adapters or models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mlx_distill import device
from mlx_distill.cli.options import config_options, json_option, resolve
from mlx_distill.cli.output import print_facts, print_json, reporting
from mlx_distill.compare.config import CompareConfig, CompareResult, PairConfig
from mlx_distill.config import to_plain
from mlx_distill.formatting import format_duration
from mlx_distill.run.pipeline import keep_awake, run_standalone
from mlx_distill.run.stages import COMPARE


@click.command("compare")
@click.argument("pair", nargs=-1, metavar="[A B]", type=click.Path(path_type=Path))
@config_options(CompareConfig, leave_out=("teacher_context",))
@click.option("--no-teacher", is_flag=True, help="Leave the teacher out.")
@json_option
def command(pair: tuple[Path, ...], no_teacher: bool, as_json: bool, **flags: Any) -> None:
    """Compare base and distilled on held-out rows and on the test prompts, or two adapters or models A and B.

    A and B are adapter folders or model folders. Both must read the rows as the same tokens, and neither may have been
    trained on a family of them. The report goes to reports/A-vs-B. The same folder twice shows what sampling alone does
    (with --temperature).

    \b
    Examples:
      mlx-distill compare --no-teacher
      mlx-distill compare --judge anthropic:claude-sonnet-4-6
      mlx-distill compare --model models/student --adapter adapters/demo --data data/demo --out reports/demo
      mlx-distill compare adapters/demo adapters/rank-16
      mlx-distill compare adapters/demo models/demo --data data/demo
    """
    if no_teacher:
        flags["teacher"] = ""
    if len(pair) not in (0, 2):
        raise click.UsageError("Name two adapter or model folders, A and B, or none for base against distilled.")
    if pair and flags.pop("adapter"):
        raise click.UsageError(
            "--adapter is for base against distilled; with A and B, name the adapter as one of them."
        )
    with reporting() as report:
        if pair:
            # The project's settings, except for its own model, adapter and report.
            values = {**flags, "a": pair[0], "b": pair[1]}
            config = resolve(PairConfig, "compare", values, leave_out=("model", "adapter", "out"))
            device.prepare()
            from mlx_distill.compare.run import run

            with keep_awake():
                result = run(config, report)
        else:
            result = run_standalone(COMPARE, resolve(CompareConfig, "compare", flags), report)
    if as_json:
        print_json(to_plain(result))
    else:
        print_result(result)


def print_result(result: CompareResult) -> None:
    """Print the tables, the findings, the answers, and where the report is."""
    from mlx_distill.compare.render.terminal import print_report

    print_report(result.report)
    adapters = [model.adapter for model in (result.report.a, result.report.b) if model.adapter]
    click.echo()
    print_facts(
        "Compared.",
        [
            *(("adapter", one.origin) for one in adapters),
            ("page", str(result.html_file)),
            ("report", str(result.markdown_file)),
            ("data", str(result.json_file)),
            ("time", format_duration(result.report.seconds)),
        ],
    )
