"""How long rows are in the student's tokens: the figures that batch size, memory and `max_length` are chosen by."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlx_distill.records import SPLITS, Example

if TYPE_CHECKING:
    from mlx_distill.models.tokenize import Rendered


@dataclass(frozen=True)
class Lengths:
    """Token counts of a group of rows. Percentiles are nearest-rank: lengths that occur."""

    name: str
    """`all`, a split, or a category."""
    n_rows: int
    shortest: int
    median: int
    p90: int
    longest: int
    n_tokens: int
    n_supervised: int
    """Answer tokens, each answer's end token included."""
    supervised_share: float


@dataclass(frozen=True)
class Row:
    """An example in its split, and as the student reads it."""

    example: Example
    split: str
    rendered: Rendered


def lengths_of(name: str, rows: Sequence[Row]) -> Lengths:
    """The figures of one group; zeros for an empty one."""
    counts = sorted(len(row.rendered.tokens) for row in rows)
    n_supervised = sum(row.rendered.n_supervised for row in rows)
    return Lengths(
        name=name,
        n_rows=len(counts),
        shortest=_rank(counts, 0.0),
        median=_rank(counts, 0.5),
        p90=_rank(counts, 0.9),
        longest=_rank(counts, 1.0),
        n_tokens=sum(counts),
        n_supervised=n_supervised,
        supervised_share=round(n_supervised / sum(counts), 4) if counts else 0.0,
    )


def by_split(rows: Sequence[Row]) -> tuple[Lengths, ...]:
    return _grouped(rows, SPLITS, lambda row: row.split)


def by_category(rows: Sequence[Row]) -> tuple[Lengths, ...]:
    return _grouped(rows, sorted({row.example.category for row in rows}), lambda row: row.example.category)


def _grouped(rows: Sequence[Row], names: Sequence[str], group_of: Callable[[Row], str]) -> tuple[Lengths, ...]:
    return tuple(lengths_of(name, [row for row in rows if group_of(row) == name]) for name in names)


def _rank(counts: Sequence[int], share: float) -> int:
    """The nearest-rank percentile of sorted counts."""
    return counts[max(0, math.ceil(share * len(counts)) - 1)] if counts else 0
