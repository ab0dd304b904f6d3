"""Comparisons and reports made of plain figures, for tests of metrics and renderers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlx_distill.compare.answers import check_blocks
from mlx_distill.compare.collected import Collected
from mlx_distill.compare.judge import JudgeInfo
from mlx_distill.compare.metrics import METRICS
from mlx_distill.compare.models import Comparison, ModelRun
from mlx_distill.compare.report import (
    AdapterInfo,
    AnsweredPrompt,
    CheckedAnswer,
    ModelInfo,
    Report,
)
from mlx_distill.models.score import RowScore
from mlx_distill.records import Example, Message
from mlx_distill.similarity import repetition
from mlx_distill.training_run import TrainingRun

HOSTILE = (
    "Use this:\n\n```python\nprint(1)\n````\n# no heading\n<script>alert(1)</script>\x1b[2J\x1b]0;title\x07 \u202eend"
)
NINE_FAMILIES = [(f"f{number}", "sql" if number < 3 else "python", 2.0, 1.25 + number / 100) for number in range(9)]
"""Rows as (family, category, loss per token of a, loss per token of b)."""


def make_answer(
    text: str, *, finished: bool = True, n_tokens: int = 9, taught: bool = False, execute: bool = False
) -> CheckedAnswer:
    """An answer of a model, or of the teacher (`taught`)."""
    return CheckedAnswer(
        text,
        finished,
        n_tokens,
        repetition(text.split()),
        check_blocks(text, execute=execute),
        None if taught else 30.4,
        "" if finished or not taught else "max_tokens",
        "claude-sonnet-4-6" if taught else "",
    )


def make_answered(
    a: CheckedAnswer | str,
    b: CheckedAnswer | str,
    teacher: CheckedAnswer | str | None = None,
    *,
    name: str = "p",
    family: str = "f",
    category: str = "python",
    prompt: str = "Why?",
) -> AnsweredPrompt:
    """A test prompt with its answers; a text stands for a finished answer."""
    found = [make_answer(one) if isinstance(one, str) else one for one in (a, b)]
    taught = make_answer(teacher, taught=True) if isinstance(teacher, str) else teacher
    return AnsweredPrompt(name, family, category, "test prompt", prompt, found[0], found[1], taught)


def make_models(names: tuple[str, str] = ("base", "distilled"), training: TrainingRun | None = None) -> list[ModelInfo]:
    """A student without and with its adapter."""
    path, hub = Path("models/Qwen2.5-0.5B-Instruct"), "Qwen/Qwen2.5-0.5B-Instruct"
    adapter = AdapterInfo(
        folder=Path("adapters/demo"),
        checkpoint="best, step 40",
        rank=8,
        scale=4.0,
        n_trainable=1_700_000,
        changes_nothing=False,
    )
    return [
        ModelInfo(names[0], path, "qwen2", 494_032_768, hub, "a" * 40),
        ModelInfo(names[1], path, "qwen2", 494_032_768, hub, "a" * 40, adapter, training),
    ]


def make_comparison(
    rows: Sequence[tuple[str, str, float, float]] = NINE_FAMILIES,
    answers: Sequence[AnsweredPrompt] = (),
    *,
    train_rows: Sequence[Example] = (),
    judge: JudgeInfo | None = None,
    n_tokens: Sequence[int] = (),
    training: TrainingRun | None = None,
    names: tuple[str, str] = ("base", "distilled"),
    seed: int = 0,
) -> Comparison:
    """A comparison of rows with 10 tokens each: model a has 4 right, model b 6."""
    messages = (Message("user", "?"), Message("assistant", "!"))
    counts = n_tokens or [10] * len(rows)
    scores = [
        tuple(RowScore(loss * n, n * right // 10, n) for loss, n in zip(losses, counts, strict=True))
        for losses, right in (([row[2] for row in rows], 4), ([row[3] for row in rows], 6))
    ]
    models = zip(make_models(names, training), scores, strict=True)
    a, b = (ModelRun(info, found, tokens_per_second=50.0, peak_bytes=1_200_000_000) for info, found in models)
    return Comparison(
        a=a,
        b=b,
        rows=[Example(messages=messages, id=str(n), family=row[0], category=row[1]) for n, row in enumerate(rows)],
        train_rows=train_rows,
        answers=answers or [make_answered("", "")],
        judge=judge,
        seed=seed,
    )


def make_report(
    answers: Sequence[AnsweredPrompt] = (),
    warnings: tuple[str, ...] = (),
    *,
    data: Comparison | None = None,
    collected: Collected | None = None,
    training: TrainingRun | None = None,
) -> Report:
    """A report of nine families in two categories."""
    data = data or make_comparison(answers=answers, training=training)
    tables = [table for metric in METRICS if (table := metric(data))]
    return Report(
        created_at="2026-02-24T10:00:00+00:00",
        machine={"platform": "macOS-15.3-arm64", "device": "Apple M4 Max", "dtype": "bfloat16"},
        versions={"mlx-distill": "0.1.0", "mlx": "0.32.4"},
        a=data.a.info,
        b=data.b.info,
        teacher="anthropic:claude-sonnet-4-6",
        collected=collected,
        settings={"model": "models/a b", "teacher": "", "system": "You are a | pipe.", "max_tokens": 512, "prices": {}},
        tables={table.id: table for table in tables},
        findings=tuple(table.finding for table in tables if table.finding),
        warnings=warnings,
        answers=tuple(answers),
        seconds=61.0,
    )
