"""Rows to updates: every row once an epoch, rows of like length together, in an order that the seed decides."""

from __future__ import annotations

import random
from collections.abc import Sequence

from mlx_distill.models.score import batches_by_length

LENGTH_JITTER = 0.1
"""Lengths are multiplied by up to this much more before sorting, so that batches differ from epoch to epoch."""


def epoch_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Row indices of each update of an epoch, a function of its arguments alone (so a resumed run repeats it).

    Rows are sorted by jittered length and cut into batches; the batches come in random order. The remainder is a
    batch of its own.
    """
    order = random.Random(f"{seed}/{epoch}")
    jittered = [length * (1 + LENGTH_JITTER * order.random()) for length in lengths]
    by_length = sorted(range(len(lengths)), key=lambda index: jittered[index])
    batches = [by_length[start : start + batch_size] for start in range(0, len(by_length), batch_size)]
    order.shuffle(batches)
    return batches


def micro_batches(lengths: Sequence[int], batch: Sequence[int], token_budget: int, at_once: int) -> list[list[int]]:
    """A batch cut into pieces of rows of like length: as many as run at the same time, more where a forward pass
    would hold more padded tokens than the budget (a longer row stands alone)."""
    rows = sorted(batch, key=lambda row: lengths[row])
    pieces: list[list[int]] = []
    size = -(-len(rows) // min(at_once, len(rows)))
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        pieces += [
            [part[i] for i in group] for group in batches_by_length([lengths[row] for row in part], token_budget)
        ]
    return pieces


def padding_share(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """Share of the tokens computed that are padding."""
    padded = sum(max(lengths[row] for row in batch) * len(batch) for batch in batches)
    return 1 - sum(lengths[row] for batch in batches for row in batch) / padded
