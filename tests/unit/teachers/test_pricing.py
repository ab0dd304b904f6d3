"""Prices, costs and worst cases."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_distill.config import parse
from mlx_distill.errors import InputError
from mlx_distill.records import TeacherRecord, Usage, build_messages
from mlx_distill.teachers.pricing import (
    PRICES,
    Budget,
    Price,
    cost_of,
    max_input_tokens,
    price_of,
    usage_of,
    usage_report,
    worst_case_usd,
)


@pytest.mark.parametrize(
    ("model", "usage", "usd"),
    [
        ("claude-sonnet-4-6", Usage(1_000_000, 100_000), 4.5),
        ("claude-haiku-4-5-20251001", Usage(1000, 1000), 0.006),
        ("claude-sonnet-4-6", Usage(0, 0, 1_000_000, 1_000_000), 3 * 1.25 + 3 * 0.1),
        ("claude-haiku-5-5", Usage(100_000, 0), 0.01),
        ("claude-haiku-5-5", Usage(100_001, 0), None),
    ],
)
def test_cost_follows_the_table(model: str, usage: Usage, usd: float | None) -> None:
    price = price_of(model)
    assert price is not None
    assert cost_of(price, usage) == (usd and pytest.approx(usd))
    assert cost_of(price, usage, batch=True) == (usd and pytest.approx(usd / 2))


def test_unknown_model_is_refused_with_how_to_price_it() -> None:
    with pytest.raises(InputError, match="No price is known for claude-new") as raised:
        Budget().price_of("claude-new")
    assert '"claude-new" = { input_usd' in raised.value.next_step
    assert "--no-track-costs" in raised.value.next_step
    assert Budget(overrides={"claude-new": Price(7.0, 1.0)}).price_of("claude-new").input_usd == 7.0


def test_old_setting_is_refused_with_its_new_name() -> None:
    with pytest.raises(InputError) as raised:
        parse(Price, {"input_usd": 1.0, "output_usd": 1.0, "most_input_tokens": 5}, "prices")
    assert "most_input_tokens is called max_input_tokens now" in raised.value.problems


@given(text=st.text(), price=st.builds(Price, st.floats(0, 100), st.floats(0, 100)))
def test_worst_case_bounds_any_text(text: str, price: Price) -> None:
    messages = build_messages(text, "Be brief.")
    assert max_input_tokens(messages) >= len(text) + len("Be brief.")
    cost, worst = cost_of(price, Usage(len(text), 7)), worst_case_usd(price, messages, 7)
    assert cost is not None
    assert worst is not None
    assert worst >= cost


@pytest.mark.parametrize(
    ("values", "message"),
    [((-1.0, 1.0), "input_usd"), ((1.0, float("nan")), "output_usd"), ((1.0, 1.0, 0), "max_input_tokens")],
)
def test_impossible_price_is_refused(values: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Price(*values)  # type: ignore[arg-type]


def test_usage_report_groups_by_model_and_splits_the_cost() -> None:
    usage = Usage(100, 50, thinking_tokens=30, cache_creation_tokens=1000, cache_read_tokens=2000)
    records = [
        TeacherRecord(messages=build_messages("Why?"), answer="So.", teacher=f"anthropic:{model}", usage=usage, **more)
        for model, more in (
            ("claude-sonnet-4-6", {"cost_usd": 0.01}),
            ("claude-sonnet-4-6", {"cost_usd": 0.02, "batch": "b"}),
            ("gone", {"cost_usd": 0.5}),
        )
    ]
    report = usage_report(usage_of(record, PRICES, repeated=False) for record in records)
    sonnet, gone = report.models[0], report.models[1]
    assert [model.model for model in report.models] == ["claude-sonnet-4-6", "gone"]
    assert (sonnet.n_answers, sonnet.thinking_tokens, sonnet.cache_tokens) == (2, 60, 6000)
    assert sonnet.usd == pytest.approx(0.03)
    assert sonnet.cache_usd / sonnet.input_usd == pytest.approx((1000 * 1.25 + 2000 * 0.1) / 100)
    assert sonnet.batch_saved_usd == pytest.approx(0.02)
    assert gone.usd == 0.5
    assert report.total_usd == pytest.approx(0.53)
