"""Cross-entropy of a linear head in chunks, so that the logits of all rows never exist together.

They would be the largest tensor of a step: rows x 151,936 float32 for Qwen2.5. The head is frozen, so only the hidden
states need a gradient. Each chunk makes its logits, its part of the loss and its gradient, and drops the logits. This
is the idea of Liger Kernel's fused linear cross-entropy (Hsu et al. 2024, arXiv:2410.10989).
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlx_distill.models.load import Head
from mlx_distill.models.score import chunks, vocabulary_of
from mlx_distill.train.cpu_kernels import exp


def linear_cross_entropy(head: Head, hidden: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
    """Return the sum of -log p(target) and the number of targets that are the most probable token.

    hidden (N, D) of any float type, targets (N,) -> loss () float32, correct () int32. A target below 0 does not
    count. Differentiable in `hidden` only: the head's weights get no gradient.
    """
    vocabulary = vocabulary_of(head, hidden)

    @mx.custom_function
    def loss_of(hidden: mx.array, targets: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        loss, correct = mx.array(0.0), mx.array(0)
        gradients: list[mx.array] = []
        for rows in chunks(hidden.shape[0], vocabulary):
            part = hidden[rows]
            if gradients:  # compute one chunk after another, or the logits of all exist together
                part = mx.depends(part, [loss, correct, gradients[-1]])
            chunk_loss, chunk_correct, gradient = _chunk(head, part, targets[rows])
            loss, correct = loss + chunk_loss, correct + chunk_correct
            gradients.append(gradient)
        return loss, correct, mx.concatenate(gradients)

    @loss_of.vjp
    def _(
        primals: tuple[mx.array, mx.array], cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
    ) -> tuple[mx.array, mx.array]:
        gradient = outputs[2]
        return (cotangents[0] * gradient).astype(gradient.dtype), mx.zeros_like(primals[1])

    outputs: Any = loss_of(hidden, targets)
    return outputs[0], outputs[1]


def _chunk(head: Head, hidden: mx.array, targets: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Return the summed loss, the number correct, and the gradient of the loss in `hidden`, for one chunk of rows."""
    logits = head(hidden).astype(mx.float32)  # (n, V)
    counted = (targets >= 0)[:, None]
    column = mx.maximum(targets, 0)[:, None]
    highest = logits.max(axis=-1, keepdims=True)
    target = mx.take_along_axis(logits, column, axis=-1)
    exponentials = exp(logits - highest)
    normaliser = exponentials.sum(axis=-1, keepdims=True)
    loss = mx.where(counted, mx.log(normaliser) + highest - target, 0.0).sum()
    correct = ((target >= highest) & counted).sum()
    # d loss / d logits = softmax - one-hot, and 0 for padding: there the softmax is divided by infinity.
    normaliser = mx.where(counted, normaliser, mx.inf)
    slope = mx.put_along_axis(
        exponentials / normaliser, column, mx.exp(target - highest) / normaliser - counted, axis=-1
    ).astype(hidden.dtype)
    _, (gradient,) = mx.vjp(head, [hidden], [slope])
    return loss, correct, gradient
