"""The arithmetic of a comparison: means, differences, intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mlx_distill.compare.figures import FEWEST_FAMILIES, PairedRow, held_out, is_usable, measured
from mlx_distill.models.score import RowScore


def row(family: str, base: float, distilled: float, tokens: int = 10, category: str = "python") -> PairedRow:
    """A row whose tokens all have these losses; base has 4 of 10 right, distilled 7."""
    return PairedRow(
        family,
        category,
        RowScore(base * tokens, tokens * 4 // 10, tokens),
        RowScore(distilled * tokens, tokens * 7 // 10, tokens),
    )


def test_every_token_weighs_the_same() -> None:
    found = measured([row("a", 1.0, 0.5, tokens=10), row("b", 4.0, 3.5, tokens=30)], seed=0)
    assert found.base.loss == pytest.approx((10 * 1 + 30 * 4) / 40)
    assert found.base.perplexity == pytest.approx(math.exp(3.25))
    assert found.distilled.token_accuracy == pytest.approx(0.7)
    assert found.difference.loss.value == pytest.approx(-0.5)
    assert found.difference.token_accuracy.value == pytest.approx(0.3)
    assert (found.n_rows, found.n_tokens, found.n_families) == (2, 40, 2)


def test_few_families_have_no_interval() -> None:
    rows = [row(str(number), 2.0, 1.0) for number in range(FEWEST_FAMILIES)]
    few = measured([*rows[:-1], rows[0]], seed=0)
    assert not few.has_interval
    assert few.difference.loss.low is None
    assert few.difference.loss.high is None
    enough = measured(rows, seed=0)
    assert enough.has_interval
    assert enough.difference.loss.low == pytest.approx(-1.0)
    assert enough.difference.loss.high == pytest.approx(-1.0)


def test_the_interval_is_repeatable_and_its_seed_counts() -> None:
    rows = [row(str(number), 2.0, 1.0 + math.sin(number), tokens=10 * (number + 1)) for number in range(20)]
    first, again, other = measured(rows, seed=3), measured(rows, seed=3), measured(rows, seed=4)
    assert first == again
    assert first.difference.loss != other.difference.loss


def test_rows_of_one_family_are_drawn_together() -> None:
    """Copies of a row inside its family make nothing more certain."""
    rows = [row(str(number), 2.0, 1.0 + number / 10) for number in range(8)]
    once, thrice = measured(rows, seed=0).difference.loss, measured(rows * 3, seed=0).difference.loss
    assert thrice.low == pytest.approx(once.low)
    assert thrice.high == pytest.approx(once.high)


@pytest.mark.parametrize("n_families", [9, 20])
def test_the_interval_covers_a_known_effect_about_as_often_as_it_says(n_families: int) -> None:
    effect, random, covered, trials = -0.3, np.random.default_rng(5), 0, 100
    for trial in range(trials):
        rows = []
        for family in range(n_families):
            own = effect + random.normal(0, 0.15)
            for _ in range(2):
                tokens = int(random.integers(40, 200))
                base = random.normal(2.0, 0.3)
                rows.append(row(str(family), base, base + own + random.normal(0, 0.05), tokens))
        change = measured(rows, seed=trial).difference.loss
        assert change.low is not None and change.high is not None
        covered += change.low <= effect <= change.high
    assert 0.90 <= covered / trials <= 0.99


def test_categories_stand_in_the_order_of_the_rows_and_add_up() -> None:
    rows = [
        *(row(f"s{number}", 2.0, 1.0, category="sql") for number in range(3)),
        *(row(f"p{number}", 3.0, 2.5) for number in range(5)),
    ]
    found = held_out(rows, seed=0)
    assert list(found.by_category) == ["sql", "python"]
    assert sum(group.n_tokens for group in found.by_category.values()) == found.n_tokens == 80
    assert found.by_category["sql"].difference.loss.low is None
    assert found.by_category["python"].difference.loss.low == pytest.approx(-0.5)


@pytest.mark.parametrize(("loss", "usable"), [(2.0, True), (float("nan"), False), (float("inf"), False), (1e9, False)])
def test_a_loss_that_is_no_number_is_told_from_one_that_is(loss: float, usable: bool) -> None:
    assert is_usable(loss) is usable
