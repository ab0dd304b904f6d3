"""One training step: forward and backward over the micro-batches of a batch, gradient clipping, AdamW."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import msgspec
from mlx.utils import tree_flatten, tree_map

from mlx_distill.models.score import Batch
from mlx_distill.train.data import Rows, micro_batches
from mlx_distill.train.execution import Execution
from mlx_distill.train.objectives.base import Objective

Sums = tuple[mx.array, mx.array, mx.array]
"""Loss (), number of correct predictions () and cross-entropy (), summed over supervised tokens."""
GradientFunction = Callable[[Batch, Any, mx.Stream], tuple[Sums, Any]]
"""Micro-batch, gradients so far or None, stream -> its sums, gradients so far."""
UpdateFunction = Callable[[Any, mx.array], mx.array]
"""Summed gradients, number of supervised tokens () -> gradient norm () before clipping. Changes the weights."""


class StepMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one step, named as in metrics.jsonl."""

    learning_rate: float
    train_loss: float
    train_accuracy: float
    train_cross_entropy: float
    """The same as the loss of sft. On the student's own text it estimates the student's entropy."""
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
    figures: Mapping[str, float]
    """Figures of the objective's own."""


@dataclass
class TrainStep:
    """Takes training steps over some rows, after `optimizer.init` or `load_checkpoint`."""

    objective: Objective
    rows: Rows
    micro_batch_tokens: int
    """The most tokens in a forward pass."""
    execution: Execution

    def __post_init__(self) -> None:
        self.config = config = self.objective.config
        self.student = self.objective.student
        self.optimizer = optim.AdamW(
            learning_rate=config.learning_rate, weight_decay=config.weight_decay, bias_correction=True
        )

    def step(self, batch: Sequence[int], learning_rate: float, number: int) -> StepMetrics:
        """Take step `number` over the rows of `batch`, with the gradient of the mean loss of a supervised token."""
        started = time.perf_counter()
        gradient_of, update = self._functions
        streams, compiled = self.execution.streams, self.execution.compiled
        sums: Sums = (mx.array(0.0), mx.array(0), mx.array(0.0))
        n_supervised = n_tokens = 0
        gradients: Any = None
        rows = self.objective.rows_for_step([self.rows.chats[row] for row in batch], number)
        mx.random.seed(self.config.step_seed(number))
        self.student.model.train()
        lengths = [len(row.tokens) for row in rows]
        parts = micro_batches(lengths, range(len(rows)), self.micro_batch_tokens, len(streams))
        for index, part in enumerate(parts, 1):
            micro_batch = self.objective.make_batch([rows[row] for row in part], self.execution.length_multiple)
            more, gradients = gradient_of(micro_batch, gradients, streams[(index - 1) % len(streams)])
            sums = (sums[0] + more[0], sums[1] + more[1], sums[2] + more[2])
            every_stream_has_one = index % len(streams) == 0
            computed_with_the_update = compiled and index == len(parts)
            if every_stream_has_one and not computed_with_the_update:
                mx.eval(sums, gradients)  # or the activations of all micro-batches exist together
            n_supervised += micro_batch.n_supervised
            n_tokens += micro_batch.inputs.size
        self.optimizer.learning_rate = learning_rate
        norm = update(gradients, mx.array(float(n_supervised)))
        mx.eval(sums, norm, self.student.model.trainable_parameters(), self.optimizer.state)
        self.student.model.eval()
        seconds = time.perf_counter() - started
        return StepMetrics(
            learning_rate=learning_rate,
            train_loss=scalar(sums[0]) / n_supervised,
            train_accuracy=scalar(sums[1]) / n_supervised,
            train_cross_entropy=scalar(sums[2]) / n_supervised,
            supervised_tokens=n_supervised,
            tokens=n_tokens,
            supervised_tokens_per_second=n_supervised / seconds,
            tokens_per_second=n_tokens / seconds,
            padding=max(1 - sum(lengths) / n_tokens, 0.0),
            gradient_norm=scalar(norm),
            step_seconds=seconds,
            figures=self.objective.figures,
        )

    @property
    def largest_micro_batch(self) -> int:
        """Tokens of the largest micro-batch, without padding."""
        longest = [len(row.tokens) for row in self.objective.largest_step(self.rows.chats)]
        return max(max(longest), min(sum(longest), self.micro_batch_tokens))

    @cached_property
    def _functions(self) -> tuple[GradientFunction, UpdateFunction]:
        """Made at the first step: compiled functions keep the optimizer's state, which resuming replaces.

        They do not refer to `self`: a cycle would keep the model in memory after the run.
        """
        compiled, max_norm = self.execution.compiled, self.config.max_grad_norm or math.inf
        gradient, update = (compiled_gradient, compiled_update) if compiled else (eager_gradient, eager_update)
        sum_at_once = self.config.method != "full"
        return gradient(self.objective), update(self.student.model, self.optimizer, max_norm, sum_at_once=sum_at_once)


