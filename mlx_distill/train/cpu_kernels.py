"""The same numbers sooner on x86 CPUs, where MLX takes one exponential at a time: a quarter of a step, measured.

There `power` is 2.5 times as fast as `exp`, so that e^x is had as 2^(x log2 e), equal to some 1e-6 of its size. And
each exponential is taken once: the backward pass uses what the forward pass made, and attention leaves out part of
what causality masks. On Metal and on ARM, MLX's own kernels are the fast ones, and nothing here is used.
"""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import mlx.core as mx

from mlx_distill import device
from mlx_distill.models.load import Student

LOG2_E = math.log2(math.e)
QUERIES = 128
"""A block of attention: its queries look at no key after the block."""
Attention = Callable[[mx.array, mx.array, mx.array], Any]


@cache
def takes_single_exponentials() -> bool:
    """Whether this is a machine on which all this pays."""
    return device.prepare().kind == "cpu" and platform.machine().lower() in ("x86_64", "amd64")


def exp(values: mx.array) -> mx.array:
    """e to the values, float32."""
    return mx.power(mx.array(2.0), values * LOG2_E) if takes_single_exponentials() else mx.exp(values)


@contextmanager
def sooner_layers(student: Student) -> Iterator[None]:
    """Within the block, on such a machine, the student's layers use the functions below for mlx-lm's."""
    layers = vars(sys.modules[type(student.model).__module__])
    names = ("swiglu", "scaled_dot_product_attention")
    if not takes_single_exponentials() or student.dtype != mx.float32 or not all(name in layers for name in names):
        yield
        return
    before = {name: layers[name] for name in names}
    layers["swiglu"] = swiglu
    layers["scaled_dot_product_attention"] = _attention_or(before["scaled_dot_product_attention"])
    try:
        yield
    finally:
        layers.update(before)


def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) * up."""
    made: Any = _swiglu(gate, up)
    return made[0]  # type: ignore[no-any-return]


@mx.custom_function
def _swiglu(gate: mx.array, up: mx.array) -> tuple[mx.array, mx.array]:
    sigmoid = 1 / (1 + exp(-gate))
    return gate * sigmoid * up, sigmoid


@_swiglu.vjp
def _(
    inputs: tuple[mx.array, mx.array], slopes: tuple[mx.array, ...], made: tuple[mx.array, ...]
) -> tuple[mx.array, mx.array]:
    (gate, up), slope, sigmoid = inputs, slopes[0], made[1]
    silu = gate * sigmoid
    return slope * up * (sigmoid + silu - silu * sigmoid), slope * silu


def _attention_or(general: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """mlx-lm's function, its signature included: what is not plain causal attention is left to the one it had."""

    def attention(
        queries: mx.array, keys: mx.array, values: mx.array, cache: Any, scale: float, mask: Any, **more: Any
    ) -> mx.array:
        if cache is not None or more or not (isinstance(mask, str) and mask == "causal"):
            return general(queries, keys, values, cache=cache, scale=scale, mask=mask, **more)
        return causal_attention(queries, keys, values, scale)

    return attention


def causal_attention(queries: mx.array, keys: mx.array, values: mx.array, scale: float) -> mx.array:
    """(B, H, T, D) queries, (B, K, T, D) keys and values, H a multiple of K -> (B, H, T, D)."""
    made: Any = _attention_of(scale)(queries, keys, values)
    return made[0]  # type: ignore[no-any-return]


@cache
def _attention_of(scale: float) -> Attention:
    """Blocks of queries, each with its probabilities kept for the backward pass."""

    @mx.custom_function
    def attention(queries: mx.array, keys: mx.array, values: mx.array) -> tuple[mx.array, ...]:
        grouped = _grouped(queries * (scale * LOG2_E), keys)
        turned, beside = keys[:, :, None].swapaxes(-1, -2), values[:, :, None]
        made, kept = [], []
        for start, end in _blocks(queries.shape[2]):
            scores = grouped[..., start:end, :] @ turned[..., :end] + _mask(start, end)
            powers = mx.power(mx.array(2.0), scores - scores.max(axis=-1, keepdims=True))
            kept.append(powers / powers.sum(axis=-1, keepdims=True))
            made.append(kept[-1] @ beside[..., :end, :])
        return mx.concatenate(made, axis=3).reshape(queries.shape), *kept

    @attention.vjp
    def _(
        inputs: tuple[mx.array, ...], slopes: tuple[mx.array, ...], made: tuple[mx.array, ...]
    ) -> tuple[mx.array, ...]:
        queries, keys, values = inputs
        slope, grouped = _grouped(slopes[0], keys), _grouped(queries, keys)
        # sum_j p_j dp_j of softmax's gradient is the output times its slope.
        along = (slope * _grouped(made[0], keys)).sum(axis=-1, keepdims=True)
        turned, beside = values[:, :, None].swapaxes(-1, -2), keys[:, :, None]
        of_queries, of_keys, of_values = [], [], []
        for (start, end), likely in zip(_blocks(queries.shape[2]), made[1:], strict=True):
            part, after = slope[..., start:end, :], [(0, 0), (0, 0), (0, queries.shape[2] - end), (0, 0)]
            scores = likely * (part @ turned[..., :end] - along[..., start:end, :])
            of_queries.append(scores @ beside[..., :end, :])
            of_keys.append(mx.pad((scores.swapaxes(-1, -2) @ grouped[..., start:end, :]).sum(axis=2), after))
            of_values.append(mx.pad((likely.swapaxes(-1, -2) @ part).sum(axis=2), after))
        whole = mx.concatenate(of_queries, axis=3).reshape(queries.shape)
        return whole * scale, sum(of_keys[1:], of_keys[0]) * scale, sum(of_values[1:], of_values[0])

    return attention


def _grouped(heads: mx.array, keys: mx.array) -> mx.array:
    """(B, H, T, D) as (B, K, H / K, T, D): the query heads that share a key head side by side."""
    batch, n_heads, length, size = heads.shape
    return heads.reshape(batch, keys.shape[1], n_heads // keys.shape[1], length, size)


def _blocks(length: int) -> list[tuple[int, int]]:
    return [(start, min(start + QUERIES, length)) for start in range(0, length, QUERIES)]


def _mask(start: int, end: int) -> mx.array:
    """(end - start, end): minus infinity where a key comes after the query."""
    return mx.where(mx.arange(end)[None] > mx.arange(start, end)[:, None], -mx.inf, 0.0)
