"""Losses of a linear head in chunks, so that the logits of all rows never exist together; and the cross-entropy.

The logits would be the largest tensor of a step: rows x 151,936 float32 for Qwen2.5. The head is frozen, so only the
hidden states need a gradient. Each chunk makes its logits, its part of the loss and its gradient, and drops the logits.
This is the idea of Liger Kernel's fused linear cross-entropy (Hsu et al. 2024, arXiv:2410.10989).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from mlx_distill.models.load import Head
from mlx_distill.models.score import chunks, vocabulary_of
from mlx_distill.train.cpu_kernels import Arrays, exp

ChunkLoss = Callable[..., tuple[Arrays, mx.array]]
"""Logits (n, V) float32 and the other arrays of n rows -> figures of each row (n,), the loss first; and the slope.

The slope (n, V) is the gradient of the loss in the logits.
"""


def sum_in_chunks(
    head: Head, hidden: mx.array, per_row: Sequence[mx.array], chunk_loss: ChunkLoss, chunk_bytes: int = 0
) -> Arrays:
    """Return the figures of `chunk_loss` summed over all rows: hidden (N, D) of any float type, N rows of other arrays.

    The first sum is differentiable in `hidden` only: the head's weights get no gradient. `chunk_bytes` is the size of
    a chunk's logits; 0: the device's.
    """
    vocabulary = vocabulary_of(head, hidden)

    @mx.custom_function
    def sums_of(hidden: mx.array, *per_row: mx.array) -> Arrays:
        sums: Arrays = ()
        gradients: list[mx.array] = []
        for rows in chunks(hidden.shape[0], vocabulary, chunk_bytes):
            part = hidden[rows]
            if gradients:  # compute one chunk after another, or the logits of all exist together
                part = mx.depends(part, [*sums, gradients[-1]])
            figures, slope = chunk_loss(head(part).astype(mx.float32), *(values[rows] for values in per_row))
            more = tuple(values.sum() for values in figures)
            sums = tuple(map(mx.add, sums, more)) if sums else more
            gradients += mx.vjp(head, [part], [slope.astype(part.dtype)])[1]
        return (*sums, mx.concatenate(gradients))

    @sums_of.vjp
    def _(primals: Arrays, cotangents: Arrays, outputs: Arrays) -> Arrays:
        gradient = outputs[-1]
        return (cotangents[0] * gradient).astype(gradient.dtype), *map(mx.zeros_like, primals[1:])

    outputs: Any = sums_of(hidden, *per_row)
    return tuple(outputs[:-1])


def linear_cross_entropy(head: Head, hidden: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
    """Return the sum of -log p(target) and the number of targets that are the most probable token.

    hidden (N, D) of any float type, targets (N,) -> loss () float32, correct () int32. A target below 0 does not
    count. Differentiable in `hidden` only: the head's weights get no gradient.
    """
    loss, correct = sum_in_chunks(head, hidden, [targets], _cross_entropy)
    return loss, correct


def _cross_entropy(logits: mx.array, targets: mx.array) -> tuple[Arrays, mx.array]:
    """Return loss and correctness of each row, and the slope of the loss, for one chunk of rows."""
    counted = (targets >= 0)[:, None]
    column = mx.maximum(targets, 0)[:, None]
    highest = logits.max(axis=-1, keepdims=True)
    target = mx.take_along_axis(logits, column, axis=-1)
    exponentials = exp(logits - highest)
    normaliser = exponentials.sum(axis=-1, keepdims=True)
    loss = mx.where(counted, mx.log(normaliser) + highest - target, 0.0)
    correct = (target >= highest) & counted
    # d loss / d logits = softmax - one-hot, and 0 for padding: there the softmax is divided by infinity.
    normaliser = mx.where(counted, normaliser, mx.inf)
    slope = mx.put_along_axis(
        exponentials / normaliser, column, mx.exp(target - highest) / normaliser - counted, axis=-1
    )
    return (loss[:, 0], correct[:, 0]), slope
