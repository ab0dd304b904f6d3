"""What providers charge, as published on a date: turns the tokens of an answer into US dollars.

A project overrides and adds to the table under `[prices]` in distill.toml.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from mlx_distill.config import Config, doc
from mlx_distill.records import Messages, Usage

PRICES_AS_OF = "2026-11-24"
"""The day on which the table was compared with the providers' price pages."""

FRAME_TOKENS = 200
"""More than what a provider adds to a conversation (a role for each message, a frame around it)."""


class Price(Config, frozen=True):
    """What a model costs. The prompt cache and batches are priced as a share of these."""

    input_usd: Annotated[float, doc("US dollars for a million tokens of input", ge=0)]
    output_usd: Annotated[float, doc("US dollars for a million tokens of output, thinking included", ge=0)]
    most_input_tokens: (
        Annotated[int, doc("longer prompts have another price, which is not known here", ge=1)] | None
    ) = None
    cache_write: Annotated[
        float, doc("what input that is written to the prompt cache costs, times input_usd", ge=0)
    ] = 1.25
    cache_read: Annotated[float, doc("what input that is read from the prompt cache costs, times input_usd", ge=0)] = (
        0.1
    )
    batch: Annotated[float, doc("what a batch costs, times all of these", ge=0, le=1)] = 0.5

    def check(self) -> None:
        for name in ("input_usd", "output_usd", "cache_write", "cache_read", "batch"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite")


Prices = Mapping[str, Price]

PRICES: Prices = {
    "claude-sonnet-4-6": Price(3.0, 15.0),
    "claude-sonnet-5-5": Price(2.0, 10.0),
    "claude-haiku-5-5": Price(0.10, 0.50, most_input_tokens=100_000),
    "claude-haiku-4-5": Price(1.0, 5.0),
    "claude-opus-5-5": Price(4.0, 20.0),
}

_SNAPSHOT = re.compile(r"-\d{8}$")


@dataclass(frozen=True)
class Cost:
    """What an answer cost, by what was charged, in US dollars."""

    input_usd: float = 0.0
    output_usd: float = 0.0
    """Thinking included."""
    cache_usd: float = 0.0
    """Input that went into or came from the prompt cache."""
    thinking_usd: float = 0.0
    """The part of `output_usd` that was thinking."""
    saved_usd: float = 0.0
    """What the same would have cost more outside a batch; 0 where it was in none."""

    @property
    def usd(self) -> float:
        return self.input_usd + self.output_usd + self.cache_usd

    def plus(self, other: Cost) -> Cost:
        """Both together."""
        return Cost(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


def price_of(model: str, prices: Prices = PRICES) -> Price | None:
    """The price of a model, named with or without the date of its snapshot (`claude-haiku-4-5-20251001`)."""
    return prices.get(model) or prices.get(_SNAPSHOT.sub("", model))


def cost_of(price: Price, usage: Usage, *, batch: bool = False) -> Cost | None:
    """What an answer cost, or None where its prompt was longer than the price is good for."""
    n_input = usage.input_tokens + usage.cache_creation_tokens + usage.cache_read_tokens
    if price.most_input_tokens is not None and n_input > price.most_input_tokens:
        return None
    share = (price.batch if batch else 1.0) / 1e6
    cached = price.cache_write * usage.cache_creation_tokens + price.cache_read * usage.cache_read_tokens
    fresh, cached = usage.input_tokens * price.input_usd * share, cached * price.input_usd * share
    output = usage.output_tokens * price.output_usd * share
    saved = (fresh + output + cached) * (1.0 / price.batch - 1.0) if batch and price.batch else 0.0
    return Cost(fresh, output, cached, usage.thinking_tokens * price.output_usd * share, saved)


def most_input_tokens(messages: Messages) -> int:
    """A number of tokens that no tokenizer exceeds for these messages: one for each byte, and the frame."""
    size = sum(len(message.content.encode("utf-8", "surrogatepass")) for message in messages)
    return size + FRAME_TOKENS


def worst_usd(price: Price, messages: Messages, max_tokens: int, *, batch: bool = False) -> float | None:
    """The most that one request can cost, or None where its prompt may be longer than the price is good for."""
    cost = cost_of(price, Usage(most_input_tokens(messages), max_tokens), batch=batch)
    return cost.usd if cost else None
