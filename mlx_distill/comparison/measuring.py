"""Base and distilled on the rows that no training saw."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlx_distill.comparison.figures import HeldOut, PairedRow, held_out, is_usable
from mlx_distill.errors import InputError, MissingError, VerificationError, raise_problems
from mlx_distill.events import Report
from mlx_distill.records import Example
from mlx_distill.scoring import Score, score
from mlx_distill.storage.jsonl import read_jsonl
from mlx_distill.students.adapter import Adapter
from mlx_distill.students.loading import Student
from mlx_distill.students.rendering import Rendered, render

TEST_FILE = "test.jsonl"
TRAIN_FILE = "train.jsonl"


def read_rows(data: Path) -> list[Example]:
    """The held-out rows; MissingError where there are none."""
    file = data / TEST_FILE
    prepare = f"Make it with `mlx-distill prepare --data {data}`."
    rows = read_jsonl(file, Example.from_json, prepare)
    if not rows:
        raise MissingError(
            f"{file} holds no rows, so there is nothing to compare on.",
            'Collect more prompts (or give some `"split": "test"`), then run `mlx-distill prepare` again.',
        )
    return rows


def training_rows(data: Path) -> list[Example]:
    """The rows that were trained on, for their words; none where the folder no longer has them."""
    file = data / TRAIN_FILE
    return read_jsonl(file, Example.from_json) if file.exists() else []


def render_rows(student: Student, rows: Sequence[Example], file: Path) -> list[Rendered]:
    """The rows as the student reads them; InputError names every row that its template cannot write."""
    rendered: list[Rendered] = []
    problems: list[str] = []
    for row in rows:
        try:
            rendered.append(render(student.tokenizer, row.messages))
        except InputError as error:
            problems.append(f"{row.id}: {error.message}")
    raise_problems(file, problems, f"Run `mlx-distill prepare` again with the student {student.path}.")
    return rendered


def score_student(student: Student, rendered: Sequence[Rendered], adapter: Adapter, report: Report) -> Score:
    """The student as it is, its adapter on or off; VerificationError where its loss is not a usable number."""
    name, where, again = (
        ("distilled", adapter.folder, "Train again with a lower learning rate.")
        if adapter.enabled
        else ("base", student.path, "Convert the student again.")
    )
    result = score(student, rendered, report, f"score {name}")
    if not is_usable(result.loss):
        raise VerificationError(f"{where}: the {name} model's loss on the test rows is {result.loss}.", again)
    return result


def pair(rows: Sequence[Example], base: Score, distilled: Score, seed: int) -> HeldOut:
    """The figures of both, overall and by category."""
    paired = [
        PairedRow(row.family, row.category, of_base, of_distilled)
        for row, of_base, of_distilled in zip(rows, base.rows, distilled.rows, strict=True)
    ]
    return held_out(paired, seed)
