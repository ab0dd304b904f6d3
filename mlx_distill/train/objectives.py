"""What a step minimises: what an objective needs from an example, how rows become a batch, and the loss of a batch.

The loop knows an objective by these three functions alone. It divides the loss by the number of supervised tokens of
the whole update, so that each token weighs the same however rows are batched or accumulated. A row or a batch may be a
subclass that carries more: rows with the teacher's log-probabilities of each token, a batch whose answers the student
itself has just written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_distill.models.load import Head, Student
from mlx_distill.models.score import Batch, pad, token_losses
from mlx_distill.models.tokenize import Rendered, render
from mlx_distill.records import Example
from mlx_distill.train.cross_entropy import linear_cross_entropy

LENGTH_MULTIPLE = 8
"""Batches are padded to a multiple of this, so that few shapes exist and kernels stay aligned."""


@dataclass(frozen=True)
class Objective:
    """One way to learn from examples."""

    row: Callable[[Student, Example], Rendered]
    """What it needs from an example. Done once, before training."""
    batch: Callable[[Student, Sequence[Rendered]], Batch]
    """Rows side by side. Done for each forward pass, with the student as it then is."""
    loss: Callable[[Student, Batch], tuple[mx.array, mx.array]]
    """Loss summed over supervised tokens (), number of them predicted right ()."""


def sft_row(student: Student, example: Example) -> Rendered:
    """The conversation as tokens, the assistant's turns supervised."""
    return render(student.tokenizer, example.messages)


def padded(_student: Student, rows: Sequence[Rendered]) -> Batch:
    """Rows padded to one length."""
    return pad(rows, LENGTH_MULTIPLE)


def sft(student: Student, batch: Batch) -> tuple[mx.array, mx.array]:
    """Supervised fine-tuning on the teacher's text: -log p of each answer token, end token included."""
    hidden = batch.gather(student.hidden(batch.inputs))
    if is_trained(student.head):  # the fused loss has no gradient for the head's own weights
        losses, correct = token_losses(student.head, hidden, batch.targets)
        return losses.sum(), correct.sum()
    return linear_cross_entropy(student.head, hidden, batch.targets)


def is_trained(head: Head) -> bool:
    """True where the head, or the embedding that it is tied to, has weights that training changes."""
    module: nn.Module = getattr(head, "__self__", head)  # a tied head is a method of the embedding
    return bool(tree_flatten(module.trainable_parameters()))


OBJECTIVES: dict[str, Objective] = {"sft": Objective(row=sft_row, batch=padded, loss=sft)}
