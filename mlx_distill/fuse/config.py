"""Settings and result of `fuse`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from mlx_distill.config import Config, doc
from mlx_distill.formatting import format_bytes
from mlx_distill.models.config import check_quantization
from mlx_distill.storage.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, TEST


class FuseConfig(Config, frozen=True):
    """Settings of `fuse`."""

    model: Annotated[Path, doc("the base model: an MLX model folder")]
    adapter: Annotated[Path, doc("the adapter folder to add to it")]
    data: Annotated[Path, doc("folder of test.jsonl, whose rows verify the result")]
    out: Annotated[Path, doc("folder for the fused model")]
    q_bits: Annotated[int, doc("quantise the result to 4 or 8 bits (default: do not quantise)")] | None = None
    q_group_size: Annotated[int, doc("number of weights that share a scale if quantised: 32, 64 or 128")] = 64
    check_rows: Annotated[int, doc("verify on this many test rows, evenly spaced; 0 means all", ge=0)] = 0
    force: Annotated[bool, doc("replace the output folder if it exists")] = False

    def check(self) -> None:
        check_quantization(self.q_bits, self.q_group_size)

    def inputs(self) -> list[Path]:
        weights, settings = self.adapter / ADAPTER_WEIGHTS, self.adapter / ADAPTER_CONFIG
        return [self.model, weights, settings, self.data / TEST]

    def outputs(self) -> list[Path]:
        return [self.out]


@dataclass(frozen=True, kw_only=True)
class FuseCheck:
    """The difference between a fused model and its adapter, over the answer tokens of test.jsonl."""

    base_loss: float
    adapter_loss: float
    fused_loss: float
    base_accuracy: float
    adapter_accuracy: float
    fused_accuracy: float
    allowed_difference: float
    """Maximum difference between the losses of adapter and fused model."""
    kl: float
    """Mean KL(adapter || fused) in nats per token."""
    kl_base: float
    """Mean KL(adapter || base): the change that the adapter makes."""
    n_rows: int
    n_tokens: int
    divergences: tuple[int | None, ...]
    """The first greedy token of each prompt that differs from the adapter's. None if all are equal."""
    greedy_tokens: int
    """Maximum number of greedy tokens per prompt."""


@dataclass(frozen=True, kw_only=True)
class FuseResult(FuseCheck):
    """The fused model and its verification."""

    path: Path
    adapter: str
    """The adapter folder and its training checkpoint."""
    dtype: str
    """The type of the weights: the base's own. If quantised, the type of the scales and unquantised weights."""
    dequantized: bool
    """True if the base was quantised: the adapter was added to its dequantised weights."""
    q_bits: int | None
    n_layers: int
    """Number of layers that the adapter changed."""
    size_bytes: int
    seconds: float

    def summary(self) -> str:
        return f"test loss {self.fused_loss:.3f}, {format_bytes(self.size_bytes)}"
