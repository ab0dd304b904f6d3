"""Loss and token accuracy over answer tokens: one definition for training, comparing and fusing.

loss = mean over supervised tokens of -log p(token | tokens before it), natural logarithm, in float32;
token accuracy = fraction of supervised tokens that are the most probable one. The end token of each answer counts.
Prompts and padding never count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

import mlx.core as mx
import numpy as np

from mlx_distill import cpu, device
from mlx_distill.events import Progress, Report, ignore
from mlx_distill.models.load import Head, Student
from mlx_distill.models.tokenize import TokenizedChat

S = TypeVar("S")
T = TypeVar("T")

CHUNK_BYTES = 64 << 20
"""Maximum size of the float32 logits that exist at once. The vocabulary decides how many rows that is."""
BATCH_TOKENS = 1024
"""Tokens, padding included, to score in one forward pass (a longer row is a batch of its own)."""
METAL_CHUNK_BYTES, METAL_BATCH_TOKENS = 256 << 20, 4096
"""The same on Metal: a GPU needs large products to be busy. 64 MiB hold 110 rows of Qwen's vocabulary."""


@dataclass(frozen=True)
class RowScore:
    """The sums of one row."""

    loss_sum: float
    n_correct: int
    n_tokens: int


@dataclass(frozen=True)
class Score:
    """The means over all supervised tokens, and the rows in the order given."""

    loss: float
    token_accuracy: float
    n_rows: int
    n_tokens: int
    rows: tuple[RowScore, ...]


@dataclass(frozen=True)
class Batch:
    """Rows padded to one length, and the positions of their supervised tokens."""

    inputs: mx.array  # (B, T) token ids
    positions: mx.array  # (N,) index into B*T of the hidden state that predicts each supervised token
    targets: mx.array  # (N,) the supervised tokens, row after row
    tokens_of_row: tuple[int, ...]

    def gather(self, hidden: mx.array) -> mx.array:
        """Select the (N, D) hidden states that predict a supervised token from all (B, T, D)."""
        return hidden.reshape(-1, hidden.shape[-1])[self.positions]

    @property
    def n_supervised(self) -> int:
        return sum(self.tokens_of_row)

    @property
    def row_slices(self) -> list[slice]:
        """The supervised tokens of each row, as a slice of `targets`."""
        ends = accumulate(self.tokens_of_row)
        return [slice(end - count, end) for end, count in zip(ends, self.tokens_of_row, strict=True)]


def score(
    student: Student,
    rows: Sequence[TokenizedChat],
    report: Report = ignore,
    job: str = "score",
    *,
    batch_tokens: int = BATCH_TOKENS,
    chunk_bytes: int = CHUNK_BYTES,
) -> Score:
    """Score every row with the student as it is (adapter on or off)."""
    groups = make_batches([len(row.tokens) for row in rows], batch_tokens)
    batches = [pad([rows[index] for index in indices]) for indices in groups]

    def losses_of(batch: Batch) -> tuple[mx.array, mx.array]:
        return token_losses(student.head, batch.gather(student.hidden(batch.inputs)), batch.targets, chunk_bytes)

    scores: dict[int, RowScore] = {}
    report(Progress(job, 0, len(rows), "rows"))
    for indices, batch, result in zip(groups, batches, map_batches(batches, losses_of), strict=True):
        losses, correct = np.array(result[0], dtype=np.float64), np.array(result[1])
        for index, tokens, count in zip(indices, batch.row_slices, batch.tokens_of_row, strict=True):
            scores[index] = RowScore(float(losses[tokens].sum()), int(correct[tokens].sum()), count)
        report(Progress(job, len(scores), len(rows), "rows"))
    return total([scores[index] for index in range(len(rows))])


def total(rows: Sequence[RowScore]) -> Score:
    """Return the score of all rows together. Each token has the same weight."""
    n_tokens = sum(row.n_tokens for row in rows)
    if not n_tokens:
        return Score(float("nan"), float("nan"), len(rows), 0, tuple(rows))
    loss = sum(row.loss_sum for row in rows) / n_tokens
    accuracy = sum(row.n_correct for row in rows) / n_tokens
    return Score(loss, accuracy, len(rows), n_tokens, tuple(rows))


