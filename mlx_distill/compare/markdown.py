"""The report as Markdown, in the order in which it is read: what it is about, figures, answers, how to repeat it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from mlx_distill.compare import answer_wording
from mlx_distill.compare.answers import PromptAnswers
from mlx_distill.compare.judge import Judged
from mlx_distill.compare.report import Report
from mlx_distill.compare.subject_wording import command, facts, subject, time_rows, title
from mlx_distill.compare.wording import (
    CATEGORY_HEADER,
    CATEGORY_NOTE,
    INTERVAL,
    category_rows,
    check_words,
    code_note,
    code_rows,
    figure_lines,
    heading,
    interval_note,
    lacks_intervals,
    scope,
    state,
    vocabulary_header,
    vocabulary_line,
    vocabulary_rows,
)
from mlx_distill.sanitize import fenced, printable


def page(report: Report) -> str:
    """The whole page."""
    sections = [
        f"# {_line(title(report))}",
        _line(subject(report)),
        _subject(report),
        *(f"> **Note:** {_line(caution)}" for caution in report.cautions),
        "## Figures on held-out rows",
        _figures(report),
        "### What the figures say",
        "\n".join(f"- {_line(sentence)}" for sentence in report.observations),
        "## The answers in figures",
        _answer_figures(report),
        *(["## What the judge says", _judged(report.judged, report.names)] if report.judged else []),
        "## Code in the answers",
        _code(report),
        "## Vocabulary",
        _vocabulary(report),
        "## Answers",
        *(_answers(report, number, answers) for number, answers in enumerate(report.answers, start=1)),
        "## How to repeat it",
        _recipe(report),
    ]
    return "\n\n".join(sections) + "\n"


def _subject(report: Report) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    return _table(("", ""), [*facts(report), ("Versions", versions)])


def _code(report: Report) -> str:
    header, rows = code_rows(report.code, report.names)
    if not rows:
        return "No answer holds a block of code that is checked here."
    return f"{_table(header, rows)}\n\n{_line(code_note(report.code))}"


def _answer_figures(report: Report) -> str:
    figures = report.answer_figures
    parts = [
        _table(answer_wording.answers_header(report.names), answer_wording.answers_rows(figures)),
        _line(answer_wording.answers_note(figures)),
    ]
    if len(figures.by_category) > 1:
        parts.append(_table(answer_wording.ANSWER_CATEGORY_HEADER, answer_wording.answer_category_rows(figures)))
    return "\n\n".join(parts)


def _judged(judged: Judged, names: Mapping[str, str]) -> str:
    parts = [
        _line(answer_wording.judge_line(judged, names)),
        _table(("", ""), answer_wording.judge_rows(judged, names)),
    ]
    if len(judged.by_category) > 1:
        parts.append(_table(answer_wording.JUDGE_CATEGORY_HEADER, answer_wording.judge_category_rows(judged)))
    return "\n\n".join(parts)


def _vocabulary(report: Report) -> str:
    rows = vocabulary_rows(report.vocabulary)
    parts = [_line(vocabulary_line(report.vocabulary, report.names))]
    if rows:
        parts.append(_table(vocabulary_header(report.names), rows))
    return "\n\n".join(parts)


def _figures(report: Report) -> str:
    test, definitions = report.test, report.definitions
    parts = [
        _table(("", report.names["base"], report.names["distilled"], "difference", INTERVAL), figure_lines(test)),
        f"{scope(test)} {interval_note(test)}",
    ]
    if len(test.by_category) > 1:
        parts.append(_table(CATEGORY_HEADER, category_rows(test)))
        if lacks_intervals(test):
            parts.append(CATEGORY_NOTE)
    parts.append("\n".join(f"- **{name.replace('_', ' ')}**: {text}" for name, text in definitions.items()))
    return "\n\n".join(parts)


def _answers(report: Report, number: int, answers: PromptAnswers) -> str:
    title = f"### {number}. {_line(answers.id)} ({_line(answers.category)}, {answers.origin})"
    parts = [title, fenced(answers.prompt, "text")]
    for voice, name in report.names.items():
        answer = getattr(answers, voice)
        if answer:
            checks = "; ".join(map(check_words, report.code.checks[answers.id][voice]))
            said = ". ".join(filter(None, (state(answer), checks)))
            parts += [f"**{_line(heading(name))}** ({_line(said)})", fenced(answer.text, "text")]
    if report.judged:
        pair = next(pair for pair in report.judged.pairs if pair.id == answers.id)
        parts.append(f"**Judge**: {_line(answer_wording.judgement_words(pair, report.names))}")
    return "\n\n".join(parts)


def _recipe(report: Report) -> str:
    return "\n\n".join(
        [
            fenced(command(report.settings), "sh"),
            fenced(json.dumps(report.settings, indent=2, ensure_ascii=False), "json"),
            _table(("part", "seconds"), time_rows(report)),
        ]
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_line(cell) for cell in cells) + " |" for cells in lines)


def _line(text: str) -> str:
    """Text that stays in its line and its table cell, and is no markup."""
    flat = " ".join(printable(text).split())
    for mark in "\\`*_<>[]|#":
        flat = flat.replace(mark, "\\" + mark)
    return flat
