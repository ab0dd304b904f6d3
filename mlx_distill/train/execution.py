"""The way training runs on a device: streams, compilation, types. It changes the last digits of a result, no more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import mlx.core as mx

from mlx_distill import device
from mlx_distill.device import Device


@dataclass(frozen=True)
class Execution:
    """Streams, compilation and types of a training run."""

    streams: Sequence[mx.Stream]
    """Micro-batches go to them in turn. They run in parallel."""
    compiled: bool = False
    """Compile the gradient and the update, as mlx-lm does: a step launches some 10,000 small kernels otherwise.

    This pays on a GPU. On a CPU, MLX compiles with g++, which takes longer than a short training.
    """
    cast_adapters: bool = False
    """Compute with adapters in the type of the activations. Otherwise 16-bit activations are kept in float32 too."""

    length_multiple: int = 8
    """Pad rows to a multiple of this. Each shape is compiled once, so compiled training has fewer shapes."""

    @classmethod
    def on(cls, hardware: Device) -> Self:
        """Choose for a device."""
        if hardware.kind == "metal":
            return cls(device.streams(), compiled=True, cast_adapters=True, length_multiple=32)
        return cls(device.streams())
