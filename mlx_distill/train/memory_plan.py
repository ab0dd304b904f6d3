"""Estimate the peak memory of training before its first step, and choose the largest micro-batches that fit.

Peak = weights + trained weights with their gradients and AdamW's two moments + activations kept for the backward pass
of the micro-batches that run at the same time + the loss (the vocabulary term). The counts come from config.json, the
adapter's shape and the longest rows. The factors were fitted to measured peaks: `scripts/bench/memory.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from mlx_distill.errors import MachineError
from mlx_distill.formatting import format_bytes
from mlx_distill.models.load import Student
from mlx_distill.models.score import CHUNK_BYTES
from mlx_distill.models.tokenize import Rendered
from mlx_distill.train.config import TrainConfig
from mlx_distill.train.data import micro_batches
from mlx_distill.train.objectives import LENGTH_MULTIPLE

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
HIDDEN, INNER, SCORES, LOGITS = 8, 4, 2, 3


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a llama or qwen2 model that decide its memory."""

    layers: int
    hidden: int
    heads: int
    vocabulary: int
    linear: Mapping[str, tuple[int, int]]
    """Name within a layer to (inputs, outputs)."""
    tied: bool
    quantized_bits: float
    """Bits of a quantised weight, scales and offsets included. 0: not quantised."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self | None:
        """Read config.json. Return None for another kind of architecture."""
        try:
            hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
            head = config.get("head_dim") or hidden // heads
            keys = head * (config.get("num_key_value_heads") or heads)
            quantization = config.get("quantization")
            return cls(
                layers=config["num_hidden_layers"],
                hidden=hidden,
                heads=heads,
                vocabulary=config["vocab_size"],
                linear={
                    "self_attn.q_proj": (hidden, heads * head),
                    "self_attn.k_proj": (hidden, keys),
                    "self_attn.v_proj": (hidden, keys),
                    "self_attn.o_proj": (heads * head, hidden),
                    "mlp.gate_proj": (hidden, inner),
                    "mlp.up_proj": (hidden, inner),
                    "mlp.down_proj": (inner, hidden),
                },
                tied=bool(config.get("tie_word_embeddings")),
                # A group of weights shares a 16-bit scale and a 16-bit offset.
                quantized_bits=quantization["bits"] + 32 / quantization["group_size"] if quantization else 0,
            )
        except (KeyError, TypeError, ZeroDivisionError):
            return None

    @property
    def n_parameters(self) -> int:
        per_layer = sum(inputs * outputs for inputs, outputs in self.linear.values()) + 2 * self.hidden
        return self.layers * per_layer + self.vocabulary * self.hidden * (1 if self.tied else 2) + self.hidden

    def weight_bytes(self, itemsize: int) -> int:
        """Return the bytes of all weights, `itemsize` for each one that is not quantised."""
        return int(self.n_parameters * (self.quantized_bits / 8 or itemsize))

    def n_trainable(self, config: TrainConfig) -> int:
        """Return the number of trained weights."""
        if config.method == "full":
            return self.n_parameters
        sizes = [size for name, size in self.linear.items() if not config.targets or name in config.targets]
        magnitudes = sum(outputs for _, outputs in sizes) if config.method == "dora" else 0
        return self.layers * (config.rank * sum(map(sum, sizes)) + magnitudes)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes at the peak of a step, by use."""

    weights: int
    trained: int
    activations: int
    loss: int

    @property
    def total(self) -> int:
        return self.weights + self.trained + self.activations + self.loss

    def __str__(self) -> str:
        return (
            f"{format_bytes(self.total)} (weights {format_bytes(self.weights)}, trained weights and optimiser "
            f"{format_bytes(self.trained)}, activations {format_bytes(self.activations)}, "
            f"loss {format_bytes(self.loss)})"
        )


@dataclass(frozen=True)
class MemoryPlan:
    """Tokens of a micro-batch, and what training is expected to take."""

    micro_batch_tokens: int
    estimate: MemoryEstimate | None
    """None for an unknown architecture."""
    fits: bool = True


def check_weights_fit(model: Mapping[str, Any], config: TrainConfig, itemsize: int, usable_bytes: int) -> None:
    """Raise MachineError if the weights alone do not fit, so that they are not loaded first."""
    shape = ModelShape.from_config(model)
    needed = shape.weight_bytes(itemsize) if shape else 0
    if needed > USABLE_FRACTION * usable_bytes:
        raise _does_not_fit(f"{format_bytes(needed)} for the weights alone", usable_bytes, config)


