"""Divergences between the teacher's and the student's next token, in chunks like the cross-entropy of `loss.py`.

With p the teacher's probabilities, q = softmax(z) the student's, and i a token:

    forward  L = sum p log(p / q)                                     dL/dz_i = q_i - p_i
    reverse  L = sum q log(q / p)                                     dL/dz_i = q_i (log(q_i / p_i) - L)
    jsd      L = b sum p log(p / m) + (1 - b) sum q log(q / m)        dL/dz_i = q_i (g_i - sum q g)
             m = b p + (1 - b) q                                      g = (1 - b) log(q / m)

jsd is the generalised Jensen-Shannon divergence of GKD (Agarwal et al. 2023, arXiv:2306.13649). A temperature t divides
the logits of both sides, and the loss is multiplied by its square (Hinton et al. 2015, arXiv:1503.02531).

If only the k most probable tokens of the teacher are known, all others form one more category, the tail: its
probability is what is left to 1, on both sides. This is a lower bound of L over the whole vocabulary, and the gradient
inside the tail follows the student's own shape: dL/dz_i = dL/dz_tail q_i / q_tail.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import mlx.core as mx

from mlx_distill.models.load import Head
from mlx_distill.models.score import chunk_limit, map_chunks
from mlx_distill.train.cpu_kernels import Arrays, exp
from mlx_distill.train.loss import ChunkLoss, sum_in_chunks

MIN_PROBABILITY = 1e-37
"""Close to float32's smallest normal number. Keeps logarithms finite."""
MIN_LOG_PROB = -80.0
"""Replaces smaller log-probabilities of the teacher, minus infinity included."""
MIN_TAIL = 1e-5
"""A smaller tail of the teacher, 1 - sum p, is only the rounding of float32. The student's tail replaces it, up to this
value."""


@dataclass(frozen=True)
class Divergence:
    """A divergence and its settings. The default is the forward KL divergence, KL(teacher || student)."""

    kind: Literal["forward", "reverse", "jsd"] = "forward"
    beta: float = 0.5
    """Weight of the teacher in the mixture of `jsd`, between 0 and 1. Other kinds ignore it."""
    temperature: float = 1.0
    hard_labels: float = 0.0
    """Fraction h of the cross-entropy: the loss is (1 - h) divergence + h cross-entropy."""


@dataclass(frozen=True)
class TopK:
    """The teacher's k most probable tokens for each of N targets; all others form the tail.

    At a temperature other than 1, the tail counts as one token.
    """

    ids: mx.array  # (N, k), all different in a row
    log_probs: mx.array  # (N, k) float32, at temperature 1


@dataclass(frozen=True)
class TeacherHead:
    """The teacher's whole distribution, which its head computes from its hidden states."""

    head: Head
    hidden: mx.array  # (N, E) of any float type


@dataclass(frozen=True)
class Sides:
    """The student's and the teacher's distributions of N tokens."""

    head: Head
    """The student's."""
    hidden: mx.array  # (N, D) of any float type
    targets: mx.array  # (N,); a target below 0 does not count
    teacher: TopK | TeacherHead
    vocabulary: int
    """The probabilities are those of the first ids: heads may be padded to different widths."""


class Losses(NamedTuple):
    """Figures of each token (N,), or their sums (). Only the summed `loss` has a gradient."""

    loss: mx.array
    cross_entropy: mx.array
    """-log q(target), at temperature 1."""
    correct: mx.array
    """The target is the student's most probable token."""


def sum_divergence(divergence: Divergence, sides: Sides) -> Losses:
    """Return the sums over tokens. `loss` is differentiable in the student's hidden states only."""
    per_row, chunk_loss, chunk_bytes = _chunk_loss(divergence, sides)
    return Losses(*sum_in_chunks(_cut(sides.head, sides.vocabulary), sides.hidden, per_row, chunk_loss, chunk_bytes))


def token_divergences(divergence: Divergence, sides: Sides) -> Losses:
    """Return the figures of each token, as `sum_divergence` sums them. Without a gradient."""
    per_row, chunk_loss, chunk_bytes = _chunk_loss(divergence, sides)
    head = _cut(sides.head, sides.vocabulary)

    def compute(hidden: mx.array, *per_row: mx.array) -> Arrays:
        figures, _ = chunk_loss(head(hidden).astype(mx.float32), *per_row)
        return figures

    return Losses(*map_chunks(compute, [sides.hidden, *per_row], sides.vocabulary, chunk_bytes))


def _chunk_loss(divergence: Divergence, sides: Sides) -> tuple[Arrays, ChunkLoss, int]:
    """Return the arrays of each row, the loss of a chunk of them, and the bytes of a chunk's logits (0: default)."""
    targets, teacher, vocabulary = sides.targets, sides.teacher, sides.vocabulary
    if isinstance(teacher, TopK):
        return (targets, teacher.ids, teacher.log_probs), partial(_top_k, divergence), 0

    def chunk_loss(logits: mx.array, targets: mx.array, teacher_hidden: mx.array) -> tuple[Arrays, mx.array]:
        teacher_logits = _cut(teacher.head, vocabulary)(teacher_hidden).astype(mx.float32)
        return _whole_vocabulary(divergence, logits, targets, teacher_logits)

    return (targets, mx.stop_gradient(teacher.hidden)), chunk_loss, chunk_limit() // 2  # there are two heads


def _cut(head: Head, vocabulary: int) -> Head:
    """Return the head with its first `vocabulary` logits."""
    return lambda hidden: head(hidden)[..., :vocabulary]


