"""Print a report on a terminal or into a pipe."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import HORIZONTALS
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from mlx_distill.compare.report import AnsweredPrompt, Report
from mlx_distill.compare.table import Table
from mlx_distill.sanitize import printable

MIN_COLUMN = 56
"""Characters that an answer needs to be shown next to others. Most code is narrower."""
PIPE_WIDTH = 160


def print_report(report: Report) -> None:
    """Print the tables, the findings and the answers."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    for table in report.tables.values():
        if table.rows:
            console.print(_table(table))
            console.print()
    for sentence in report.findings:
        console.print(f"- {printable(sentence)}", soft_wrap=not console.is_terminal)
    for number, answers in enumerate(report.answers, start=1):
        _print_answers(console, number, answers, (report.a.name, report.b.name))


def _table(table: Table) -> RichTable:
    shown = RichTable(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    shown.add_column(Text(printable(table.title)), no_wrap=True)
    for title in table.columns:
        shown.add_column(Text(printable(title)), justify="right")
    for label, cells in table.rows.items():
        shown.add_row(*(Text(printable(text)) for text in (label, *(cell.text for cell in cells))))
    return shown


def _print_answers(console: Console, number: int, answers: AnsweredPrompt, names: Sequence[str]) -> None:
    """Print answers side by side if the terminal is wide enough, otherwise one after another."""
    given = zip((*names, "teacher"), (answers.a, answers.b, answers.teacher), strict=True)
    texts = [(printable(f"{name} ({one.describe()})"), printable(one.text)) for name, one in given if one]
    console.print()
    console.print(printable(f"{number}. {answers.prompt}"), style="bold", soft_wrap=True)
    if console.is_terminal and console.width >= len(texts) * MIN_COLUMN:
        columns = RichTable(box=HORIZONTALS, expand=True, header_style="cyan")
        for title, _ in texts:
            columns.add_column(Text(title), ratio=1, overflow="fold")
        columns.add_row(*(Text(text) for _, text in texts))
        console.print(columns)
        return
    for title, text in texts:
        console.print(f"\n--- {title}", style="cyan", soft_wrap=True)
        console.print(text, soft_wrap=True)