def make_plan(
    student: Student, config: TrainConfig, rows: Sequence[Rendered], n_streams: int, usable_bytes: int
) -> MemoryPlan:
    """Choose the largest micro-batches whose estimate fits. The user's own are kept even if they do not fit.

    Raises MachineError with advice if even the smallest micro-batches do not fit.
    """
    shape = ModelShape.from_config(student.config)
    tokens = config.micro_batch_tokens or MAX_TOKENS
    if not shape:
        return MemoryPlan(tokens, None)
    while True:
        needed = estimate_memory(shape, config, rows, tokens, n_streams, student.dtype.size)
        fits = needed.total <= USABLE_FRACTION * usable_bytes
        if fits or config.micro_batch_tokens:
            return MemoryPlan(tokens, needed, fits)
        if tokens <= MIN_TOKENS:
            raise _does_not_fit(str(needed), usable_bytes, config)
        tokens //= 2


def estimate_memory(
    shape: ModelShape, config: TrainConfig, rows: Sequence[Rendered], max_tokens: int, n_streams: int, itemsize: int
) -> MemoryEstimate:
    """Estimate the peak of the heaviest step, which has the longest rows.

    `n_streams` micro-batches run at the same time. `itemsize` is the bytes of a weight or an activation.
    """
    lengths = [-(-len(row.tokens) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE for row in rows]
    longest = sorted(range(len(rows)), key=lambda row: lengths[row])[-config.batch_size :]
    parts = micro_batches(lengths, longest, max_tokens, n_streams)
    activations = loss = 0
    for start in range(0, len(parts), n_streams):
        group = parts[start : start + n_streams]
        layer = sum(_activation_bytes(shape, config, len(part), lengths[part[-1]], itemsize) for part in group)
        group_loss = sum(_loss_bytes(shape, config, sum(rows[row].n_supervised for row in part)) for part in group)
        kept = shape.layers * layer
        if config.grad_checkpoint:  # each layer's input, and after the loss one layer at a time
            inputs = sum(len(part) * lengths[part[-1]] for part in group) * itemsize * shape.hidden
            kept = shape.layers * inputs + max(layer - group_loss, 0)
        activations, loss = max((activations, loss), (kept, group_loss), key=sum)
    weights, trained = shape.weight_bytes(itemsize), FLOAT32_BYTES * shape.n_trainable(config)
    # In full training the weights are the first of those copies, and already counted.
    trained = trained * TRAINED_FULL - weights if config.method == "full" else trained * TRAINED_LOW_RANK
    return MemoryEstimate(weights, trained, activations, loss)


def _activation_bytes(shape: ModelShape, config: TrainConfig, n_rows: int, length: int, itemsize: int) -> int:
    """Return the bytes that one layer keeps of (n_rows, length) tokens for the backward pass."""
    inner = shape.linear["mlp.gate_proj"][1]
    width = HIDDEN * shape.hidden + INNER * inner + SCORES * shape.heads * length
    if config.method == "dora":  # the gradient of a magnitude needs the output of its linear layer
        width += sum(outputs for _, outputs in shape.linear.values())
    return n_rows * length * itemsize * width


def _loss_bytes(shape: ModelShape, config: TrainConfig, n_supervised: int) -> int:
    """Return the bytes of the logits and what the loss computes from them; of one chunk if the head is frozen."""
    logits = n_supervised * shape.vocabulary * FLOAT32_BYTES
    return LOGITS * (logits if config.method == "full" else min(logits, CHUNK_BYTES))


def _does_not_fit(needed: str, usable_bytes: int, config: TrainConfig) -> MachineError:
    advice = [
        "--method lora" if config.method == "full" else "",
        "" if config.grad_checkpoint or config.dropout else "--grad-checkpoint",
        "shorter rows (`mlx-distill prepare --max-length`)",
        "a quantised or a smaller student",
    ]
    return MachineError(
        f"Training needs about {needed}, but a job on this machine may use {format_bytes(usable_bytes)}, of which "
        f"{1 - USABLE_FRACTION:.0%} stays in reserve.",
        f"What helps: {'; '.join(filter(None, advice))}. To try it all the same, pass --micro-batch-tokens {MIN_TOKENS}.",
    )
