"""What replaces mlx-lm's functions on x86 CPUs gives the same values and gradients."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_distill.models.load import load_student
from mlx_distill.train import cpu_kernels as x86


def close(one: mx.array, other: mx.array) -> bool:
    """Equal to 2e-6 of the norm; values are around 1, so that what is 0 may be off by rounding."""
    return mx.linalg.norm(one - other).item() <= 2e-6 * mx.linalg.norm(other).item() + 1e-4


def same(ours: Callable[..., mx.array], plain: Callable[..., mx.array], *inputs: mx.array) -> bool:
    slope = mx.random.normal(plain(*inputs).shape, key=mx.random.key(9))
    (made,), gradients = mx.vjp(ours, list(inputs), [slope])
    (expected,), wanted = mx.vjp(plain, list(inputs), [slope])
    return close(made, expected) and all(map(close, gradients, wanted))


@pytest.mark.parametrize("length", [1, 5, x86.QUERIES, x86.QUERIES + 1, 3 * x86.QUERIES - 8])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (6, 2)])
def test_causal_attention_is_mlxs(length: int, heads: int, key_heads: int) -> None:
    keys = mx.random.split(mx.random.key(1), 3)
    queries, *others = (
        3 * mx.random.normal((2, count, length, 16), key=key)
        for count, key in zip((heads, key_heads, key_heads), keys, strict=True)
    )

    def plain(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=0.3, mask="causal")

    assert same(lambda q, k, v: x86.causal_attention(q, k, v, 0.3), plain, queries, *others)


def test_swiglu_is_silu_times_up_and_large_gates_overflow_nowhere() -> None:
    gate, up = 4 * mx.random.normal((2, 64, 32), key=mx.random.key(2))
    assert same(x86.swiglu, lambda g, u: nn.silu(g) * u, gate, up)
    extremes = mx.array([-1e4, -90.0, 0.0, 90.0, 1e4])
    assert x86.swiglu(extremes, mx.ones(5)).tolist() == pytest.approx([0, 0, 0, 90, 1e4], abs=1e-30)


def test_exp_is_exp() -> None:
    values = mx.linspace(-85, 0, 5001)
    assert mx.allclose(x86.exp(values), mx.exp(values), rtol=1e-5, atol=0)
    assert x86.exp(mx.array([-mx.inf, -1e4])).tolist() == [0, 0]


def test_layers_are_replaced_within_the_block_alone_and_the_model_says_the_same(tiny_student: Path) -> None:
    student = load_student(tiny_student, dtype=mx.float32)
    module = sys.modules[type(student.model).__module__]
    before = module.swiglu, module.scaled_dot_product_attention
    tokens = mx.random.randint(0, student.config["vocab_size"], (2, 150), key=mx.random.key(3))
    plain = student.model(tokens)
    with x86.sooner_layers(student):
        assert (module.swiglu is x86.swiglu) == x86.takes_single_exponentials()
        assert mx.allclose(student.model(tokens), plain, rtol=1e-4, atol=1e-4)
    assert (module.swiglu, module.scaled_dot_product_attention) == before
    rough = load_student(tiny_student, dtype=mx.bfloat16)
    with x86.sooner_layers(rough):
        assert module.swiglu is before[0]
