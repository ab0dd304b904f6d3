"""The report as Markdown, in the order in which it is read: what it is about, figures, answers, how to repeat it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from mlx_distill.comparison.answers import PromptAnswers
from mlx_distill.comparison.report import Report
from mlx_distill.comparison.wording import (
    INTERVAL,
    accuracy_bounds,
    command,
    figure_lines,
    interval_note,
    loss_bounds,
    millions,
    percent,
    points,
    scope,
    state,
)
from mlx_distill.text_safety import fenced, printable


def page(report: Report) -> str:
    """The whole page."""
    sections = [
        "# Base and distilled compared",
        _subject(report),
        *(f"> **Note:** {_line(caution)}" for caution in report.cautions),
        "## Figures on held-out rows",
        _figures(report),
        "## Answers to the test prompts",
        *(_answers(number, answers) for number, answers in enumerate(report.answers, start=1)),
        "## How to repeat it",
        _recipe(report),
    ]
    return "\n\n".join(sections) + "\n"


def _subject(report: Report) -> str:
    machine, model, adapter = report.machine, report.model, report.adapter
    share = adapter.n_trainable / model.n_parameters
    computed = ", ".join(part for part in (machine.device, machine.kind, machine.blas, machine.dtype) if part)
    learnt = ", ".join(part for part in (str(adapter.folder), adapter.choice) if part)
    facts = [
        ("When", report.when),
        ("Machine", f"{machine.platform}; {computed}"),
        ("Versions", ", ".join(f"{name} {version}" for name, version in report.versions.items())),
        ("Student", f"{model.path}: {model.model_type}, {millions(model.n_parameters)} parameters"),
        (
            "Adapter",
            f"{learnt}; rank {adapter.rank}, scale {adapter.scale:g}, "
            f"{millions(adapter.n_trainable)} trainable ({share:.1%} of the student)".replace("%", " %"),
        ),
        ("Teacher", report.teacher or "left out"),
    ]
    return _table(("", ""), facts)


def _figures(report: Report) -> str:
    test, definitions = report.test, report.definitions
    parts = [
        _table(("", "base", "distilled", "difference", INTERVAL), figure_lines(test)),
        f"{scope(test)} {interval_note(test)}",
    ]
    if len(test.by_category) > 1:
        rows = [
            (
                name,
                f"{group.n_rows} / {group.n_families} / {group.n_tokens:,}",
                f"{group.base.loss:.3f} → {group.distilled.loss:.3f}",
                f"{group.difference.loss.value:+.3f}",
                loss_bounds(group),
                f"{percent(group.base.token_accuracy)} → {percent(group.distilled.token_accuracy)}",
                points(group.difference.token_accuracy.value),
                accuracy_bounds(group),
            )
            for name, group in test.by_category.items()
        ]
        header = ("category", "rows / families / tokens", "loss", "difference", INTERVAL)
        parts.append(_table((*header, "token accuracy", "difference", INTERVAL), rows))
        if not all(group.has_interval for group in test.by_category.values()):
            parts.append("A category of fewer than 5 families has no interval: its figures may be chance.")
    parts.append("\n".join(f"- **{name.replace('_', ' ')}**: {text}" for name, text in definitions.items()))
    return "\n\n".join(parts)


def _answers(number: int, answers: PromptAnswers) -> str:
    parts = [f"### {number}. {_line(answers.id)} ({_line(answers.category)})", fenced(answers.prompt, "text")]
    voices = [("Base", answers.base), ("Distilled", answers.distilled), ("Teacher", answers.teacher)]
    for name, answer in voices:
        if answer:
            parts += [f"**{name}** ({_line(state(answer))})", fenced(answer.text, "text")]
    return "\n\n".join(parts)


def _recipe(report: Report) -> str:
    times = [(part, f"{seconds:.1f}") for part, seconds in report.seconds.items()]
    return "\n\n".join(
        [
            fenced(command(report.settings), "sh"),
            fenced(json.dumps(report.settings, indent=2, ensure_ascii=False), "json"),
            _table(("part", "seconds"), times),
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