def _whole_vocabulary(
    divergence: Divergence, logits: mx.array, targets: mx.array, teacher_logits: mx.array
) -> tuple[Arrays, mx.array]:
    temperature = divergence.temperature
    teacher, _ = _softmax(teacher_logits / temperature)
    student, log_normaliser = _softmax(logits / temperature)
    if temperature != 1:
        log_normaliser = mx.logsumexp(logits, axis=-1, keepdims=True)
    return _add_hard_labels(divergence, logits, log_normaliser, targets, *_compare(divergence, teacher, student))


def _top_k(
    divergence: Divergence, logits: mx.array, targets: mx.array, ids: mx.array, log_probs: mx.array
) -> tuple[Arrays, mx.array]:
    """Compare k + 1 categories, then spread the slope of the tail over the tokens in it."""
    highest = logits.max(axis=-1, keepdims=True)
    exponentials = exp(logits - highest)
    normaliser = exponentials.sum(axis=-1, keepdims=True)
    log_normaliser = mx.log(normaliser) + highest
    outside = mx.put_along_axis(exponentials, ids, mx.array(0.0), axis=-1)
    sum_outside = mx.maximum(outside.sum(axis=-1, keepdims=True), MIN_PROBABILITY)
    logs = mx.take_along_axis(logits, ids, axis=-1) - log_normaliser
    # The tail is summed, because float32 cannot tell a small 1 - sum q from 0.
    student_tail = sum_outside / normaliser
    student = _with_tail(exp(logs), logs, student_tail, student_tail)

    log_probs = mx.maximum(log_probs, MIN_LOG_PROB)
    probs = exp(log_probs)
    known = probs.sum(axis=-1, keepdims=True)
    excess = mx.maximum(known, 1.0)  # of rounded probabilities
    unknown = 1 - known
    tail = mx.where(unknown > MIN_TAIL, unknown, mx.minimum(student_tail, MIN_TAIL))
    teacher = _with_tail(probs / excess, log_probs - mx.log(excess), mx.where(unknown > 0, tail, 0.0), tail)

    if divergence.temperature != 1:
        teacher, student = (_softmax(side.logs / divergence.temperature)[0] for side in (teacher, student))
    loss, slope = _compare(divergence, teacher, student)
    slope = mx.put_along_axis(outside * (slope[:, -1:] / sum_outside), ids, slope[:, :-1], axis=-1)
    return _add_hard_labels(divergence, logits, log_normaliser, targets, loss, slope)


class _Distribution(NamedTuple):
    """Probabilities of categories (n, C), and their logarithms."""

    probs: mx.array
    logs: mx.array


def _with_tail(probs: mx.array, logs: mx.array, tail: mx.array, tail_in_log: mx.array) -> _Distribution:
    """Add the category of the tail. `tail_in_log` is not 0, so its logarithm is finite."""
    log_tail = mx.log(mx.maximum(tail_in_log, MIN_PROBABILITY))
    return _Distribution(mx.concatenate([probs, tail], axis=-1), mx.concatenate([logs, log_tail], axis=-1))


def _softmax(scores: mx.array) -> tuple[_Distribution, mx.array]:
    """Return the probabilities, and the logarithm of their normaliser (n, 1)."""
    highest = scores.max(axis=-1, keepdims=True)
    exponentials = exp(scores - highest)
    normaliser = exponentials.sum(axis=-1, keepdims=True)
    log_normaliser = mx.log(normaliser) + highest
    return _Distribution(exponentials / normaliser, scores - log_normaliser), log_normaliser


def _compare(divergence: Divergence, teacher: _Distribution, student: _Distribution) -> tuple[mx.array, mx.array]:
    """Return the divergence of each row (n,) and its slope (n, C) in the student's logits.

    A divergence is never negative, but its rounded sum can be.
    """
    (p, log_p), (q, log_q) = teacher, student
    if divergence.kind == "forward":
        loss, slope = p * (log_p - log_q), q - p
        return mx.maximum(loss.sum(axis=-1), 0.0), slope
    if divergence.kind == "reverse":
        ratio = log_q - log_p
        loss = (q * ratio).sum(axis=-1, keepdims=True)
        return mx.maximum(loss[:, 0], 0.0), q * (ratio - loss)
    beta = divergence.beta  # of jsd; g as in the module's docstring
    log_m = mx.log(mx.maximum(beta * p + (1 - beta) * q, MIN_PROBABILITY))
    g = (1 - beta) * (log_q - log_m)
    of_student = (q * g).sum(axis=-1, keepdims=True)
    of_teacher = beta * (p * (log_p - log_m)).sum(axis=-1)
    return mx.maximum(of_teacher + of_student[:, 0], 0.0), q * (g - of_student)


def _add_hard_labels(
    divergence: Divergence,
    logits: mx.array,
    log_normaliser: mx.array,
    targets: mx.array,
    loss: mx.array,
    slope: mx.array,
) -> tuple[Arrays, mx.array]:
    """Scale by the temperature, mix in the cross-entropy, and set rows that do not count to 0."""
    column = mx.maximum(targets, 0)[:, None]
    target = mx.take_along_axis(logits, column, axis=-1)
    cross_entropy = (log_normaliser - target)[:, 0]
    correct = (target >= logits.max(axis=-1, keepdims=True))[:, 0]
    loss, slope = divergence.temperature**2 * loss, divergence.temperature * slope
    if divergence.hard_labels:
        share = divergence.hard_labels
        probs = exp(logits - log_normaliser)
        one_less = mx.take_along_axis(probs, column, axis=-1) - 1
        loss = (1 - share) * loss + share * cross_entropy
        slope = (1 - share) * slope + share * mx.put_along_axis(probs, column, one_less, axis=-1)
    counted = targets >= 0
    figures = mx.where(counted, loss, 0.0), mx.where(counted, cross_entropy, 0.0), correct & counted
    return figures, mx.where(counted[:, None], slope, 0.0)
