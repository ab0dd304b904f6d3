"""One update: a batch in pieces, their gradients added up, clipped, and AdamW."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_map

from mlx_distill import device
from mlx_distill.models.load import Student
from mlx_distill.train.batches import micro_batches
from mlx_distill.train.config import TrainConfig
from mlx_distill.train.metrics import Step
from mlx_distill.train.objectives import Objective
from mlx_distill.train.rows import Rows

SEEDS_A_RUN = 1_000_003
"""Dropout is seeded by run and step, so that a resumed run draws what an uninterrupted one does."""


class Updater:
    """Takes updates over some rows. A forward pass has `micro_tokens` tokens at most."""

    def __init__(
        self, config: TrainConfig, student: Student, objective: Objective, rows: Rows, micro_tokens: int
    ) -> None:
        self.config = config
        self.student = student
        self.objective = objective
        self.rows = rows
        self.lengths = rows.lengths
        self.micro_tokens = micro_tokens
        self.streams = device.streams()
        self.optimizer = optim.AdamW(
            learning_rate=config.learning_rate, weight_decay=config.weight_decay, bias_correction=True
        )
        self._gradient = nn.value_and_grad(student.model, lambda batch: objective.loss(student, batch))

    def take(self, batch: Sequence[int], rate: float, number: int) -> Step:
        """Update number `number` by the rows of `batch`: the summed loss's gradient over its supervised tokens."""
        started = time.perf_counter()
        loss_sum, n_right, n_supervised, n_tokens, n_real = mx.array(0.0), mx.array(0), 0, 0, 0
        gradients: Any = None
        mx.random.seed(self.config.seed * SEEDS_A_RUN + number)
        self.student.model.train()
        pieces = micro_batches(self.lengths, batch, self.micro_tokens, len(self.streams))
        for index, piece in enumerate(pieces):
            padded = self.objective.batch(self.student, [self.rows.rows[row] for row in piece])
            with mx.stream(self.streams[index % len(self.streams)]):
                (loss, correct), gradient = self._gradient(padded)
            gradients = gradient if gradients is None else tree_map(mx.add, gradients, gradient)
            loss_sum, n_right = loss_sum + loss, n_right + correct
            if (index + 1) % len(self.streams) == 0:  # or the activations of all pieces would be alive at once
                mx.eval(loss_sum, n_right, gradients)
            n_supervised += padded.n_supervised
            n_tokens += padded.inputs.size
            n_real += sum(self.lengths[row] for row in piece)
        gradients = tree_map(lambda value: value / n_supervised, gradients)
        gradients, norm = optim.clip_grad_norm(gradients, self.config.clip or math.inf)
        self.optimizer.learning_rate = rate
        self.optimizer.update(self.student.model, gradients)
        mx.eval(loss_sum, n_right, norm, self.student.model.trainable_parameters(), self.optimizer.state)
        self.student.model.eval()
        return Step(
            loss=scalar(loss_sum) / n_supervised,
            accuracy=scalar(n_right) / n_supervised,
            n_supervised=n_supervised,
            n_tokens=n_tokens,
            padding=max(1 - n_real / n_tokens, 0.0),
            gradient_norm=scalar(norm),
            learning_rate=rate,
            seconds=time.perf_counter() - started,
        )


def scalar(value: mx.array) -> float:
    """A 0-d array as a Python number; waits for it."""
    return float(value.item())  # type: ignore[arg-type] # its stub admits complex arrays
