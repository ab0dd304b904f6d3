"""Both sides on the rows that no training saw, and that neither did."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from mlx_distill.compare.figures import HeldOut, PairedRow, held_out, is_usable
from mlx_distill.compare.sides import Side, SideFacts
from mlx_distill.errors import InputError, MissingError, VerificationError, raise_problems
from mlx_distill.events import Report
from mlx_distill.models.load import Student
from mlx_distill.models.score import Score, score
from mlx_distill.models.tokenize import Rendered, render
from mlx_distill.records import Example
from mlx_distill.storage.jsonl import read_jsonl

TEST_FILE = "test.jsonl"
TRAIN_FILE = "train.jsonl"
LEARNT_FILES = (TRAIN_FILE, "valid.jsonl")
"""Rows that were trained on or that chose the checkpoint."""


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
    return _rows_of(data / TRAIN_FILE)


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


def refuse_other_tokens(rows: Sequence[Example], sides: Sequence[Side], rendered: Sequence[Sequence[Rendered]]) -> None:
    """Raise InputError where the two sides do not read the rows as the same tokens."""
    for row, first, second in zip(rows, *rendered, strict=True):
        if first != second:
            one, other = sides
            raise InputError(
                f"{one.model} and {other.model} read the test rows as different tokens (row {row.id!r}: "
                f"{len(first.tokens)} and {len(second.tokens)}), so a loss per token of the one says nothing beside "
                "that of the other.",
                "Compare adapters or models of the same tokenizer and chat template.",
            )


def refuse_seen_rows(rows: Sequence[Example], data: Path, sides: Iterable[SideFacts]) -> list[str]:
    """Raise InputError where rows that are compared on are of families that an adapter learnt from.

    Returns cautions about adapters whose own rows cannot be looked at, or are no longer those.
    """
    families, questions = {row.family for row in rows}, {_question(row) for row in rows}
    cautions = []
    for side in sides:
        if not side.adapter or not side.adapter.data:
            continue
        adapter, folder = side.adapter.folder, Path(side.adapter.data)
        learnt = {name: _rows_of(folder / name) for name in LEARNT_FILES}
        seen = sorted(
            {
                row.family
                for row in (row for of in learnt.values() for row in of)
                if row.family in families or _question(row) in questions
            }
        )
        if seen:
            some = ", ".join(seen[:5]) + (", ..." if len(seen) > 5 else "")
            raise InputError(
                f"{data / TEST_FILE} is of other data than {adapter} was trained from: it learnt from {folder}, and "
                f"{len(seen)} of the families compared on are among its rows ({some}). Its figures would flatter it.",
                f"Compare on rows that neither side has seen: --data {folder}, or a folder made for this.",
            )
        n_then = side.course.result.get("n_train_rows") if side.course else None
        if n_then is not None and n_then != len(learnt[TRAIN_FILE]):
            cautions.append(
                f"{adapter} was trained on {n_then} rows of {folder}, where {len(learnt[TRAIN_FILE])} are now: nothing "
                "shows that it has not seen the rows compared on."
            )
    return cautions


def _rows_of(file: Path) -> list[Example]:
    return read_jsonl(file, Example.from_json) if file.exists() else []


def _question(row: Example) -> str:
    return "\n".join(message.content for message in row.messages if message.role == "user")


def score_side(student: Student, rendered: Sequence[Rendered], side: Side, report: Report) -> Score:
    """The side's score; VerificationError where its loss is not a usable number."""
    result = score(student, rendered, report, f"score {side.name}")
    if not is_usable(result.loss):
        where, again = (
            (side.adapter, "Train again with a lower learning rate.")
            if side.adapter
            else (side.model, "Convert the student again.")
        )
        raise VerificationError(f"{where}: the loss of {side.name} on the test rows is {result.loss}.", again)
    return result


def pair(rows: Sequence[Example], base: Score, distilled: Score, seed: int) -> HeldOut:
    """The figures of both, overall and by category."""
    paired = [
        PairedRow(row.family, row.category, of_base, of_distilled)
        for row, of_base, of_distilled in zip(rows, base.rows, distilled.rows, strict=True)
    ]
    return held_out(paired, seed)
