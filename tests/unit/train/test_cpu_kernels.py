"""The kernels for x86 CPUs give the same values and gradients as MLX and mlx-lm."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_distill.models.load import load_student
from mlx_distill.train import cpu_kernels
from mlx_distill.train.cpu_kernels import QUERY_BLOCK, causal_attention, exp2, fast_layers, swiglu
from mlx_distill.train.step import scalar


def close(one: mx.array, other: mx.array) -> bool:
    """Return True if two arrays differ by at most 2e-6 of their norm, plus rounding of zeros."""
    return scalar(mx.linalg.norm(one - other)) <= 2e-6 * scalar(mx.linalg.norm(other)) + 1e-4


def same(ours: Callable[..., mx.array], reference: Callable[..., mx.array], *inputs: mx.array) -> bool:
    """Compare the values and the gradients of two functions."""
    slope = mx.random.normal(reference(*inputs).shape, key=mx.random.key(9))
    (value,), gradients = mx.vjp(ours, list(inputs), [slope])
    (expected,), expected_gradients = mx.vjp(reference, list(inputs), [slope])
    return close(value, expected) and all(map(close, gradients, expected_gradients))


@pytest.mark.parametrize("length", [1, 5, QUERY_BLOCK, QUERY_BLOCK + 1, 3 * QUERY_BLOCK - 8])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (6, 2)])
def test_causal_attention(length: int, heads: int, key_heads: int) -> None:
    keys = mx.random.split(mx.random.key(1), 3)
    queries, *others = (
        3 * mx.random.normal((2, count, length, 16), key=key)
        for count, key in zip((heads, key_heads, key_heads), keys, strict=True)
    )

    def reference(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=0.3, mask="causal")

    assert same(lambda q, k, v: causal_attention(q, k, v, 0.3), reference, queries, *others)


def test_swiglu() -> None:
    gate, up = 4 * mx.random.normal((2, 64, 32), key=mx.random.key(2))
    assert same(swiglu, lambda g, u: nn.silu(g) * u, gate, up)
    extremes = mx.array([-1e4, -90.0, 0.0, 90.0, 1e4])
    assert swiglu(extremes, mx.ones(5)).tolist() == pytest.approx([0, 0, 0, 90, 1e4], abs=1e-30)


def test_exp2() -> None:
    values = mx.linspace(-85, 0, 5001)
    assert mx.allclose(exp2(values * cpu_kernels.LOG2_E), mx.exp(values), rtol=1e-5, atol=0)
    assert exp2(mx.array([-mx.inf, -1e4])).tolist() == [0, 0]


def test_layers_use_the_kernels_only_within_the_block(tiny_student: Path) -> None:
    student = load_student(tiny_student, dtype=mx.float32)
    module = sys.modules[type(student.model).__module__]
    before = module.swiglu, module.scaled_dot_product_attention
    tokens = mx.random.randint(0, student.config["vocab_size"], (2, 150), key=mx.random.key(3))
    plain = student.model(tokens)
    with fast_layers(student, wanted=True):
        assert module.swiglu is swiglu
        assert mx.allclose(student.model(tokens), plain, rtol=1e-4, atol=1e-4)
    assert (module.swiglu, module.scaled_dot_product_attention) == before
    for other, wanted in ((student, False), (load_student(tiny_student, dtype=mx.bfloat16), True)):
        with fast_layers(other, wanted):
            assert module.swiglu is before[0]
