"""Faster float32 kernels for x86 CPUs, in use only after `cpu.activate()`. Metal and ARM do not need them.

MLX computes one exponential at a time there, a quarter of a training step. `power` is 2.5 times as fast as `exp`, so
e^x is computed as 2^(x log2 e), accurate to 1e-6 relative. Each exponential is computed once: the backward pass uses
what the forward pass made. Attention leaves out part of what the causal mask hides.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import mlx.core as mx

from mlx_distill import cpu
from mlx_distill.models.load import Student

LOG2_E = math.log2(math.e)
QUERY_BLOCK = 128
"""Queries in a block of attention. A block skips the keys after it."""
PATCHED = {"swiglu", "scaled_dot_product_attention"}
"""Functions of mlx-lm's models that are replaced."""
Arrays = tuple[mx.array, ...]


def exp(values: mx.array) -> mx.array:
    """Compute e to the power of float32 values."""
    return exp2(values * LOG2_E) if cpu.has_slow_exp() else mx.exp(values)


def exp2(values: mx.array) -> mx.array:
    """Compute 2 to the power of float32 values."""
    return mx.power(mx.array(2.0), values)


def has_fast_layers(student: Student) -> bool:
    """Return True if `cpu` is active and mlx-lm's layers of this architecture can use the kernels below."""
    return cpu.has_slow_exp() and student.dtype == mx.float32 and _namespace(student).keys() >= PATCHED


@contextmanager
def fast_layers(student: Student, wanted: bool | None = None) -> Iterator[None]:
    """Within the block, mlx-lm's layers use the kernels below. Default: `has_fast_layers`."""
    use = has_fast_layers(student) if wanted is None else wanted and student.dtype == mx.float32
    if not use:
        yield
        return
    namespace = _namespace(student)
    before = {name: namespace[name] for name in PATCHED}
    namespace["swiglu"] = swiglu
    namespace["scaled_dot_product_attention"] = _with_causal_attention(before["scaled_dot_product_attention"])
    try:
        yield
    finally:
        namespace.update(before)


def _namespace(student: Student) -> dict[str, Any]:
    """Return the names in mlx-lm's module of this architecture."""
    return vars(sys.modules[type(student.model).__module__])


def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """Compute silu(gate) * up."""
    outputs: Any = _swiglu(gate, up)
    return outputs[0]  # type: ignore[no-any-return]


@mx.custom_function
def _swiglu(gate: mx.array, up: mx.array) -> Arrays:
    sigmoid = 1 / (1 + exp2(-gate * LOG2_E))
    return gate * sigmoid * up, sigmoid


@_swiglu.vjp
def _(primals: Arrays, cotangents: Arrays, outputs: Arrays) -> Arrays:
    (gate, up), slope, sigmoid = primals, cotangents[0], outputs[1]
    silu = gate * sigmoid
    return slope * up * (sigmoid + silu - silu * sigmoid), slope * silu


def _with_causal_attention(general: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """Return mlx-lm's attention function, with plain causal attention computed here and all else by `general`."""

    def attention(
        queries: mx.array, keys: mx.array, values: mx.array, cache: Any, scale: float, mask: Any, **more: Any
    ) -> mx.array:
        if cache is not None or more or not (isinstance(mask, str) and mask == "causal"):
            return general(queries, keys, values, cache=cache, scale=scale, mask=mask, **more)
        return causal_attention(queries, keys, values, scale)

    return attention


def causal_attention(queries: mx.array, keys: mx.array, values: mx.array, scale: float) -> mx.array:
    """Compute causal attention: (B, H, T, D) queries, (B, K, T, D) keys and values, K divides H -> (B, H, T, D)."""
    outputs: Any = _attention(scale)(queries, keys, values)
    return outputs[0]  # type: ignore[no-any-return]


@cache
def _attention(scale: float) -> Callable[[mx.array, mx.array, mx.array], Any]:
    """Build the attention of one scale, in blocks of queries. The probabilities are kept for the backward pass."""

    @mx.custom_function
    def attention(queries: mx.array, keys: mx.array, values: mx.array) -> Arrays:
        grouped = _group(queries * (scale * LOG2_E), keys)
        keys_t, values = keys[:, :, None].swapaxes(-1, -2), values[:, :, None]
        blocks, probabilities = [], []
        for start, end in _blocks(queries.shape[2]):
            scores = grouped[..., start:end, :] @ keys_t[..., :end] + _mask(start, end)
            powers = exp2(scores - scores.max(axis=-1, keepdims=True))
            probabilities.append(powers / powers.sum(axis=-1, keepdims=True))
            blocks.append(probabilities[-1] @ values[..., :end, :])
        return mx.concatenate(blocks, axis=3).reshape(queries.shape), *probabilities

    @attention.vjp
    def _(primals: Arrays, cotangents: Arrays, outputs: Arrays) -> Arrays:
        queries, keys, values = primals
        slope, grouped = _group(cotangents[0], keys), _group(queries, keys)
        # The softmax gradient's sum_j p_j dp_j is the output times its slope.
        weighted = (slope * _group(outputs[0], keys)).sum(axis=-1, keepdims=True)
        values_t, keys_in = values[:, :, None].swapaxes(-1, -2), keys[:, :, None]
        d_queries, d_keys, d_values = [], [], []
        for (start, end), probability in zip(_blocks(queries.shape[2]), outputs[1:], strict=True):
            part, padding = slope[..., start:end, :], [(0, 0), (0, 0), (0, queries.shape[2] - end), (0, 0)]
            d_scores = probability * (part @ values_t[..., :end] - weighted[..., start:end, :])
            d_queries.append(d_scores @ keys_in[..., :end, :])
            d_keys.append(mx.pad((d_scores.swapaxes(-1, -2) @ grouped[..., start:end, :]).sum(axis=2), padding))
            d_values.append(mx.pad((probability.swapaxes(-1, -2) @ part).sum(axis=2), padding))
        whole = mx.concatenate(d_queries, axis=3).reshape(queries.shape)
        return whole * scale, sum(d_keys[1:], d_keys[0]) * scale, sum(d_values[1:], d_values[0])

    return attention


def _group(heads: mx.array, keys: mx.array) -> mx.array:
    """Reshape (B, H, T, D) to (B, K, H / K, T, D): the query heads that share a key head."""
    batch, n_heads, length, size = heads.shape
    return heads.reshape(batch, keys.shape[1], n_heads // keys.shape[1], length, size)


def _blocks(length: int) -> list[tuple[int, int]]:
    return [(start, min(start + QUERY_BLOCK, length)) for start in range(0, length, QUERY_BLOCK)]


def _mask(start: int, end: int) -> mx.array:
    """Return (end - start, end): minus infinity if the key comes after the query."""
    return mx.where(mx.arange(end)[None] > mx.arange(start, end)[:, None], -mx.inf, 0.0)
