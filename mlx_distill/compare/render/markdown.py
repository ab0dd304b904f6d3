"""The report as Markdown: `report.md`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mlx_distill.compare.render import header
from mlx_distill.compare.report import AnsweredPrompt, CheckedAnswer, Report
from mlx_distill.compare.table import Table
from mlx_distill.sanitize import fenced, printable


def markdown_page(report: Report) -> str:
    """Return the whole page."""
    sections = [
        f"# {_line(header.title(report))}",
        _line(header.lead(report)),
        _rows(("", ""), header.facts(report).items()),
        *(f"> **Warning:** {_line(warning)}" for warning in report.warnings),
        "## Findings",
        "\n".join(f"- {_line(finding)}" for finding in report.findings),
        *(_table(table) for table in report.tables.values()),
        "## Answers",
        *(_answers(report, number, answers) for number, answers in enumerate(report.answers, start=1)),
        "## How to repeat it",
        fenced(header.command(report), "sh"),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _table(table: Table) -> str:
    rows = [(label, *(cell.text for cell in cells)) for label, cells in table.rows.items()]
    parts = [f"## {_line(table.title)}", _rows(("", *table.columns), rows) if rows else "", _line(table.note)]
    return "\n\n".join(filter(None, parts))


def _answers(report: Report, number: int, answers: AnsweredPrompt) -> str:
    title = f"### {number}. {_line(answers.id)} ({_line(answers.category)}, {answers.origin})"
    given = ((report.a.name, answers.a), (report.b.name, answers.b), ("teacher", answers.teacher))
    found = answers.judgement
    verdict = [f"**Judge**: {_line(found.describe(report.a.name, report.b.name))}"] if found else []
    return "\n\n".join(
        [title, fenced(answers.prompt, "text"), *(_answer(name, one) for name, one in given if one), *verdict]
    )


def _answer(name: str, answer: CheckedAnswer) -> str:
    state = "; ".join([answer.describe(), *(block.describe() for block in answer.blocks)])
    return f"**{_line(name)}** ({_line(state)})\n\n{fenced(answer.text, 'text')}"


def _rows(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(_line(cell) for cell in cells) + " |" for cells in lines)


def _line(text: str) -> str:
    """Return text that stays in its line and its table cell, and that Markdown does not interpret."""
    flat = " ".join(printable(text).split())
    for mark in "\\`*_<>[]|#":
        flat = flat.replace(mark, "\\" + mark)
    return flat
