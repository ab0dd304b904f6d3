"""The held-out rows: read, rendered as tokens, scored, and checked against what an adapter was trained on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from mlx_distill.compare.metrics.held_out import MAX_LOSS
from mlx_distill.compare.report import ModelInfo
from mlx_distill.errors import InputError, MissingError, VerificationError, raise_problems
from mlx_distill.events import Report
from mlx_distill.models.load import Student
from mlx_distill.models.score import RowScore, score
from mlx_distill.models.tokenize import TokenizedChat, render
from mlx_distill.records import Example
from mlx_distill.storage import files
from mlx_distill.storage.jsonl import read_jsonl
from mlx_distill.training_run import TrainingRun


def read_test_rows(data: Path) -> list[Example]:
    """Read the held-out rows. Raises MissingError if there are none."""
    file = data / files.TEST
    rows = read_jsonl(file, Example.from_json, f"Make it with `mlx-distill prepare --data {data}`.")
    if not rows:
        raise MissingError(
            f"{file} contains no rows, so there is nothing to compare on.",
            'Collect more prompts (or give some `"split": "test"`), then run `mlx-distill prepare` again.',
        )
    return rows


def read_rows(file: Path) -> list[Example]:
    """Read rows; an empty list if the file does not exist."""
    return read_jsonl(file, Example.from_json) if file.exists() else []


def render_rows(student: Student, rows: Sequence[Example], file: Path) -> list[TokenizedChat]:
    """Return the rows as tokens. Raises InputError with every row that the chat template cannot render."""
    rendered: list[TokenizedChat] = []
    problems: list[str] = []
    for row in rows:
        try:
            rendered.append(render(student.tokenizer, row))
        except InputError as error:
            problems.append(f"{row.id}: {error.message}")
    raise_problems(file, problems, f"Run `mlx-distill prepare` again with the student {student.path}.")
    return rendered


def check_same_tokens(
    rows: Sequence[Example], models: Sequence[ModelInfo], rendered: Sequence[Sequence[TokenizedChat]]
) -> None:
    """Raise InputError if the two models read the rows as different tokens."""
    for row, first, second in zip(rows, *rendered, strict=True):
        if first != second:
            raise InputError(
                f"{models[0].path} and {models[1].path} read the test rows as different tokens (row {row.id!r}: "
                f"{len(first.tokens)} and {len(second.tokens)}), so their losses per token cannot be compared.",
                "Compare adapters or models with the same tokenizer and chat template.",
            )


def check_unseen(rows: Sequence[Example], data: Path, models: Iterable[ModelInfo]) -> list[str]:
    """Raise InputError if an adapter was trained on a family or a prompt of the test rows.

    Returns warnings about adapters whose training rows are missing or have changed.
    """
    families, prompts = {row.family for row in rows}, {_prompt(row) for row in rows}
    warnings = []
    for model in models:
        if not (model.adapter and model.training and model.training.settings.get("data")):
            continue
        adapter, folder = model.adapter.folder, Path(model.training.settings["data"])
        train, valid = read_rows(folder / files.TRAIN), read_rows(folder / files.VALID)
        seen = sorted({row.family for row in (*train, *valid) if row.family in families or _prompt(row) in prompts})
        if seen:
            shown = ", ".join(seen[:5]) + (", ..." if len(seen) > 5 else "")
            raise InputError(
                f"{data / files.TEST} overlaps with the rows that {adapter} was trained on: {len(seen)} families of "
                f"{folder} are in both ({shown}). Its figures would be too good.",
                f"Compare on rows that neither model has seen: --data {folder}, or a folder made for this.",
            )
        n_then = model.training.result.get("n_train_rows")
        if n_then is not None and n_then != len(train):
            warnings.append(
                f"{adapter} was trained on {n_then} rows of {folder}, which now has {len(train)}: it may have seen "
                "rows that are compared here."
            )
    return warnings


def _prompt(row: Example) -> str:
    return "\n".join(message.content for message in row.messages if message.role == "user")


def find_warnings(models: Iterable[ModelInfo], rows: Sequence[Example], system: str) -> list[str]:
    """Return what a reader must know about the models before believing the figures."""
    found = []
    for model in models:
        adapter, training = model.adapter, model.training or TrainingRun()
        trained_on = str(training.settings.get("model", ""))
        if adapter and adapter.changes_nothing:
            found.append(
                f"The adapter in {adapter.folder} changes nothing: its weights are zero, so {model.name} is the model "
                "without it. Train it with `mlx-distill train`."
            )
        if adapter and trained_on and Path(trained_on).name != model.path.name:
            found.append(
                f"The adapter in {adapter.folder} was trained on {trained_on} and is compared on {model.path}. "
                "If these are different models, name the one that it was trained on."
            )
        if training.result.get("stopped") == "time budget":
            found.append(
                f"Training of {model.name} stopped at its time budget after {training.result.get('epochs', '?')} "
                "epochs: these are not the figures of the full training."
            )
    systems = {"".join(message.content for message in row.messages if message.role == "system") for row in rows}
    if systems != {system}:
        found.append(
            f"The test rows were prepared with the system message {min(systems - {system})!r}, but the test prompts "
            f"use {system!r}. Use the same in both: the student was trained with one of them."
        )
    return found


def score_rows(
    student: Student, rendered: Sequence[TokenizedChat], model: ModelInfo, report: Report
) -> tuple[RowScore, ...]:
    """Score a model on the rows. Raises VerificationError if its loss is not a usable number."""
    result = score(student, rendered, report, f"score {model.name}")
    if math.isfinite(result.loss) and result.loss <= MAX_LOSS:
        return result.rows
    folder, fix = (
        (model.adapter.folder, "Train again with a lower learning rate.")
        if model.adapter
        else (model.path, "Convert the student again.")
    )
    raise VerificationError(f"{folder}: the loss of {model.name} on the test rows is {result.loss}.", fix)
