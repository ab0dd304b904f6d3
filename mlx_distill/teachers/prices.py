"""What providers charge, as published on a date: turns the tokens of an answer into US dollars."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mlx_distill.records import Usage

PRICES_AS_OF = "2026-11-24"
"""The day on which the table was compared with the providers' price pages."""


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens. Writing to the prompt cache costs 1.25 times the input, reading it a tenth."""

    input_usd: float
    output_usd: float
    most_input_tokens: int | None = None
    """Longer prompts are priced otherwise, at a price that is not in this table."""


PRICES: Mapping[str, Price] = {
    "claude-sonnet-4-6": Price(3.0, 15.0),
    "claude-sonnet-5-5": Price(2.0, 10.0),
    "claude-haiku-5-5": Price(0.10, 0.50, most_input_tokens=100_000),
    "claude-haiku-4-5": Price(1.0, 5.0),
    "claude-opus-5-5": Price(4.0, 20.0),
}

_SNAPSHOT = re.compile(r"-\d{8}$")


def price_of(model: str, prices: Mapping[str, Price] = PRICES) -> Price | None:
    """The price of a model, named with or without the date of its snapshot (`claude-haiku-4-5-20251001`)."""
    return prices.get(model) or prices.get(_SNAPSHOT.sub("", model))


def cost_usd(model: str, usage: Usage, prices: Mapping[str, Price] = PRICES) -> float | None:
    """What an answer cost, or None where the price is not known."""
    price = price_of(model, prices)
    if price is None:
        return None
    n_input = usage.input_tokens + usage.cache_creation_tokens + usage.cache_read_tokens
    if price.most_input_tokens is not None and n_input > price.most_input_tokens:
        return None
    weighted = usage.input_tokens + 1.25 * usage.cache_creation_tokens + 0.1 * usage.cache_read_tokens
    return (weighted * price.input_usd + usage.output_tokens * price.output_usd) / 1e6
