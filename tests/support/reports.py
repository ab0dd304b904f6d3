"""Reports made of plain figures, for those who draw them."""

from __future__ import annotations

from pathlib import Path

from mlx_distill.compare.answer_figures import answer_figures
from mlx_distill.compare.answers import PromptAnswers, StudentAnswer, Writing
from mlx_distill.compare.code import examine
from mlx_distill.compare.figures import PairedRow, held_out
from mlx_distill.compare.history import Course, History
from mlx_distill.compare.judge import Judged
from mlx_distill.compare.observations import observe
from mlx_distill.compare.report import SCHEMA_VERSION, MachineFacts, Report, definitions
from mlx_distill.compare.sides import AdapterFacts, SideFacts, StudentFacts, names_of
from mlx_distill.compare.vocabulary import vocabulary
from mlx_distill.models.score import RowScore

UNSAID = PromptAnswers("p", "python", "?", StudentAnswer("", True, 0, 0.0), StudentAnswer("", True, 0, 0.0), None)

HOSTILE = (
    "Use this:\n\n```python\nprint(1)\n````\n# no heading\n<script>alert(1)</script>\x1b[2J\x1b]0;title\x07 \u202eend"
)


def make_sides(course: Course | None = None, names: tuple[str, str] = ("base", "distilled")) -> dict[str, SideFacts]:
    """A student without and with its adapter."""
    model = StudentFacts(
        Path("models/Qwen2.5-0.5B-Instruct"), "qwen2", 494_032_768, False, "Qwen/Qwen2.5-0.5B-Instruct", "a" * 40
    )
    adapter = AdapterFacts(
        Path("adapters/demo"),
        "adapters.safetensors",
        "best, step 40",
        "models/x",
        "data/demo",
        8,
        4.0,
        1_700_000,
        changes_nothing=False,
    )
    return {
        "base": SideFacts(names[0], model, None, None),
        "distilled": SideFacts(names[1], model, adapter, course),
    }


def make_report(
    answers: tuple[PromptAnswers, ...],
    cautions: tuple[str, ...] = (),
    history: History | None = None,
    course: Course | None = None,
    names: tuple[str, str] = ("base", "distilled"),
    judged: Judged | None = None,
) -> Report:
    """A report of nine families in two categories."""
    rows = [
        PairedRow(f"f{number}", "sql" if number < 3 else "python", RowScore(20.0, 4, 10), RowScore(12.5, 6, 10))
        for number in range(9)
    ]
    sides = make_sides(course, names)
    test, code, words = held_out(rows, seed=0), examine(answers), vocabulary((), answers)
    writing = {side: Writing(480, 9.6, 50.0, 1_200_000_000) for side in ("base", "distilled")}
    figures = answer_figures(answers or (UNSAID,), writing, seed=0)
    return Report(
        schema_version=SCHEMA_VERSION,
        when="2026-02-24T10:00:00+00:00",
        machine=MachineFacts("macOS-15.3-arm64", "Apple M4 Max", "metal", "", "bfloat16"),
        versions={"mlx-distill": "0.1.0", "mlx": "0.32.4"},
        sides=sides,
        teacher="anthropic:claude-sonnet-4-6",
        history=history or History(None, ()),
        settings={"model": "models/x", "teacher": "", "system": "You are a | pipe.", "max_tokens": 512},
        definitions=definitions(names_of(sides)),
        test=test,
        answers=answers,
        answer_figures=figures,
        judged=judged,
        code=code,
        vocabulary=words,
        observations=observe(test, figures, code, words, judged, sides),
        cautions=cautions,
        seconds={"load": 1.0, "score base": 2.5},
    )
