"""Figures of two models on the same rows, and the interval of their difference; numpy only, no model in sight.

loss            mean over answer tokens of -log p(token), natural logarithm, end token included
perplexity      exp(loss)
token accuracy  share of answer tokens that are the model's most probable one
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 10_000
FEWEST_FAMILIES = 5
"""Below this many, resampling families says nothing about families that were not drawn: no interval is given."""
METRICS = ("loss", "perplexity", "token_accuracy")
_ALIKE = 1e-12
_LARGEST_LOSS = 700.0
"""exp() of more does not fit a float; a uniform guess over 150,000 tokens has a loss of 12."""


class RowSums(Protocol):
    """What a row contributes; scoring.RowScore has this shape."""

    @property
    def loss_sum(self) -> float: ...
    @property
    def n_correct(self) -> int: ...
    @property
    def n_tokens(self) -> int: ...


@dataclass(frozen=True)
class PairedRow:
    """One row, scored by both models."""

    family: str
    category: str
    base: RowSums
    distilled: RowSums


@dataclass(frozen=True)
class Figures:
    """One model on some rows."""

    loss: float
    perplexity: float
    token_accuracy: float


@dataclass(frozen=True)
class Bounded:
    """A mean, or a difference (distilled minus base); `low` and `high` bound its 95 % interval. They are None where
    there are too few families, and for a mean where all of these are alike: resampling cannot say how far others would
    be from that."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Changes:
    """The difference of each figure."""

    loss: Bounded
    perplexity: Bounded
    token_accuracy: Bounded


@dataclass(frozen=True)
class Measured:
    """Both models on the same rows."""

    base: Figures
    distilled: Figures
    difference: Changes
    n_rows: int
    n_tokens: int
    n_families: int

    @property
    def has_interval(self) -> bool:
        return self.n_families >= FEWEST_FAMILIES


@dataclass(frozen=True)
class HeldOut(Measured):
    """All `test` rows, and the same by category."""

    by_category: dict[str, Measured]


def is_usable(loss: float) -> bool:
    """False for the loss of a broken model: not a number, or beyond what any model scores."""
    return math.isfinite(loss) and loss <= _LARGEST_LOSS


def held_out(rows: Sequence[PairedRow], seed: int) -> HeldOut:
    """The figures of all rows and of each category, in the order in which categories first appear."""
    categories = dict.fromkeys(row.category for row in rows)
    by_category = {name: measured([row for row in rows if row.category == name], seed) for name in categories}
    return HeldOut(**vars(measured(rows, seed)), by_category=by_category)


def measured(rows: Sequence[PairedRow], seed: int) -> Measured:
    """The figures of some rows, each token weighing the same, with intervals over their families."""
    families = _family_sums(rows)
    totals = families.sum(axis=0)
    base, distilled = _figures(totals)
    changes = dict(zip(METRICS, distilled - base, strict=True))
    bounds = _bounds(families, seed) if len(families) >= FEWEST_FAMILIES else dict.fromkeys(METRICS, (None, None))
    return Measured(
        Figures(*map(float, base)),
        Figures(*map(float, distilled)),
        Changes(**{name: Bounded(float(changes[name]), *bounds[name]) for name in METRICS}),
        n_rows=len(rows),
        n_tokens=int(totals[0]),
        n_families=len(families),
    )


def bounded_mean(values: Sequence[tuple[str, float]], seed: int) -> Bounded:
    """The mean of (family, value) pairs, each value weighing the same, with the interval over their families."""
    sums: dict[str, NDArray[np.float64]] = {}
    for family, value in values:
        sums[family] = sums.get(family, np.zeros(2)) + np.array((1.0, value))
    families = np.stack(list(sums.values()))  # (F, 2): how many, and their sum
    n_values, total = families.sum(axis=0)
    means = families[:, 1] / families[:, 0]
    if len(families) < FEWEST_FAMILIES or np.ptp(means) < _ALIKE:
        return Bounded(float(total / n_values), None, None)
    drawn = _drawn(len(families), seed) @ families
    tail = _expanded_tail(len(families))
    low, high = np.quantile(drawn[:, 1] / drawn[:, 0], [tail, 1 - tail])
    return Bounded(float(total / n_values), float(low), float(high))


def _family_sums(rows: Iterable[PairedRow]) -> NDArray[np.float64]:
    """(F, 5): tokens, then loss and correct tokens of base and of distilled, summed over each family's rows."""
    sums: dict[str, NDArray[np.float64]] = {}
    for row in rows:
        own = (
            row.base.n_tokens,
            row.base.loss_sum,
            row.base.n_correct,
            row.distilled.loss_sum,
            row.distilled.n_correct,
        )
        sums[row.family] = sums.get(row.family, np.zeros(5)) + np.array(own)
    return np.stack(list(sums.values()))


def _figures(sums: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(..., 5) sums to the three figures (..., 3) of base and of distilled."""
    means = sums[..., 1:] / sums[..., :1]
    base, distilled = (
        np.stack([loss, np.exp(np.minimum(loss, _LARGEST_LOSS)), accuracy], axis=-1)
        for loss, accuracy in ((means[..., 0], means[..., 1]), (means[..., 2], means[..., 3]))
    )
    return base, distilled


def _bounds(families: NDArray[np.float64], seed: int) -> dict[str, tuple[float, float]]:
    """95 % bounds of each difference: a paired bootstrap that draws families with replacement.

    Families, since the rows of one are not independent; paired, since both models met the same rows.
    """
    base, distilled = _figures(_drawn(len(families), seed) @ families)
    tail = _expanded_tail(len(families))
    lows, highs = np.quantile(distilled - base, [tail, 1 - tail], axis=0)
    return {name: (float(low), float(high)) for name, low, high in zip(METRICS, lows, highs, strict=True)}


def _drawn(n_families: int, seed: int) -> NDArray[np.int64]:
    """(RESAMPLES, F): how often each family was taken."""
    random = np.random.default_rng(seed)
    return random.multinomial(n_families, np.full(n_families, 1 / n_families), size=RESAMPLES)


def _expanded_tail(n: int) -> float:
    """The quantile to cut at on either side so that few families do not give too narrow an interval.

    The expanded percentile interval of Hesterberg, "What Teachers Should Know About the Bootstrap", The American
    Statistician 69(4), 2015: Phi(-sqrt(n / (n - 1)) * t), with t from n - 1 degrees of freedom; the plain percentile
    interval of 9 families covers about 88 % instead of 95 %.
    """
    normal = NormalDist()
    return normal.cdf(-math.sqrt(n / (n - 1)) * _student_t(normal.inv_cdf(0.5 + CONFIDENCE / 2), n - 1))


def _student_t(z: float, freedom: int) -> float:
    """Student's t quantile from the normal one, to 0.3 % from 4 degrees on (Abramowitz and Stegun 26.7.5)."""
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
