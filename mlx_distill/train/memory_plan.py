"""How much memory a training will need, before its first step, and the largest pieces of a batch that fit.

Peak = weights + what is trained (weights, gradients, AdamW's two moments) + activations kept for the backward pass
of the pieces that run at the same time + the loss (the vocabulary term). Counted from config.json, the adapter's shape
and the longest rows; the factors were fitted to measured peaks (`scripts/bench/memory.py` shows estimate and
measurement side by side).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_distill import device
from mlx_distill.errors import MachineError
from mlx_distill.models.load import Student
from mlx_distill.models.score import CHUNK_BYTES
from mlx_distill.models.tokenize import Rendered
from mlx_distill.train.batches import micro_batches
from mlx_distill.train.config import TrainConfig
from mlx_distill.train.objectives import LENGTH_MULTIPLE

MOST_TOKENS = 4096
"""Tokens in one forward pass where memory is no question: more make a step no faster."""
FEWEST_TOKENS = 256
SHARE = 0.8
"""Of the device's memory that an estimate may fill: it may be off by a quarter."""
F32 = 4

# Copies of a tensor that are alive at the peak, fitted to measurements.
TRAINED_LOW_RANK = 4
"""Weight, gradient, two moments."""
TRAINED_FULL = 7
"""The same, and while AdamW runs over all of them, what it makes on the way."""
HIDDEN = 8
INNER = 4
SCORES = 2
LOGITS = 3


