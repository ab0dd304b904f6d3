"""Supervised fine-tuning: the cross-entropy of the teacher's text."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_distill.models.load import Student
from mlx_distill.models.score import Batch, token_losses
from mlx_distill.train.loss import linear_cross_entropy
from mlx_distill.train.objectives.base import Objective


class Sft(Objective):
    """Minimises -log p of each answer token, end tokens included."""

    def loss(self, batch: Batch) -> tuple[mx.array, mx.array, mx.array]:
        """Compute the cross-entropy in chunks if the head is frozen."""
        loss, correct = sft_loss(self.student, batch)
        return loss, correct, loss


def sft_loss(student: Student, batch: Batch) -> tuple[mx.array, mx.array]:
    """Return the summed cross-entropy () and the number of correct predictions ()."""
    hidden = batch.gather(student.hidden(batch.inputs))
    head: nn.Module = getattr(student.head, "__self__", student.head)  # a tied head is a method of the embedding
    if tree_flatten(head.trainable_parameters()):  # the chunked loss has no gradient for the head's weights
        counted = batch.targets >= 0
        losses, correct = token_losses(student.head, hidden, mx.maximum(batch.targets, 0))
        return mx.where(counted, losses, 0.0).sum(), (correct & counted).sum()
    return linear_cross_entropy(student.head, hidden, batch.targets)
