"""Estimate the peak memory of training before its first step, and choose the largest micro-batches that fit.

Peak = frozen weights + trained weights with their gradients and AdamW's two moments + activations kept for the backward
pass of the micro-batches that run at the same time + the loss (the vocabulary term), for the step with the longest
rows. The factors were fitted to measured peaks: `scripts/bench/memory.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlx.utils import tree_flatten

from mlx_distill.errors import MachineError
from mlx_distill.formatting import format_bytes
from mlx_distill.models.load import Student, weight_bytes
from mlx_distill.models.score import chunk_limit, round_up
from mlx_distill.models.tokenize import TokenizedChat
from mlx_distill.train.config import TrainConfig
from mlx_distill.train.cpu_kernels import QUERY_BLOCK, has_fast_layers
from mlx_distill.train.data import micro_batches
from mlx_distill.train.execution import Execution
from mlx_distill.train.lora import CastLoRALinear
from mlx_distill.train.objectives.base import Objective

MAX_TOKENS, MIN_TOKENS = 4096, 256
"""Bounds of the chosen micro-batch tokens. More than 4096 makes a step no faster."""
USABLE_FRACTION = 0.8
"""The estimate may fill this fraction of the device's memory: it can be 25 % too low."""
FLOAT32_BYTES = 4

# Copies of a tensor at the peak, fitted to measurements.
TRAINED_LOW_RANK = 4
"""Weight, gradient, two moments."""
TRAINED_FULL = 7
"""The same, and AdamW's temporary arrays over all weights."""
HIDDEN, INNER, SCORES = 8, 4, 2
"""Copies of the hidden states, the inner states of the MLP and the attention scores, in each layer."""
LOGITS, LOGITS_16_BITS = 3, 4
"""Float32 copies of the logits. With 16-bit weights, logits and their gradient exist in 16 bits too."""
RECOMPUTED = 1 / 3
"""The fraction of one layer that gradient checkpointing adds to the loss."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes at the peak of a step, by use."""

    weights: int
    """Frozen weights, those of a teacher included."""
    trained: int
    """Trained weights, gradients and optimiser state."""
    activations: int
    loss: int

    @property
    def total(self) -> int:
        return self.weights + self.trained + self.activations + self.loss

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {format_bytes(count)}" for name, count in vars(self).items())
        return f"{format_bytes(self.total)} ({parts})"


@dataclass(frozen=True)
class MemoryPlan:
    """Tokens of a micro-batch, and what training is expected to take."""

    micro_batch_tokens: int
    estimate: MemoryEstimate | None
    """None for an unknown architecture."""
    fits: bool = True


def check_weights_fit(config: TrainConfig, itemsize: int, usable_bytes: int) -> None:
    """Raise MachineError if the weights alone do not fit, `itemsize` bytes for a float. Does not read the weights."""
    needed = weight_bytes(config.model, itemsize)
    if needed > USABLE_FRACTION * usable_bytes:
        raise _does_not_fit(f"{format_bytes(needed)} for the weights alone", usable_bytes, config)


def make_plan(
    objective: Objective, rows: Sequence[TokenizedChat], execution: Execution, usable_bytes: int
) -> MemoryPlan:
    """Choose the largest micro-batches whose estimate fits, after `make_trainable`. The user's own are always kept.

    Raises MachineError with advice if even the smallest micro-batches do not fit.
    """
    config, student = objective.config, objective.student
    tokens = config.micro_batch_tokens or MAX_TOKENS
    if not {"hidden_size", "intermediate_size", "num_attention_heads", "vocab_size"} <= set(student.config):
        return MemoryPlan(tokens, None)
    while True:
        needed = estimate_memory(objective, rows, tokens, execution)
        fits = needed.total <= USABLE_FRACTION * usable_bytes
        if fits or config.micro_batch_tokens:
            return MemoryPlan(tokens, needed, fits)
        if tokens <= MIN_TOKENS:
            raise _does_not_fit(str(needed), usable_bytes, config)
        tokens //= 2


