"""Rows of a split as the objective wants them, each with its id; what cannot be learnt from is refused by name."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_distill.errors import InputError, raise_problems
from mlx_distill.models.load import Student
from mlx_distill.models.tokenize import Rendered
from mlx_distill.records import Example
from mlx_distill.storage.jsonl import read_jsonl
from mlx_distill.train.objectives import Objective


@dataclass(frozen=True)
class Rows:
    """The rows of train.jsonl or valid.jsonl, in the order of the file."""

    ids: tuple[str, ...]
    rows: tuple[Rendered, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> list[int]:
        return [len(row.tokens) for row in self.rows]

    def names(self, indices: Sequence[int]) -> str:
        """The ids of some rows, for a message."""
        return ", ".join(repr(self.ids[index]) for index in sorted(indices))

    @property
    def digest(self) -> str:
        """Changes with any token or mask, so that a run is not continued on other rows."""
        return hashlib.sha256(repr([(row.tokens, row.mask) for row in self.rows]).encode()).hexdigest()[:16]


def read_rows(path: Path, student: Student, objective: Objective, max_length: int) -> Rows:
    """Read a split. InputError names every row that is too long or has nothing to learn."""
    examples = read_jsonl(path, Example.from_json, "Make it with `mlx-distill prepare`.")
    if not examples:
        raise InputError(f"{path} holds no rows.", "Collect more answers, then run `mlx-distill prepare` again.")
    rows = [objective.row(student, example) for example in examples]
    problems = []
    for example, row in zip(examples, rows, strict=True):
        if len(row.tokens) > max_length:
            problems.append(f"row {example.id!r} is {len(row.tokens)} tokens long, max_length is {max_length}")
        elif not any(row.mask[1:]):
            problems.append(f"row {example.id!r} has no answer tokens to learn")
    raise_problems(path, problems, "Raise --max-length, or let `mlx-distill prepare` reject such rows.")
    return Rows(tuple(example.id for example in examples), tuple(rows))
