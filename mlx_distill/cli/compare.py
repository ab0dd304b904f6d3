"""`mlx-distill compare`: base against distilled, or any two, as tables, a page, and answers side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from mlx_distill.cli.options import config_options, json_option, resolve
from mlx_distill.cli.output import duration, print_facts, print_json, reporting
from mlx_distill.compare.config import CompareConfig, PairConfig
from mlx_distill.compare.run import CompareResult, run
from mlx_distill.run.pipeline import alone
from mlx_distill.sanitize import printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from mlx_distill.compare.answers import PromptAnswers
    from mlx_distill.compare.figures import HeldOut

NARROWEST_COLUMN = 56
"""Characters that an answer needs to be read beside others; code in it is mostly narrower."""
PIPE_WIDTH = 120
"""Of tables where there is no terminal to fit."""


@click.command("compare")
@click.argument("pair", nargs=-1, metavar="[A B]", type=click.Path(path_type=Path))
@config_options(CompareConfig)
@click.option("--no-teacher", is_flag=True, help="Leave the teacher out.")
@json_option
def command(pair: tuple[Path, ...], no_teacher: bool, as_json: bool, **flags: Any) -> None:
    """Compare base and distilled on held-out rows and on the test prompts, or two adapters or models A and B.

    A and B are adapter folders or model folders, in any mixture. Both are measured on the same rows, which must be
    read as the same tokens and be of no family that either learnt from; the report goes to reports/A-vs-B. The same
    folder twice shows what sampling alone does (with --temperature).

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
        raise click.UsageError("--adapter belongs to base against distilled; A and B are adapters or models already.")
    with reporting() as report:
        if pair:
            result = run(_pair_config(pair, flags), report)
        else:
            result = alone("compare", resolve(CompareConfig, "compare", flags), report)
    if as_json:
        print_json(result)
    else:
        print_result(result)


def _pair_config(pair: tuple[Path, ...], flags: Mapping[str, Any]) -> PairConfig:
    """The project's settings of a comparison, but for its own model, adapter and report."""
    return resolve(
        PairConfig,
        "compare",
        {**flags, "first": pair[0], "second": pair[1]},
        leave_out=("model", "adapter", "out"),
    )


def print_result(result: CompareResult) -> None:
    """The figures, the answers of each test prompt, and where it is written down."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    _show_figures(console, result.test, result.names)
    _show_words(console, result)
    for number, answers in enumerate(result.answers, start=1):
        _show_answers(console, number, answers, result.names)
    click.echo()
    facts = [
        *(("adapter", adapter) for adapter in result.adapters),
        ("page", str(result.page)),
        ("report", str(result.markdown)),
        ("data", str(result.report)),
        ("time", duration(result.seconds)),
    ]
    print_facts("Compared.", facts)


def _show_figures(console: Console, test: HeldOut, names: Mapping[str, str]) -> None:
    from mlx_distill.compare import wording

    header = ("", printable(names["base"]), printable(names["distilled"]), "difference", wording.INTERVAL)
    console.print(_table(header, wording.figure_lines(test)))
    console.print(f"{wording.scope(test)} {wording.interval_note(test)}", soft_wrap=not console.is_terminal)
    if len(test.by_category) < 2:
        return
    rows = [
        (
            printable(name),
            str(group.n_rows),
            f"{group.base.loss:.3f} → {group.distilled.loss:.3f}",
            wording.loss_bounds(group),
            f"{wording.percent(group.base.token_accuracy)} → {wording.percent(group.distilled.token_accuracy)}",
            wording.accuracy_bounds(group),
        )
        for name, group in test.by_category.items()
    ]
    console.print()
    console.print(_table(("category", "rows", "loss", "interval", "token accuracy", "interval"), rows))


def _show_words(console: Console, result: CompareResult) -> None:
    """The answers in figures, the judge, code, vocabulary and what stands out."""
    from mlx_distill.compare import answer_wording, wording

    names = {voice: printable(name) for voice, name in result.names.items()}
    console.print()
    console.print(_table(answer_wording.answers_header(names), answer_wording.answers_rows(result.answer_figures)))
    if result.judged:
        console.print()
        verdicts = [(name, printable(value)) for name, value in answer_wording.judge_rows(result.judged, names)]
        console.print(_table(("judged", ""), verdicts, justify="left"))
    header, rows = wording.code_rows(result.code, result.names)
    if rows:
        console.print()
        console.print(_table(header, rows))
    wrap = not console.is_terminal
    console.print()
    console.print(f"Vocabulary: {printable(wording.vocabulary_line(result.vocabulary, result.names))}", soft_wrap=wrap)
    console.print()
    for sentence in result.observations:
        console.print(f"- {printable(sentence)}", soft_wrap=wrap)


def _table(
    header: tuple[str, ...], rows: Sequence[tuple[str, ...]], justify: Literal["left", "right"] = "right"
) -> RenderableType:
    """Plain columns: the first to the left, the others, which are mostly figures, as `justify` says."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else justify, no_wrap=justify == "right" or index == 0)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _show_answers(console: Console, number: int, answers: PromptAnswers, names: Mapping[str, str]) -> None:
    """Side by side where the terminal is wide enough for all, else one after another; unwrapped in a pipe."""
    from mlx_distill.compare.wording import state

    spoken = [
        (printable(f"{name} ({state(answer)})"), printable(answer.text))
        for voice, name in names.items()
        if (answer := getattr(answers, voice))
    ]
    click.echo()
    click.echo(click.style(printable(f"{number}. {answers.prompt}"), bold=True))
    if console.is_terminal and console.width >= len(spoken) * NARROWEST_COLUMN:
        console.print(_columns(spoken))
        return
    for title, text in spoken:
        click.echo(click.style(f"\n--- {title}", fg="cyan"))
        click.echo(text)


def _columns(spoken: list[tuple[str, str]]) -> RenderableType:
    from rich.box import HORIZONTALS
    from rich.table import Table
    from rich.text import Text

    table = Table(box=HORIZONTALS, expand=True, header_style="cyan")
    for title, _ in spoken:
        table.add_column(Text(title), ratio=1, overflow="fold")
    table.add_row(*(Text(text) for _, text in spoken))
    return table
