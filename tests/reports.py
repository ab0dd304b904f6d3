"""Reports made of plain figures, for those who draw them."""

from __future__ import annotations

from pathlib import Path

from mlx_distill.comparison.answer_figures import answer_figures
from mlx_distill.comparison.answers import PromptAnswers, StudentAnswer, Writing
from mlx_distill.comparison.code import examine
from mlx_distill.comparison.figures import PairedRow, held_out
from mlx_distill.comparison.history import History
from mlx_distill.comparison.judge import Judged
from mlx_distill.comparison.observations import observe
from mlx_distill.comparison.report import DEFINITIONS, SCHEMA_VERSION, AdapterFacts, MachineFacts, Report, StudentFacts
from mlx_distill.comparison.vocabulary import vocabulary
from mlx_distill.scoring import RowScore

UNSAID = PromptAnswers("p", "python", "?", StudentAnswer("", True, 0, 0.0), StudentAnswer("", True, 0, 0.0), None)

HOSTILE = (
    "Use this:\n\n```python\nprint(1)\n````\n# no heading\n<script>alert(1)</script>\x1b[2J\x1b]0;title\x07 \u202eend"
)


def make_report(
    answers: tuple[PromptAnswers, ...],
    cautions: tuple[str, ...] = (),
    history: History | None = None,
    judged: Judged | None = None,
) -> Report:
    """A report of nine families in two categories."""
    rows = [
        PairedRow(f"f{number}", "sql" if number < 3 else "python", RowScore(20.0, 4, 10), RowScore(12.5, 6, 10))
        for number in range(9)
    ]
    past = history or History("Qwen/Qwen2.5-0.5B-Instruct", "", None, None, ())
    test, code, words = held_out(rows, seed=0), examine(answers), vocabulary((), answers)
    writing = {side: Writing(480, 9.6, 50.0, 1_200_000_000) for side in ("base", "distilled")}
    figures = answer_figures(answers or (UNSAID,), writing, seed=0)
    return Report(
        schema_version=SCHEMA_VERSION,
        when="2026-02-24T10:00:00+00:00",
        machine=MachineFacts("macOS-15.3-arm64", "Apple M4 Max", "metal", "", "bfloat16"),
        versions={"mlx-distill": "0.1.0", "mlx": "0.32.4"},
        model=StudentFacts(Path("models/Qwen2.5-0.5B-Instruct"), "qwen2", 494_032_768, quantized=False),
        adapter=AdapterFacts(
            Path("adapters/demo"),
            "adapters.safetensors",
            "best, step 40",
            "models/x",
            8,
            4.0,
            1_700_000,
            changes_nothing=False,
        ),
        teacher="anthropic:claude-sonnet-4-6",
        history=past,
        settings={"model": "models/x", "teacher": "", "system": "You are a | pipe.", "max_tokens": 512},
        definitions=DEFINITIONS,
        test=test,
        answers=answers,
        answer_figures=figures,
        judged=judged,
        code=code,
        vocabulary=words,
        observations=observe(test, figures, code, words, judged, past.course),
        cautions=cautions,
        seconds={"load": 1.0, "score base": 2.5},
    )