def map_batches(batches: Sequence[S], compute: Callable[[S], T]) -> Iterator[T]:
    """Yield `compute(batch)` for each batch in order, evaluated, with one batch per stream at the same time."""
    streams = device.streams()
    for start in range(0, len(batches), len(streams)):
        results = []
        with cpu.shared_cores(len(streams)):
            for stream, batch in zip(streams, batches[start : start + len(streams)], strict=False):
                with mx.stream(stream):
                    results.append(compute(batch))
            mx.eval(results)
        yield from results


def pad(rows: Sequence[TokenizedChat], multiple: int = 1, pad_token: int = 0) -> Batch:
    """Pad rows on the right to one length, rounded up to a multiple of `multiple`.

    Causal attention never sees padding on the right. The last supervised token is only a target: it is not an input.
    """
    ends = [max(index for index, supervised in enumerate(row.mask) if supervised) for row in rows]
    length = round_up(max(max(ends), 1), multiple)
    inputs = np.full((len(rows), length), pad_token, dtype=np.int32)
    positions: list[int] = []
    targets: list[int] = []
    for number, (row, end) in enumerate(zip(rows, ends, strict=True)):
        inputs[number, :end] = row.tokens[:end]
        for index in range(1, end + 1):
            if row.mask[index]:
                positions.append(number * length + index - 1)
                targets.append(row.tokens[index])
    counts = tuple(row.n_targets for row in rows)
    return Batch(mx.array(inputs), mx.array(positions), mx.array(targets), counts)


def round_up(number: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is not less than `number`."""
    return -(-number // multiple) * multiple


def chunk_limit() -> int:
    """Return the maximum bytes of float32 logits at once on this device."""
    return METAL_CHUNK_BYTES if device.prepare().kind == "metal" else CHUNK_BYTES


def make_batches(lengths: Sequence[int], batch_tokens: int = 0) -> list[list[int]]:
    """Group row indices by length into batches of about `batch_tokens` tokens (0: what suits the device).

    Batches that run at the same time have the same size: otherwise all streams wait for the largest one.
    """
    n_streams = len(device.streams())
    batch_tokens = batch_tokens or (METAL_BATCH_TOKENS if device.prepare().kind == "metal" else BATCH_TOKENS)
    groups: list[list[int]] = []
    for together in batches_by_length(lengths, batch_tokens * n_streams):
        size = math.ceil(len(together) / n_streams)
        groups += [together[start : start + size] for start in range(0, len(together), size)]
    return groups


def batches_by_length(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Group indices by length so that each padded group fits the budget (a longer row is a group of its own)."""
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if groups and (len(groups[-1]) + 1) * lengths[index] <= token_budget:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def token_losses(head: Head, hidden: mx.array, targets: mx.array, chunk_bytes: int = 0) -> tuple[mx.array, mx.array]:
    """Return the cross-entropy and correctness of each token. Logits exist for one chunk of rows at a time.

    hidden (N, D), targets (N,) -> losses (N,) float32, correct (N,) bool.
    """

    def compute(hidden: mx.array, targets: mx.array) -> tuple[mx.array, ...]:
        logits = head(hidden).astype(mx.float32)
        target = mx.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
        return mx.logsumexp(logits, axis=-1) - target, target >= logits.max(axis=-1)

    losses, correct = map_chunks(compute, [hidden, targets], vocabulary_of(head, hidden), chunk_bytes)
    return losses, correct


def map_chunks(
    compute: Callable[..., Sequence[mx.array]], arrays: Sequence[mx.array], vocabulary: int, chunk_bytes: int = 0
) -> tuple[mx.array, ...]:
    """Apply `compute` to chunks of the rows of all arrays (N, ...), and join its results (n, ...).

    Chunks are computed one after another: otherwise the logits of all rows exist at once. See `chunks`.
    """
    parts: list[list[mx.array]] = []
    for rows in chunks(arrays[0].shape[0], vocabulary, chunk_bytes):
        part = [values[rows] for values in arrays]
        if parts:
            part = mx.depends(part, parts[-1])
        parts.append(list(compute(*part)))
    return tuple(mx.concatenate(list(values)) for values in zip(*parts, strict=True))


def chunks(n_rows: int, vocabulary: int, chunk_bytes: int = 0) -> list[slice]:
    """Return slices of rows whose float32 logits fit `chunk_bytes` (0: the device's), with at least 16 rows each."""
    step = max((chunk_bytes or chunk_limit()) // (4 * vocabulary), 16)
    return [slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step)]


def vocabulary_of(head: Head, hidden: mx.array) -> int:
    """Return the number of logits per token. Nothing is computed: the shape is enough."""
    return int(head(hidden[:1]).shape[-1])
