"""The tables of the held-out rows, and what their findings say."""

from __future__ import annotations

import pytest

from mlx_distill.compare.metrics.held_out import held_out, held_out_by_category
from tests.support.reports import make_comparison


def finding(losses: list[tuple[float, float]]) -> str:
    """The finding and the note on rows with these losses of a and b, each in its own family."""
    table = held_out(make_comparison([(f"f{n}", "sql", a, b) for n, (a, b) in enumerate(losses)]))
    return table.finding + table.note


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        ([(2.0, 1.5 + n / 100) for n in range(12)], "is 2.000 for base and 1.555 for distilled (-22.3 %)"),
        ([(2.0, 1.5 + n / 100) for n in range(12)], "excludes zero"),
        ([(2.0, 2.0 + (-1) ** n * 0.5 - 0.01) for n in range(12)], "includes zero, so it may be chance"),
        ([(2.0, 1.0), (2.0, 1.1)], "without an interval: the difference may be chance"),
        ([(2.0, 1.0), (2.0, 1.1)], "No interval: 2 families"),
        ([(2.0, 2.0)] * 9, "is the same for base and distilled"),
    ],
)
def test_finding_says_no_more_than_the_figures(losses: list[tuple[float, float]], says: str) -> None:
    assert says in finding(losses)


def test_cells_hold_text_value_and_interval() -> None:
    table = held_out(make_comparison())
    assert [cell.text for cell in table.rows["loss"][:2]] == ["2.000", "1.290"]
    difference = table.rows["loss"][2]
    assert difference.text == f"-0.710 (-35.5 %) [{difference.low:+.3f}, {difference.high:+.3f}]"
    assert table.rows["token accuracy"][2].text == "+20.0 points"
    assert "90 answer tokens of 9 test rows in 9 families" in table.note


def test_categories_keep_the_order_of_the_rows() -> None:
    table = held_out_by_category(make_comparison())
    assert table
    assert list(table.rows) == ["sql", "python"]
    assert [sum(cells[column].value or 0 for cells in table.rows.values()) for column in range(3)] == [9, 9, 90]
    assert table.rows["sql"][4].low is None
    assert table.rows["python"][4].low is not None
    assert "fewer than 5 families" in table.note
    assert "best against base in sql" in table.finding
    assert "this may be chance" in table.finding


def test_one_category_needs_no_table() -> None:
    assert held_out_by_category(make_comparison([("a", "x", 2.0, 1.0)])) is None
