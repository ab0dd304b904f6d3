"""The loss of a linear head without its logits: made in chunks of rows, with the gradient computed on the way.

Logits of all rows at once would be the largest tensor of a step: rows x 151,936 float32 for Qwen2.5. The head is
frozen, so the gradient is needed for the hidden states only, and softmax is at hand in the forward pass: each chunk
makes its logits, its share of the loss and its gradient, and drops the logits (the idea of Liger Kernel's fused
linear cross-entropy, Hsu et al. 2024, arXiv:2410.10989). Each exponential is computed once.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlx_distill.models.load import Head
from mlx_distill.models.score import chunks, vocabulary_of
from mlx_distill.train.cpu_kernels import exp


def linear_cross_entropy(head: Head, hidden: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
    """Sum of -log p(target) and how many targets are the most probable token.

    hidden (N, D) in any float type, targets (N,) -> loss () float32, correct () int32. Differentiable in `hidden`
    only; the head's own weights get no gradient.
    """
    vocabulary = vocabulary_of(head, hidden)

    @mx.custom_function
    def loss_of(states: mx.array, wanted: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        total, right = mx.array(0.0), mx.array(0)
        gradients: list[mx.array] = []
        for rows in chunks(states.shape[0], vocabulary):
            part = states[rows]
            if gradients:  # one chunk after another, or all their logits would exist at once
                part = mx.depends(part, [total, right, gradients[-1]])
            loss, correct, gradient = _chunk(head, part, wanted[rows])
            total, right = total + loss, right + correct
            gradients.append(gradient)
        return total, right, mx.concatenate(gradients)

    @loss_of.vjp
    def _(
        primals: tuple[mx.array, mx.array], cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
    ) -> tuple[mx.array, mx.array]:
        gradient = outputs[2]
        return (cotangents[0] * gradient).astype(gradient.dtype), mx.zeros_like(primals[1])

    outputs: Any = loss_of(hidden, targets)
    return outputs[0], outputs[1]


def _chunk(head: Head, states: mx.array, targets: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Loss sum, number correct and the gradient of the loss sum in `states`, for rows whose logits fit in memory."""
    logits = head(states).astype(mx.float32)  # (n, V)
    column = targets[:, None]
    highest = logits.max(axis=-1, keepdims=True)
    wanted = mx.take_along_axis(logits, column, axis=-1)
    exponentials = exp(logits - highest)
    normaliser = exponentials.sum(axis=-1, keepdims=True)
    loss = (mx.log(normaliser) + highest - wanted).sum()
    correct = (wanted >= highest).sum()
    # d loss / d logits = softmax - one-hot
    slope = mx.put_along_axis(
        exponentials / normaliser, column, mx.exp(wanted - highest) / normaliser - 1.0, axis=-1
    ).astype(states.dtype)
    _, (gradient,) = mx.vjp(head, [states], [slope])
    return loss, correct, gradient