def estimate_memory(
    objective: Objective, rows: Sequence[TokenizedChat], max_tokens: int, execution: Execution
) -> MemoryEstimate:
    """Estimate the peak if a micro-batch of at most `max_tokens` tokens runs on each stream at the same time."""
    config, student = objective.config, objective.student
    multiple, n_streams = execution.length_multiple, len(execution.streams)
    rows = objective.largest_step(rows)
    lengths = [round_up(len(row.tokens), multiple) for row in rows]
    batches = [
        _MicroBatch(len(group), lengths[group[-1]], sum(rows[index].n_supervised for index in group))
        for group in micro_batches(lengths, range(len(rows)), max_tokens, n_streams)
    ]
    together = [batches[start : start + n_streams] for start in range(0, len(batches), n_streams)]
    activations, loss = max((_activations_and_loss(objective, parallel) for parallel in together), key=sum)
    trained = [value for _, value in tree_flatten(student.model.trainable_parameters())]
    copies = TRAINED_FULL if config.method == "full" else TRAINED_LOW_RANK
    all_bytes = sum(value.nbytes for _, value in tree_flatten(student.model.parameters()))
    return MemoryEstimate(
        weights=all_bytes - sum(value.nbytes for value in trained) + objective.teacher_bytes,
        trained=copies * FLOAT32_BYTES * sum(value.size for value in trained),
        activations=max(activations, objective.rollout_bytes(rows)),
        loss=loss,
    )


@dataclass(frozen=True)
class _MicroBatch:
    """The size of a micro-batch."""

    n_rows: int
    length: int
    """Padded tokens of a row."""
    n_supervised: int


def _activations_and_loss(objective: Objective, together: Sequence[_MicroBatch]) -> tuple[int, int]:
    """Return the bytes of activations and loss for micro-batches that run at the same time."""
    student = objective.student
    n_layers, itemsize = len(student.model.layers), student.dtype.size
    layer = sum(part.n_rows * part.length * itemsize * _layer_width(student, part.length) for part in together)
    loss = sum(_loss_bytes(objective, part.n_supervised) for part in together)
    if not objective.config.grad_checkpoint:
        return n_layers * layer, loss
    # Each layer's input, and after the loss one layer at a time.
    inputs = sum(part.n_rows * part.length for part in together) * itemsize * student.config["hidden_size"]
    return int(n_layers * inputs + max(layer - loss, RECOMPUTED * layer)), loss


def _layer_width(student: Student, length: int) -> int:
    """Return the numbers that one layer keeps of each token in a row of `length` tokens for the backward pass."""
    sizes = student.config
    width = HIDDEN * sizes["hidden_size"] + INNER * sizes["intermediate_size"]
    scores = (length + QUERY_BLOCK) / 2 if has_fast_layers(student) else SCORES * length
    width += sizes["num_attention_heads"] * scores
    for module in student.model.layers[0].modules():
        if "m" in module:  # DoRA: the gradient of a magnitude needs the output of its linear layer
            width += module.m.size
        if "lora_a" in module and student.dtype.size == 2 and not isinstance(module, CastLoRALinear):
            width += 2 * module.lora_a.shape[0]  # its input in float32
    return int(width)


def _loss_bytes(objective: Objective, n_supervised: int) -> int:
    """Return the bytes of the logits and what the loss computes from them; of one chunk if the head is frozen."""
    logits = n_supervised * objective.student.config["vocab_size"] * FLOAT32_BYTES
    copies = LOGITS_16_BITS if objective.student.dtype.size == 2 else LOGITS
    at_once = logits if objective.config.method == "full" else min(logits, chunk_limit())
    return int(objective.logits_copies * copies * at_once)


def _does_not_fit(needed: str, usable_bytes: int, config: TrainConfig) -> MachineError:
    advice = [
        "--method lora" if config.method == "full" else "",
        "" if config.grad_checkpoint or config.dropout else "--grad-checkpoint",
        "shorter rows (`mlx-distill prepare --max-length`)",
        "a quantised or a smaller student",
    ]
    return MachineError(
        f"Training needs about {needed}. A job on this machine may use {format_bytes(usable_bytes)}, of which "
        f"{1 - USABLE_FRACTION:.0%} stays in reserve.",
        f"What helps: {'; '.join(filter(None, advice))}. To try anyway, pass --micro-batch-tokens {MIN_TOKENS}.",
    )
