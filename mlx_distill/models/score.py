"""Loss and token accuracy over answer tokens: one definition for training, comparison and export.

loss = mean over supervised tokens of -log p(token | tokens before it), natural logarithm, in float32;
token accuracy = share of supervised tokens that are the most probable one. The end token of each answer counts,
prompts and padding never do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import mlx.core as mx
import numpy as np

from mlx_distill import cpu, device
from mlx_distill.events import Progress, Report, ignore
from mlx_distill.models.load import Head, Student
from mlx_distill.models.tokenize import Rendered

Made = TypeVar("Made")

CHUNK_BYTES = 64 << 20
"""Float32 logits that may exist at once; the vocabulary decides how many rows that is."""
TOKENS_A_BATCH = 1024
"""Tokens, padding included, that are scored in one forward pass, more or less a row."""


@dataclass(frozen=True)
class RowScore:
    """The sums of one row."""

    loss_sum: float
    n_correct: int
    n_tokens: int


@dataclass(frozen=True)
class Score:
    """The means over all supervised tokens of all rows, and the rows they come from, in the order given."""

    loss: float
    token_accuracy: float
    n_rows: int
    n_tokens: int
    rows: tuple[RowScore, ...]


def score(student: Student, rows: Sequence[Rendered], report: Report = ignore, job: str = "score") -> Score:
    """Score every row with the student as it is (adapter on or off)."""
    groups = passes([len(row.tokens) for row in rows])
    batches = [pad([rows[index] for index in indices]) for indices in groups]

    def losses_of(batch: Batch) -> tuple[mx.array, mx.array]:
        return token_losses(student.head, batch.gather(student.hidden(batch.inputs)), batch.targets)

    scores: dict[int, RowScore] = {}
    report(Progress(job, 0, len(rows), "rows"))
    for indices, batch, result in zip(groups, batches, computed(batches, losses_of), strict=True):
        scores.update(zip(indices, _by_row(batch, *result), strict=True))
        report(Progress(job, len(scores), len(rows), "rows"))
    return total([scores[index] for index in range(len(rows))])


def computed(batches: Sequence[Batch], make: Callable[[Batch], Made]) -> Iterator[Made]:
    """`make(batch)` of each batch in order, evaluated; as many at the same time as the machine has streams."""
    streams = device.streams()
    for start in range(0, len(batches), len(streams)):
        results = []
        with cpu.shared_cores(len(streams)):
            for stream, batch in zip(streams, batches[start : start + len(streams)], strict=False):
                with mx.stream(stream):
                    results.append(make(batch))
            mx.eval(results)
        yield from results


def _by_row(batch: Batch, losses: mx.array, correct: mx.array) -> list[RowScore]:
    """The sums of each row of a batch, in float64."""
    loss_of, correct_of = np.array(losses, dtype=np.float64), np.array(correct)
    ends = np.cumsum(batch.tokens_of_row)
    return [
        RowScore(float(loss_of[end - n : end].sum()), int(correct_of[end - n : end].sum()), n)
        for end, n in zip(ends, batch.tokens_of_row, strict=True)
    ]


def total(rows: Sequence[RowScore]) -> Score:
    """The score of some rows together, each token weighing the same."""
    n_tokens = sum(row.n_tokens for row in rows)
    if not n_tokens:
        return Score(float("nan"), float("nan"), len(rows), 0, tuple(rows))
    loss = sum(row.loss_sum for row in rows) / n_tokens
    accuracy = sum(row.n_correct for row in rows) / n_tokens
    return Score(loss, accuracy, len(rows), n_tokens, tuple(rows))


@dataclass(frozen=True)
class Batch:
    """Rows padded to one length, and where their supervised tokens are."""

    inputs: mx.array  # (B, T) token ids
    positions: mx.array  # (N,) index into B*T of the hidden state that predicts each supervised token
    targets: mx.array  # (N,) the supervised tokens, row after row
    tokens_of_row: tuple[int, ...]

    def gather(self, hidden: mx.array) -> mx.array:
        """(B, T, D) hidden states to the (N, D) that predict a supervised token."""
        return hidden.reshape(-1, hidden.shape[-1])[self.positions]

    @property
    def n_supervised(self) -> int:
        return sum(self.tokens_of_row)


def pad(rows: Sequence[Rendered], multiple: int = 1, pad_token: int = 0) -> Batch:
    """Put rows side by side. The last supervised token is only ever a target, so it needs no input position.

    Padding stands to the right, where causal attention never looks back from; `multiple` rounds the length up.
    """
    ends = [max(index for index, supervised in enumerate(row.mask) if supervised) for row in rows]
    length = -(-max(max(ends), 1) // multiple) * multiple
    inputs = np.full((len(rows), length), pad_token, dtype=np.int32)
    positions: list[int] = []
    targets: list[int] = []
    for number, (row, end) in enumerate(zip(rows, ends, strict=True)):
        inputs[number, :end] = row.tokens[:end]
        for index in range(1, end + 1):
            if row.mask[index]:
                positions.append(number * length + index - 1)
                targets.append(row.tokens[index])
    counts = tuple(sum(row.mask[1:]) for row in rows)
    return Batch(mx.array(inputs), mx.array(positions), mx.array(targets), counts)


def batches_by_length(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Indices in groups of similar length whose padded size stays within the budget (a longer row stands alone)."""
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if groups and (len(groups[-1]) + 1) * lengths[index] <= token_budget:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def passes(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of rows of like length in groups of about TOKENS_A_BATCH tokens, one forward pass each.

    What the machine's streams compute at the same time is of one size, or all would wait for the longest.
    """
    n_streams = len(device.streams())
    groups: list[list[int]] = []
    for together in batches_by_length(lengths, TOKENS_A_BATCH * n_streams):
        size = -(-len(together) // n_streams)
        groups += [together[start : start + size] for start in range(0, len(together), size)]
    return groups


def token_losses(head: Head, hidden: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
    """Cross-entropy and correctness of each token, logits made and dropped in chunks of rows.

    hidden (N, D), targets (N,) -> losses (N,) float32, correct (N,) bool.
    """
    losses: list[mx.array] = []
    correct: list[mx.array] = []
    for rows in chunks(hidden.shape[0], vocabulary_of(head, hidden)):
        part = hidden[rows]
        if losses:  # one chunk after another, or all their logits would exist at once
            part = mx.depends(part, losses[-1])
        logits = head(part).astype(mx.float32)
        target = mx.take_along_axis(logits, targets[rows][:, None], axis=-1)[:, 0]
        losses.append(mx.logsumexp(logits, axis=-1) - target)
        correct.append(target >= logits.max(axis=-1))
    return mx.concatenate(losses), mx.concatenate(correct)


def chunks(n_rows: int, vocabulary: int) -> list[slice]:
    """Slices of rows whose float32 logits fit CHUNK_BYTES."""
    step = max(CHUNK_BYTES // (4 * vocabulary), 16)
    return [slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step)]


def vocabulary_of(head: Head, hidden: mx.array) -> int:
    """The head's width, from its shape alone: nothing is computed."""
    return int(head(hidden[:1]).shape[-1])
