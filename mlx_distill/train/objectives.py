"""Training objectives, by name. A new one is an `Objective` and its line in `OBJECTIVES`.

The loop divides the loss by the number of supervised tokens in the whole batch, so each token has the same weight
however rows are batched or accumulated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_distill.models.load import Student
from mlx_distill.models.score import Batch, pad, token_losses
from mlx_distill.models.tokenize import TokenizedChat, render
from mlx_distill.records import Example
from mlx_distill.train.loss import linear_cross_entropy


@dataclass(frozen=True)
class Objective:
    """One way to learn from examples. `tokenize` and `make_batch` may return subclasses that carry more data."""

    tokenize: Callable[[Student, Example], TokenizedChat]
    """Turn an example into tokens and answer mask. Runs once, before training."""
    make_batch: Callable[[Student, Sequence[TokenizedChat], int], Batch]
    """Put rows into one batch. Runs before each forward pass, with the student as it is then.

    The lengths of all arrays are multiples of the number given, so that there are few shapes to compile.
    """
    loss: Callable[[Student, Batch], tuple[mx.array, mx.array]]
    """Return the loss summed over supervised tokens () and the number of correct predictions ().

    May be compiled, so it uses nothing but the arrays of a batch. A target below 0 is padding and does not count.
    """


def tokenize(student: Student, example: Example) -> TokenizedChat:
    """Return the conversation as tokens. The assistant turns are supervised."""
    return render(student.tokenizer, example.messages)


def make_batch(_student: Student, rows: Sequence[TokenizedChat], length_multiple: int) -> Batch:
    """Pad rows to one length."""
    return pad(rows, length_multiple)


def pad_targets(batch: Batch) -> Batch:
    """Pad the supervised positions to a quarter, a half, three quarters or all of the inputs, with the target -1."""
    quarter = -(-batch.inputs.size // 4)
    n_padding = -batch.targets.size % quarter
    return replace(
        batch,
        positions=mx.pad(batch.positions, (0, n_padding)),
        targets=mx.pad(batch.targets, (0, n_padding), constant_values=mx.array(-1, batch.targets.dtype)),
    )


def sft_loss(student: Student, batch: Batch) -> tuple[mx.array, mx.array]:
    """Compute -log p of each answer token of the teacher's text, end tokens included."""
    hidden = batch.gather(student.hidden(batch.inputs))
    head: nn.Module = getattr(student.head, "__self__", student.head)  # a tied head is a method of the embedding
    if tree_flatten(head.trainable_parameters()):  # the chunked loss has no gradient for the head's weights
        counted = batch.targets >= 0
        losses, correct = token_losses(student.head, hidden, mx.maximum(batch.targets, 0))
        return mx.where(counted, losses, 0.0).sum(), (correct & counted).sum()
    return linear_cross_entropy(student.head, hidden, batch.targets)


OBJECTIVES: Mapping[str, Objective] = {"sft": Objective(tokenize, make_batch, sft_loss)}
