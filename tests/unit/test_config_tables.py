"""Tables of configs, such as `[prices]`: each entry is checked like a config of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec
import pytest

from mlx_distill.config import Config, doc, parse
from mlx_distill.errors import InputError


class Price(Config, frozen=True):
    usd: Annotated[float, doc("US dollars", ge=0)]


class Example(Config, frozen=True):
    prices: Annotated[Mapping[str, Price], doc("prices by model")] = msgspec.field(default_factory=dict)


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"usd": 1, "usdd": 2}, "prices.m: unknown setting 'usdd'; did you mean 'usd'?"),
        ({"usd": -1}, "prices.m: usd = -1: expected float >= 0.0"),
        ({}, "prices.m: usd is missing"),
        (3, "prices.m: expected object, got int"),
    ],
)
def test_a_wrong_entry_is_refused_with_its_place(entry: object, problem: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(Example, {"prices": {"m": entry, "good": {"usd": 1}}}, "here")

    assert caught.value.problems == (problem,)
