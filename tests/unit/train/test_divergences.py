"""The chunked divergences against their plain formulas, and the properties that training relies on."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from mlx_distill.train.divergences import (
    Divergence,
    Losses,
    Sides,
    TeacherHead,
    TopK,
    sum_divergence,
    token_divergences,
)
from mlx_distill.train.loss import linear_cross_entropy
from mlx_distill.train.step import scalar

V, WIDTH, N = 301, 24, 37
KINDS = (Divergence("forward"), Divergence("reverse"), Divergence("jsd", beta=0.3))
SETTINGS = (
    *KINDS,
    Divergence("forward", temperature=2.0),
    Divergence("reverse", temperature=0.7, hard_labels=0.25),
    Divergence("jsd", beta=0.5, temperature=1.5, hard_labels=0.5),
)
Array = NDArray[np.float64]


def head_of(weights: mx.array) -> Callable[[mx.array], mx.array]:
    return lambda hidden: hidden @ weights.T


class Pair:
    """A teacher and a student with heads of their own, and targets. Every fifth target is padding."""

    def __init__(self, scale: float = 0.25) -> None:
        mx.random.seed(0)
        self.weights = scale * mx.random.normal((V, WIDTH))
        self.teacher_weights = self.weights + scale / 2 * mx.random.normal((V, WIDTH))
        self.hidden, self.teacher_hidden = mx.random.normal((N, WIDTH)), mx.random.normal((N, WIDTH))
        self.targets = mx.random.randint(0, V, (N,))
        self.targets[::5] = -1

    def whole(self, divergence: Divergence, hidden: mx.array, targets: mx.array | None = None) -> Losses:
        targets = self.targets if targets is None else targets
        teacher = TeacherHead(head_of(self.teacher_weights), self.teacher_hidden)
        return sum_divergence(divergence, Sides(head_of(self.weights), hidden, targets, teacher, V))

    def top(self, k: int) -> tuple[mx.array, mx.array]:
        """Return the teacher's k most probable tokens and their log-probabilities."""
        logits = self.teacher_hidden @ self.teacher_weights.T
        logs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        ids = mx.argsort(-logs, axis=-1)[:, :k]
        return ids, mx.take_along_axis(logs, ids, axis=-1)

    def top_k(self, divergence: Divergence, k: int, hidden: mx.array) -> Losses:
        teacher = TopK(*self.top(k))
        return sum_divergence(divergence, Sides(head_of(self.weights), hidden, self.targets, teacher, V))

    def plain(self, divergence: Divergence, hidden: mx.array, k: int = 0) -> mx.array:
        """Compute the loss by its definition, without chunks, for automatic differentiation."""
        logs = mx.log(mx.softmax(hidden @ self.weights.T, axis=-1))
        teacher = mx.log(mx.softmax(self.teacher_hidden @ self.teacher_weights.T, axis=-1))
        cross_entropy = -mx.take_along_axis(logs, mx.maximum(self.targets, 0)[:, None], axis=-1)[:, 0]
        if k:
            ids, _ = self.top(k)
            inside = mx.put_along_axis(mx.zeros(logs.shape), ids, mx.array(1.0), axis=-1)
            logs, teacher = (
                mx.concatenate(
                    [
                        mx.take_along_axis(side, ids, axis=-1),
                        mx.log((mx.exp(side) * (1 - inside)).sum(axis=-1, keepdims=True)),
                    ],
                    axis=-1,
                )
                for side in (logs, teacher)
            )
        t, beta = divergence.temperature, divergence.beta
        q, p = mx.softmax(logs / t, axis=-1), mx.softmax(teacher / t, axis=-1)
        if divergence.kind == "forward":
            loss = p * mx.log(p / q)
        elif divergence.kind == "reverse":
            loss = q * mx.log(q / p)
        else:
            mixture = beta * p + (1 - beta) * q
            loss = beta * p * mx.log(p / mixture) + (1 - beta) * q * mx.log(q / mixture)
        h = divergence.hard_labels
        rows = (1 - h) * t**2 * loss.sum(axis=-1) + h * cross_entropy
        return mx.where(self.targets >= 0, rows, 0.0).sum()