@dataclass(frozen=True)
class Shape:
    """What counts in memory of a model of the llama or qwen2 family."""

    layers: int
    hidden: int
    heads: int
    vocabulary: int
    linear: Mapping[str, tuple[int, int]]
    """Name within a layer to (inputs, outputs)."""
    tied: bool
    bits: float
    """A weight's bits in the file where the model is quantised; 0 where it is not."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape | None:
        """The shape by config.json; None where that is of another kind of architecture."""
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
                bits=quantization["bits"] + 32 / quantization["group_size"] if quantization else 0,
            )
        except (KeyError, TypeError, ZeroDivisionError):
            return None

    @property
    def parameters(self) -> int:
        a_layer = sum(inputs * outputs for inputs, outputs in self.linear.values()) + 2 * self.hidden
        return self.layers * a_layer + self.vocabulary * self.hidden * (1 if self.tied else 2) + self.hidden

    def weight_bytes(self, item: int) -> int:
        """Of all weights, a floating one taking `item` bytes."""
        return int(self.parameters * (self.bits / 8 if self.bits else item))

    def trainable(self, config: TrainConfig) -> int:
        """Numbers that are trained."""
        if config.method == "full":
            return self.parameters
        sizes = [size for name, size in self.linear.items() if not config.targets or name in config.targets]
        magnitudes = sum(outputs for _, outputs in sizes) if config.method == "dora" else 0
        return self.layers * (config.rank * sum(map(sum, sizes)) + magnitudes)


@dataclass(frozen=True)
class Estimate:
    """Bytes at the peak of a step, by what they are for."""

    weights: int
    trained: int
    activations: int
    loss: int

    @property
    def total(self) -> int:
        return self.weights + self.trained + self.activations + self.loss

    def __str__(self) -> str:
        return (
            f"{gigabytes(self.total)} (weights {gigabytes(self.weights)}, trained ones and their optimiser "
            f"{gigabytes(self.trained)}, activations {gigabytes(self.activations)}, loss {gigabytes(self.loss)})"
        )


@dataclass(frozen=True)
class Plan:
    """Pieces of at most `micro_tokens` tokens, and what they are expected to take; None for an unknown architecture."""

    micro_tokens: int
    estimate: Estimate | None
    fits: bool = True


def make_plan(student: Student, config: TrainConfig, rows: Sequence[Rendered], usable_bytes: int) -> Plan:
    """The largest pieces whose estimate fits; the user's own where config.micro_tokens is not 0, fit or not.

    Raises MachineError with advice where not even the smallest pieces fit.
    """
    shape = Shape.of(student.config)
    if not shape:
        return Plan(config.micro_tokens or MOST_TOKENS, None)
    at_once, item, room = len(device.streams()), student.dtype.size, SHARE * usable_bytes
    tokens = config.micro_tokens or MOST_TOKENS
    while True:
        needs = estimate(shape, config, rows, tokens, at_once, item)
        if needs.total <= room or config.micro_tokens:
            return Plan(tokens, needs, needs.total <= room)
        if tokens <= FEWEST_TOKENS:
            raise _refusal(str(needs), usable_bytes, config)
        tokens //= 2


def refuse_weights(model: Mapping[str, Any], config: TrainConfig, item: int, usable_bytes: int) -> None:
    """MachineError where the weights alone, of `item` bytes each, are too large: said before they are loaded."""
    shape = Shape.of(model)
    needs = shape.weight_bytes(item) if shape else 0
    if needs > SHARE * usable_bytes:
        raise _refusal(f"{gigabytes(needs)} for the weights alone", usable_bytes, config)


def estimate(
    shape: Shape, config: TrainConfig, rows: Sequence[Rendered], micro_tokens: int, at_once: int, item: int
) -> Estimate:
    """The peak of the heaviest step, the one over the longest rows.

    `at_once` pieces run at the same time; a floating weight or activation takes `item` bytes.
    """
    lengths = [-(-len(row.tokens) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE for row in rows]
    longest = sorted(range(len(rows)), key=lambda row: lengths[row])[-config.batch_size :]
    pieces = micro_batches(lengths, longest, micro_tokens, at_once)
    kept = lost = 0
    for start in range(0, len(pieces), at_once):
        group = pieces[start : start + at_once]
        layer = sum(_activations(shape, config, len(piece), lengths[piece[-1]], item) for piece in group)
        loss = sum(_loss(shape, config, sum(rows[row].n_supervised for row in piece)) for piece in group)
        activations = shape.layers * layer
        if config.grad_checkpoint:  # each layer's input, and one layer at a time, after the loss is done with
            inputs = sum(len(piece) * lengths[piece[-1]] for piece in group) * item * shape.hidden
            activations = shape.layers * inputs + max(layer - loss, 0)
        kept, lost = max((kept, lost), (activations, loss), key=sum)
    weights, trained = shape.weight_bytes(item), F32 * shape.trainable(config)
    # Where all weights are trained, they are the first of those copies, and counted as weights.
    trained = trained * TRAINED_FULL - weights if config.method == "full" else trained * TRAINED_LOW_RANK
    return Estimate(weights, trained, kept, lost)


def _activations(shape: Shape, config: TrainConfig, n_rows: int, length: int, item: int) -> int:
    """Bytes that one layer keeps of a piece of (n_rows, length) tokens for its backward pass."""
    inner = shape.linear["mlp.gate_proj"][1]
    width = HIDDEN * shape.hidden + INNER * inner + SCORES * shape.heads * length
    if config.method == "dora":  # what each linear layer makes is kept, for the gradient of its magnitude
        width += sum(outputs for _, outputs in shape.linear.values())
    return n_rows * length * item * width


def _loss(shape: Shape, config: TrainConfig, supervised: int) -> int:
    """Bytes of the logits and what is made of them; of one chunk where the head is frozen."""
    logits = supervised * shape.vocabulary * F32
    return LOGITS * (logits if config.method == "full" else min(logits, CHUNK_BYTES))


def _refusal(needs: str, usable_bytes: int, config: TrainConfig) -> MachineError:
    """Why it cannot be trained here and what would help."""
    advice = [
        "--method lora" if config.method == "full" else "",
        "" if config.grad_checkpoint or config.dropout else "--grad-checkpoint",
        "shorter rows (`mlx-distill prepare --max-length`)",
        "a quantised or a smaller student",
    ]
    return MachineError(
        f"Training needs about {needs}; a job here may use {gigabytes(usable_bytes)}, and {1 - SHARE:.0%} of that is "
        "left as a reserve.",
        f"What helps: {'; '.join(filter(None, advice))}. To try it all the same, name --micro-tokens {FEWEST_TOKENS}.",
    )


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB"
