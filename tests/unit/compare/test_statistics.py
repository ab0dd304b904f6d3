"""Intervals: paired, by family, repeatable, and as wide as they say."""

from __future__ import annotations

import numpy as np
import pytest

from mlx_distill.compare.metrics.held_out import measure
from mlx_distill.compare.statistics import MIN_FAMILIES, bootstrap_mean
from mlx_distill.compare.table import Estimate
from tests.support.reports import make_comparison


def loss_difference(
    rows: list[tuple[str, float, float]], *, seed: int = 0, n_tokens: list[int] | None = None
) -> Estimate:
    """The difference of the loss over rows of (family, loss of a, loss of b)."""
    data = make_comparison([(family, "python", a, b) for family, a, b in rows], n_tokens=n_tokens or (), seed=seed)
    return measure(data, range(len(rows))).difference[0]


def test_every_token_has_the_same_weight() -> None:
    data = make_comparison([("a", "x", 1.0, 0.5), ("b", "x", 4.0, 3.5)], n_tokens=[10, 30])
    found = measure(data, range(2))
    assert found.a == pytest.approx((3.25, np.exp(3.25), 0.4))
    assert found.difference[0].value == pytest.approx(-0.5)
    assert found.difference[2].value == pytest.approx(0.2)
    assert (found.n_rows, found.n_tokens, found.n_families) == (2, 40, 2)


def test_few_families_have_no_interval() -> None:
    rows = [(str(number), 2.0, 1.0 + number / 10) for number in range(MIN_FAMILIES)]
    few = loss_difference([*rows[:-1], rows[0]])
    assert (few.low, few.high) == (None, None)
    enough = loss_difference(rows)
    assert enough.low is not None and enough.high is not None
    assert enough.low < enough.value < enough.high


def test_equal_families_have_no_interval() -> None:
    assert loss_difference([(str(number), 2.0, 1.0) for number in range(9)]).low is None
    assert bootstrap_mean([str(number) for number in range(9)], [1.0] * 9, 0) == Estimate(1.0)


def test_seed_decides_the_interval() -> None:
    rows = [(str(number), 2.0, 1.0 + np.sin(number)) for number in range(20)]
    assert loss_difference(rows, seed=3) == loss_difference(rows, seed=3)
    assert loss_difference(rows, seed=3) != loss_difference(rows, seed=4)


def test_rows_of_one_family_are_drawn_together() -> None:
    """Copies of a row inside its family make nothing more certain."""
    rows = [(str(number), 2.0, 1.0 + number / 10) for number in range(8)]
    once, thrice = loss_difference(rows), loss_difference(rows * 3)
    assert [thrice.low, thrice.high] == pytest.approx([once.low, once.high])


@pytest.mark.parametrize("n_families", [9, 20])
def test_interval_of_a_difference_covers_the_truth(n_families: int) -> None:
    effect, random, covered = -0.3, np.random.default_rng(5), 0
    for trial in range(100):
        rows, n_tokens = [], []
        for family in range(n_families):
            own = effect + random.normal(0, 0.15)
            for _ in range(2):
                n_tokens.append(int(random.integers(40, 200)))
                base = random.normal(2.0, 0.3)
                rows.append((str(family), base, base + own + random.normal(0, 0.05)))
        found = loss_difference(rows, seed=trial, n_tokens=n_tokens)
        assert found.low is not None and found.high is not None
        covered += found.low <= effect <= found.high
    assert 90 <= covered <= 99