@pytest.fixture(params=[1 << 26, 16 * 4 * V])
def pair(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Pair:
    """Return a pair whose 37 rows are one chunk, or three of which the last is smaller."""
    monkeypatch.setattr("mlx_distill.models.score.CHUNK_BYTES", request.param)
    return Pair()


def value_and_gradient(loss_of: Callable[[mx.array], Any], hidden: mx.array) -> tuple[float, Array]:
    """Return the loss and its gradient in the hidden states."""

    def loss(hidden: mx.array) -> Any:
        result = loss_of(hidden)
        return result.loss if isinstance(result, Losses) else result

    value, gradient = mx.value_and_grad(loss)(hidden)
    return scalar(value), np.array(gradient, dtype=np.float64)


@pytest.mark.parametrize("k", [0, 1, 7, V // 2])
@pytest.mark.parametrize("divergence", SETTINGS)
def test_loss_and_gradient_equal_the_plain_formula(pair: Pair, divergence: Divergence, k: int) -> None:
    def ours(hidden: mx.array) -> Losses:
        return pair.top_k(divergence, k, hidden) if k else pair.whole(divergence, hidden)

    loss, gradient = value_and_gradient(ours, pair.hidden)
    expected, expected_gradient = value_and_gradient(lambda hidden: pair.plain(divergence, hidden, k), pair.hidden)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert np.linalg.norm(gradient - expected_gradient) <= 1e-5 * np.linalg.norm(expected_gradient)
    assert not gradient[::5].any(), "padding has no gradient"


@pytest.mark.parametrize("divergence", SETTINGS)
def test_compiled_equals_eager(pair: Pair, divergence: Divergence) -> None:
    def gradient(hidden: mx.array, targets: mx.array) -> mx.array:
        result: mx.array = mx.grad(lambda hidden: pair.whole(divergence, hidden, targets).loss)(hidden)
        return result

    eager, compiled = gradient(pair.hidden, pair.targets), mx.compile(gradient)(pair.hidden, pair.targets)
    assert mx.allclose(eager, compiled, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k", [0, 1, 20, V // 2, V])
@pytest.mark.parametrize("divergence", [*KINDS, Divergence("forward", temperature=2.0)])
def test_a_teacher_equal_to_the_student_teaches_nothing(divergence: Divergence, k: int) -> None:
    pair = Pair()
    pair.teacher_weights, pair.teacher_hidden = pair.weights, pair.hidden

    def ours(hidden: mx.array) -> Losses:
        return pair.top_k(divergence, k, hidden) if k else pair.whole(divergence, hidden)

    loss, gradient = value_and_gradient(ours, pair.hidden)
    assert abs(loss) / N <= 1e-6
    assert np.abs(gradient).max() <= 1e-6


@pytest.mark.parametrize("divergence", KINDS)
def test_more_known_tokens_bring_the_loss_up_to_the_whole(divergence: Divergence) -> None:
    pair = Pair(scale=0.1)  # no token is so improbable that float32 does not know what is left for it
    whole = scalar(pair.whole(divergence, pair.hidden).loss)
    losses = [scalar(pair.top_k(divergence, k, pair.hidden).loss) for k in (1, 2, 4, 8, 32, 128, 256, V - 1)]
    assert losses[0] < 0.5 * whole
    for fewer, more in itertools.pairwise(losses):
        assert fewer <= more * (1 + 1e-6)
    assert losses[-1] == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("divergence", KINDS)
def test_sharp_random_pairs_equal_float64_and_are_positive(divergence: Divergence) -> None:
    """10,000 pairs. The teacher's known mass goes from 0.1 to 1 - 1e-7."""
    draw, n, vocabulary, k = np.random.default_rng(0), 10_000, 64, 8
    tail = 10 ** draw.uniform(-7, -0.05, (n, 1))
    inside, outside = (draw.dirichlet(np.full(size, 0.3), n) + 1e-9 for size in (k, vocabulary - k))
    p = np.concatenate(
        [inside / inside.sum(-1, keepdims=True) * (1 - tail), outside / outside.sum(-1, keepdims=True) * tail], axis=-1
    )
    q = np.exp(np.log(p) + draw.normal(0, draw.choice([0.01, 1, 4], (n, 1)), p.shape))
    q /= q.sum(axis=-1, keepdims=True)
    log_probs = np.log(p[:, :k]).astype(np.float32)
    teacher = TopK(mx.broadcast_to(mx.arange(k)[None], (n, k)), mx.array(log_probs))
    logits, targets = mx.array(np.log(q).astype(np.float32)), mx.zeros(n, mx.int32)
    ours = np.array(token_divergences(divergence, Sides(lambda x: x, logits, targets, teacher, vocabulary)).loss)

    known = np.exp(log_probs.astype(np.float64))
    p, q = (np.c_[side[:, :k], side[:, k:].sum(-1)] for side in (np.c_[known, 1 - known.sum(-1)], q))
    p, q = (side[tail[:, 0] > 1e-5] for side in (p, q))  # float32 knows a smaller tail only roughly
    m = divergence.beta * p + (1 - divergence.beta) * q
    expected = {
        "forward": p * np.log(p / q),
        "reverse": q * np.log(q / p),
        "jsd": divergence.beta * p * np.log(p / m) + (1 - divergence.beta) * q * np.log(q / m),
    }[divergence.kind].sum(axis=-1)
    assert np.isfinite(ours).all()
    assert ours.min() >= 0
    np.testing.assert_allclose(ours[tail[:, 0] > 1e-5], expected, rtol=1e-2, atol=2e-6)


def test_jsd_is_symmetric_at_one_half() -> None:
    pair, swapped = Pair(), Pair()
    swapped.weights, swapped.teacher_weights = pair.teacher_weights, pair.weights
    swapped.hidden, swapped.teacher_hidden = pair.teacher_hidden, pair.hidden
    jsd = Divergence("jsd", beta=0.5)
    one, other = pair.whole(jsd, pair.hidden).loss.item(), swapped.whole(jsd, swapped.hidden).loss.item()
    assert one == pytest.approx(other, rel=1e-5)
    forward = Divergence("forward")
    one, other = pair.whole(forward, pair.hidden).loss.item(), swapped.whole(forward, swapped.hidden).loss.item()
    assert one != pytest.approx(other, rel=1e-2)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_small_jsd_is_beta_times_one_minus_beta_of_kl(beta: float) -> None:
    pair = Pair()
    pair.teacher_weights = pair.weights
    pair.teacher_hidden = pair.hidden + 0.01 * mx.random.normal(pair.hidden.shape, key=mx.random.key(3))
    jsd = pair.whole(Divergence("jsd", beta=beta), pair.hidden).loss.item()
    kl = pair.whole(Divergence("forward"), pair.hidden).loss.item()
    assert jsd / (beta * (1 - beta)) == pytest.approx(kl, rel=0.01)


def test_a_one_hot_teacher_is_sft() -> None:
    pair = Pair()
    ids, log_probs = mx.maximum(pair.targets, 0)[:, None], mx.zeros((N, 1))

    def kd(hidden: mx.array) -> Losses:
        teacher = TopK(ids, log_probs)
        return sum_divergence(Divergence("forward"), Sides(head_of(pair.weights), hidden, pair.targets, teacher, V))

    def sft(hidden: mx.array) -> mx.array:
        return linear_cross_entropy(head_of(pair.weights), hidden, pair.targets)[0]

    ours, theirs = value_and_gradient(kd, pair.hidden), value_and_gradient(sft, pair.hidden)
    assert ours[0] == theirs[0]
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-5, atol=1e-6)
    correct = linear_cross_entropy(head_of(pair.weights), pair.hidden, pair.targets)[1]
    losses = kd(pair.hidden)
    assert losses.cross_entropy.item() == theirs[0]
    assert losses.correct.item() == correct.item()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_hard_labels_mix_in_the_cross_entropy(share: float) -> None:
    pair = Pair()
    divergence = pair.whole(Divergence("reverse", temperature=2.0), pair.hidden)
    mixed = pair.whole(Divergence("reverse", temperature=2.0, hard_labels=share), pair.hidden)
    cross_entropy, correct = linear_cross_entropy(head_of(pair.weights), pair.hidden, pair.targets)
    expected = (1 - share) * divergence.loss.item() + share * cross_entropy.item()
    assert mixed.loss.item() == pytest.approx(expected, rel=1e-6)
    assert mixed.cross_entropy.item() == pytest.approx(cross_entropy.item(), rel=1e-6)
    assert mixed.correct.item() == correct.item()


@pytest.mark.parametrize("divergence", SETTINGS)
def test_wider_heads_equal_heads_cut_to_the_shared_ids(divergence: Divergence) -> None:
    pair, wider = Pair(), Pair()
    wider.teacher_weights = mx.concatenate([pair.teacher_weights, mx.ones((128, WIDTH))])
    wider.weights = mx.concatenate([pair.weights, mx.ones((3, WIDTH))])
    one, other = (
        value_and_gradient(lambda hidden, pair=pair: pair.whole(divergence, hidden), pair.hidden)  # type: ignore[misc]
        for pair in (pair, wider)
    )
    assert one[0] == pytest.approx(other[0], rel=1e-6)
    np.testing.assert_allclose(one[1], other[1], rtol=1e-5, atol=1e-6)


def test_unknown_log_probs_count_as_impossible() -> None:
    """Servers send -9999 or minus infinity for a token that they know nothing about."""
    pair = Pair()
    ids, log_probs = pair.top(4)
    some = mx.array(np.where(np.arange(4) < 3, np.array(log_probs), -np.inf).astype(np.float32))

    def kd(hidden: mx.array, log_probs: mx.array) -> Losses:
        teacher = TopK(ids, log_probs)
        return sum_divergence(Divergence("reverse"), Sides(head_of(pair.weights), hidden, pair.targets, teacher, V))

    loss, gradient = value_and_gradient(lambda hidden: kd(hidden, some), pair.hidden)
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()
    assert loss == kd(pair.hidden, mx.maximum(some, -9999.0)).loss.item()


def test_rounded_log_probs_above_one_stay_a_distribution() -> None:
    """A teacher stored in steps of 0.1 nat may sum to more than 1: the loss must not turn negative."""
    pair = Pair()
    pair.teacher_weights, pair.teacher_hidden = 4 * pair.weights, pair.hidden
    pair.weights = pair.teacher_weights
    ids, log_probs = pair.top(20)
    up = mx.ceil(log_probs * 10) / 10
    assert (mx.exp(up).sum(axis=-1) > 1.0).any()
    teacher = TopK(ids, up)
    loss = sum_divergence(Divergence(), Sides(head_of(pair.weights), pair.hidden, pair.targets, teacher, V)).loss.item()
    assert 0 <= loss < 0.05 * N  # type: ignore[operator]
