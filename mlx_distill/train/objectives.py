"""Training objectives, by name. A new one is an `Objective` and its line in `OBJECTIVES`.

The loop divides the loss by the number of supervised tokens in the whole batch, so each token has the same weight
however rows are batched or accumulated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_distill.models.load import Student
from mlx_distill.models.score import Batch, pad, token_losses
from mlx_distill.models.tokenize import Rendered, render
from mlx_distill.records import Example
from mlx_distill.train.loss import linear_cross_entropy

LENGTH_MULTIPLE = 8
"""Pad batches to a multiple of this: fewer shapes, aligned kernels."""


@dataclass(frozen=True)
class Objective:
    """One way to learn from examples. `tokenize` and `make_batch` may return subclasses that carry more data."""

    tokenize: Callable[[Student, Example], Rendered]
    """Turn an example into tokens and answer mask. Runs once, before training."""
    make_batch: Callable[[Student, Sequence[Rendered]], Batch]
    """Put rows into one batch. Runs before each forward pass, with the student as it is then."""
    loss: Callable[[Student, Batch], tuple[mx.array, mx.array]]
    """Return the loss summed over supervised tokens () and the number of correct predictions ()."""


def tokenize(student: Student, example: Example) -> Rendered:
    """Return the conversation as tokens. The assistant turns are supervised."""
    return render(student.tokenizer, example.messages)


def make_batch(_student: Student, rows: Sequence[Rendered]) -> Batch:
    """Pad rows to one length."""
    return pad(rows, LENGTH_MULTIPLE)


def sft_loss(student: Student, batch: Batch) -> tuple[mx.array, mx.array]:
    """Compute -log p of each answer token of the teacher's text, end tokens included."""
    hidden = batch.gather(student.hidden(batch.inputs))
    head: nn.Module = getattr(student.head, "__self__", student.head)  # a tied head is a method of the embedding
    if tree_flatten(head.trainable_parameters()):  # the chunked loss has no gradient for the head's weights
        losses, correct = token_losses(student.head, hidden, batch.targets)
        return losses.sum(), correct.sum()
    return linear_cross_entropy(student.head, hidden, batch.targets)


OBJECTIVES: Mapping[str, Objective] = {"sft": Objective(tokenize, make_batch, sft_loss)}