def eager_gradient(objective: Objective) -> GradientFunction:
    """Make the gradient function that computes operation by operation."""
    value_and_grad = nn.value_and_grad(objective.student.model, objective.loss)

    def gradient_of(batch: Batch, previous: Any, stream: mx.Stream) -> tuple[Sums, Any]:
        with mx.stream(stream):
            sums, gradients = value_and_grad(batch)
        return sums, gradients if previous is None else tree_map(mx.add, previous, gradients)

    return gradient_of


def compiled_gradient(objective: Objective) -> GradientFunction:
    """Make the gradient function that MLX compiles once for each padded shape."""
    value_and_grad = nn.value_and_grad(objective.student.model, objective.loss)
    template: Batch | None = None
    # Dropout draws from the random state. The model is an output too, because the trace puts its placeholders there.
    state = [objective.student.model.state, mx.random.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def compiled(arrays: dict[str, mx.array], previous: Any) -> tuple[Sums, Any]:
        # A compiled function sees Python values of the first call only. Counts of another batch would be wrong.
        assert template is not None
        batch = replace(template, **arrays, tokens_of_row=())
        sums, gradients = value_and_grad(batch)
        return sums, gradients if previous is None else tree_map(mx.add, previous, gradients)

    def gradient_of(batch: Batch, previous: Any, stream: mx.Stream) -> tuple[Sums, Any]:
        nonlocal template
        template = template or batch
        with mx.stream(stream):
            sums, gradients = compiled(arrays_of(pad_targets(batch)), previous)
        return sums, gradients

    return gradient_of


def pad_targets(batch: Batch) -> Batch:
    """Pad the supervised positions to a quarter, a half, three quarters or all of the inputs, with the target -1."""
    quarter = math.ceil(batch.inputs.size / 4)
    n_padding = -batch.targets.size % quarter
    padded: dict[str, Any] = {
        name: mx.pad(values, [(0, n_padding), *[(0, 0)] * (values.ndim - 1)])
        for name, values in arrays_of(batch).items()
        if name != "inputs"
    }
    padded["targets"] = mx.where(mx.arange(padded["targets"].size) < batch.targets.size, padded["targets"], -1)
    return replace(batch, **padded)


def arrays_of(batch: Batch) -> dict[str, mx.array]:
    """Return the arrays of a batch by name."""
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: value for name, value in values.items() if isinstance(value, mx.array)}


def eager_update(model: nn.Module, optimizer: optim.Optimizer, max_norm: float, *, sum_at_once: bool) -> UpdateFunction:
    """Make the update that computes operation by operation: clip the gradients, take a step of the optimizer.

    Clips as mlx.optimizers.clip_grad_norm, but multiplies each gradient only once. `sum_at_once` computes the norm
    from one copy of all gradients: fewer kernels, more memory.
    """

    def update(gradients: Any, n_supervised: mx.array) -> mx.array:
        values = [value for _, value in tree_flatten(gradients)]
        if sum_at_once:
            square = mx.concatenate([value.flatten() for value in values]).square().sum()
        else:
            square = sum((value.square().sum() for value in values), mx.array(0.0))
        norm = mx.sqrt(square) / n_supervised
        factor = mx.minimum(max_norm / (norm + 1e-6), 1.0) / n_supervised
        optimizer.update(model, tree_map(lambda value: value * factor, gradients))
        return norm

    return update


def compiled_update(
    model: nn.Module, optimizer: optim.Optimizer, max_norm: float, *, sum_at_once: bool
) -> UpdateFunction:
    """Make the same update compiled: about two kernels for each tensor (`scripts/bench/kernels.py`).

    The results are those of the eager update, bit for bit, if the compiler does not fuse multiplications and additions.
    """
    state = [model.state, optimizer.state]
    eager = eager_update(model, optimizer, max_norm, sum_at_once=sum_at_once)
    update: UpdateFunction = mx.compile(eager, state, state)
    return update


def scalar(value: mx.array) -> float:
    """Return a 0-d array as a number."""
    return float(value.item())  # type: ignore[arg-type] # the stub of `item` includes complex numbers
