"""Base plus adapter: each adapted weight summed in float32 and rounded once, to the type that the base's file has or,
where the result is to be quantised, to its bits.

The rounding is stochastic. A short training changes most weights by less than half a step of bfloat16: rounded to the
nearest value, they all fall back to what they were, and the update is gone. (One update of the sample student: to the
nearest 62 % of the gain in loss was left, stochastically 99 %.)
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten
from mlx_lm import utils as mlx_lm_utils

from mlx_distill.errors import InputError
from mlx_distill.models.adapter import attach, base_of
from mlx_distill.models.load import Student, load_tokenizer, load_weights

SEED = 0
"""Of the rounding: the same base and adapter give the same file."""
_DROPPED_BITS = {mx.bfloat16: 16, mx.float16: 13}
"""Low bits of a float32 that the type has no room for."""


@dataclass(frozen=True)
class Written:
    """What was written."""

    dtype: str
    dequantized: bool
    quantization: dict[str, Any] | None
    """As config.json has it; None where the result is not quantised."""
    n_layers: int


def write_fused(
    model_folder: Path, adapter_folder: Path, out: Path, q_bits: int | None = None, q_group_size: int = 64
) -> Written:
    """Write the fused weights into `out`, tensor names and shards as mlx-lm writes them.

    The base is read lazily and in its own type; a base that was cast for computing would round the sum twice. A
    quantised base is dequantised, and quantised again only where `q_bits` asks for it: the sum of weight and update
    often falls back onto the same level, and the adapter is gone. Raises InputError where no layer can be quantised.
    """
    model, config = load_weights(model_folder)
    types = {name: _file_type(module) for name, module in model.named_modules() if "weight" in module}
    dequantized = any("scales" in module for _, module in model.named_modules())
    if dequantized:
        _dequantize_in_float32(model)
    model.freeze()
    adapter = attach(Student(model_folder, model, load_tokenizer(model_folder), config, mx.float32), adapter_folder)
    fused = {name: _fused(layer) for name, layer in adapter.layers.items()}
    model.update_modules(tree_unflatten(list(fused.items())))
    quantization = _quantize(model, model_folder, q_bits, q_group_size) if q_bits else None
    _round(model, types, list(fused))
    mlx_lm_utils.save_model(out, model, donate_model=True)
    return Written(_name_of(_main_type(types)), dequantized, quantization, len(adapter.layers))


def _quantize(model: nn.Module, folder: Path, bits: int, group_size: int) -> dict[str, Any]:
    """Quantise the layers that can be, from their float32 sums; returns what config.json says of it."""
    with contextlib.redirect_stdout(io.StringIO()):  # mlx-lm prints the bits per weight
        _, config = mlx_lm_utils.quantize_model(model, {}, group_size, bits)
    if not any("scales" in module for _, module in model.named_modules()):
        raise InputError(
            f"{folder}: no layer has rows that are a multiple of {group_size}, so nothing can be quantised.",
            "Choose a smaller --q-group-size, or leave --q-bits out.",
        )
    quantization: dict[str, Any] = config["quantization"]
    return quantization


def _round(model: nn.Module, types: dict[str, mx.Dtype], fused: list[str]) -> None:
    """Give every weight, or its scales and biases where it is packed, the type of the base's file."""
    modules = dict(model.named_modules())
    keys = mx.random.split(mx.random.key(SEED), len(fused))
    for key, name in zip(keys, fused, strict=True):
        if "scales" not in modules[name]:
            modules[name].weight = round_stochastically(modules[name].weight, types[name], key)
    for name, dtype in types.items():
        for part in ("weight", "scales", "biases"):
            values = modules[name].get(part)
            if values is not None and mx.issubdtype(values.dtype, mx.floating):
                modules[name][part] = values.astype(dtype)


def round_stochastically(weight: mx.array, dtype: mx.Dtype, key: mx.array) -> mx.array:
    """float32 values as one of the two neighbours in `dtype`, the nearer one more probably: right on average.

    What `dtype` holds exactly stays as it is. Gupta et al. 2015, "Deep Learning with Limited Numerical Precision".
    """
    dropped = next((count for known, count in _DROPPED_BITS.items() if known == dtype), 0)
    if not dropped:
        return weight.astype(dtype)
    noise = mx.random.randint(0, 1 << dropped, weight.shape, mx.uint32, key)
    kept = mx.array(0xFFFFFFFF ^ ((1 << dropped) - 1), mx.uint32)
    return ((weight.view(mx.uint32) + noise) & kept).view(mx.float32).astype(dtype)


def _file_type(module: nn.Module) -> mx.Dtype:
    """The floating type of a layer in its file; that of the scales where the weight is packed."""
    kept: mx.Dtype = module.scales.dtype if "scales" in module else module.weight.dtype
    # Microscaling formats (mxfp4, nvfp4) keep their scales as bytes; bfloat16 holds every value they can express.
    return kept if mx.issubdtype(kept, mx.floating) else mx.bfloat16


def _dequantize_in_float32(model: nn.Module) -> None:
    for _, module in model.named_modules():
        if "scales" in module and mx.issubdtype(module.scales.dtype, mx.floating):
            module.scales = module.scales.astype(mx.float32)
            if module.get("biases") is not None:
                module.biases = module.biases.astype(mx.float32)
    mlx_lm_utils.dequantize_model(model)


def _fused(layer: nn.Module) -> nn.Module:
    """An adapted layer as a plain one, computed in float32 by the layer's own rule (LoRA, DoRA, embedding)."""
    base = base_of(layer)
    base.weight = base.weight.astype(mx.float32)
    for name in ("lora_a", "lora_b"):
        layer[name] = layer[name].astype(mx.float32)
    return layer.fuse(dequantize=True)


def _main_type(types: dict[str, mx.Dtype]) -> mx.Dtype:
    found = list(types.values())
    return max(found, key=found.count)


def _name_of(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")
