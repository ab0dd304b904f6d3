"""One training step: forward and backward over the micro-batches of a batch, gradient clipping, AdamW."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import msgspec
from mlx.utils import tree_map

from mlx_distill.models.load import Student
from mlx_distill.train.config import TrainConfig
from mlx_distill.train.data import Rows, micro_batches
from mlx_distill.train.objectives import Objective

SEED_STRIDE = 1_000_003
"""Dropout is seeded by run and step, so a resumed run draws what an uninterrupted one draws."""


class StepMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one step, named as in metrics.jsonl."""

    learning_rate: float
    train_loss: float
    train_accuracy: float
    supervised_tokens: int
    tokens: int
    """Computed input tokens, padding included."""
    supervised_tokens_per_second: float
    tokens_per_second: float
    padding: float
    """Fraction of `tokens` that is padding."""
    gradient_norm: float
    """Before clipping."""
    step_seconds: float


@dataclass
class TrainStep:
    """Takes training steps over some rows. Micro-batches go to the streams in turn, which run in parallel."""

    config: TrainConfig
    student: Student
    objective: Objective
    rows: Rows
    micro_batch_tokens: int
    """The most tokens in a forward pass."""
    streams: Sequence[mx.Stream]

    def __post_init__(self) -> None:
        config, student, loss = self.config, self.student, self.objective.loss
        self.lengths = self.rows.lengths
        self.optimizer = optim.AdamW(
            learning_rate=config.learning_rate, weight_decay=config.weight_decay, bias_correction=True
        )
        # No reference to `self`: a cycle would keep the model in memory after the run.
        self._value_and_grad = nn.value_and_grad(student.model, lambda batch: loss(student, batch))

    def step(self, batch: Sequence[int], learning_rate: float, number: int) -> StepMetrics:
        """Take step `number` over the rows of `batch`, with the gradient of the mean loss of a supervised token."""
        started = time.perf_counter()
        loss_sum, n_correct, n_supervised, n_tokens = mx.array(0.0), mx.array(0), 0, 0
        gradients: Any = None
        mx.random.seed(self.config.seed * SEED_STRIDE + number)
        self.student.model.train()
        for index, rows in enumerate(micro_batches(self.lengths, batch, self.micro_batch_tokens, len(self.streams))):
            micro_batch = self.objective.make_batch(self.student, [self.rows.rows[row] for row in rows])
            with mx.stream(self.streams[index % len(self.streams)]):
                (loss, correct), gradient = self._value_and_grad(micro_batch)
            gradients = gradient if gradients is None else tree_map(mx.add, gradients, gradient)
            loss_sum, n_correct = loss_sum + loss, n_correct + correct
            if (index + 1) % len(self.streams) == 0:  # or the activations of all micro-batches exist together
                mx.eval(loss_sum, n_correct, gradients)
            n_supervised += micro_batch.n_supervised
            n_tokens += micro_batch.inputs.size
        norm = self._update(tree_map(lambda value: value / n_supervised, gradients), learning_rate)
        mx.eval(loss_sum, n_correct, norm, self.student.model.trainable_parameters(), self.optimizer.state)
        self.student.model.eval()
        seconds = time.perf_counter() - started
        return StepMetrics(
            learning_rate=learning_rate,
            train_loss=scalar(loss_sum) / n_supervised,
            train_accuracy=scalar(n_correct) / n_supervised,
            supervised_tokens=n_supervised,
            tokens=n_tokens,
            supervised_tokens_per_second=n_supervised / seconds,
            tokens_per_second=n_tokens / seconds,
            padding=max(1 - sum(self.lengths[row] for row in batch) / n_tokens, 0.0),
            gradient_norm=scalar(norm),
            step_seconds=seconds,
        )

    def _update(self, gradients: Any, learning_rate: float) -> mx.array:
        """Clip the gradients and update the weights. Return the norm before clipping."""
        norm: mx.array
        gradients, norm = optim.clip_grad_norm(gradients, self.config.max_grad_norm or math.inf)
        self.optimizer.learning_rate = learning_rate
        self.optimizer.update(self.student.model, gradients)
        return norm


def scalar(value: mx.array) -> float:
    """Return a 0-d array as a number."""
    return float(value.item())  # type: ignore[arg-type] # the stub of `item` includes complex numbers
