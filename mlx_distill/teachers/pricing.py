"""Prices of models, the cost and the worst case of requests, and the usage report.

A project adds and overrides prices under `[prices]` in distill.toml.
"""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, ClassVar

from mlx_distill.config import Config, doc
from mlx_distill.errors import InputError
from mlx_distill.records import Messages, TeacherRecord, Usage
from mlx_distill.teachers.base import Teacher

PRICES_AS_OF = "2026-11-24"
"""The day on which the table was compared with the providers' price pages."""
FRAME_TOKENS = 200
"""Upper bound of what a provider adds to a conversation (roles and a frame)."""

MAX_COST_HELP = "most US dollars that the project may spend, over all runs"
TRACK_COSTS_HELP = "count what answers cost; without it a model needs no price"
PRICES_HELP = "prices of models, by name, that override or extend the built-in table"


class Price(Config, frozen=True):
    """The price of a model. The prompt cache and batches are priced as multiples of it."""

    input_usd: Annotated[float, doc("US dollars for a million tokens of input", ge=0)]
    output_usd: Annotated[float, doc("US dollars for a million tokens of output, thinking included", ge=0)]
    max_input_tokens: Annotated[int, doc("longest prompt that the price holds for", ge=1)] | None = None
    cache_write: Annotated[float, doc("price of input written to the prompt cache, times input_usd", ge=0)] = 1.25
    cache_read: Annotated[float, doc("price of input read from the prompt cache, times input_usd", ge=0)] = 0.1
    batch: Annotated[float, doc("price in a batch, times all of these", ge=0, le=1)] = 0.5

    renamed: ClassVar[Mapping[str, str]] = {"most_input_tokens": "max_input_tokens"}

    def check(self) -> None:
        """Reject NaN and infinity, which would disable the cap."""
        for name in ("input_usd", "output_usd", "cache_write", "cache_read", "batch"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite")


Prices = Mapping[str, Price]

PRICES: Prices = {
    "claude-sonnet-4-6": Price(3.0, 15.0),
    "claude-sonnet-5-5": Price(2.0, 10.0),
    "claude-haiku-5-5": Price(0.10, 0.50, max_input_tokens=100_000),
    "claude-haiku-4-5": Price(1.0, 5.0),
    "claude-opus-5-5": Price(4.0, 20.0),
}


@dataclass(frozen=True)
class Budget:
    """The limit on a project's spending, and the prices to count it with."""

    max_cost: float | None = None
    """US dollars for the whole project. None: no limit."""
    overrides: Prices = field(default_factory=dict)
    """Prices that override or extend the table."""
    track_costs: bool = True

    def __post_init__(self) -> None:
        if self.max_cost is not None and not 0.0 <= self.max_cost < math.inf:
            raise ValueError(f"max_cost is {self.max_cost:g}, it must be 0 or more")
        if self.max_cost is not None and not self.track_costs:
            raise ValueError("max_cost needs track_costs; remove one of max_cost and no-track-costs")

    @property
    def prices(self) -> Prices:
        """The table with the project's own prices."""
        return {**PRICES, **self.overrides}

    def price_of(self, model: str) -> Price:
        """Return the price of a model; InputError if it is unknown."""
        price = price_of(model, self.prices)
        if price is None:
            near = difflib.get_close_matches(model, self.prices, n=1)
            raise InputError(
                f"No price is known for {model}, so its costs cannot be counted."
                + (f" Did you mean {near[0]}?" if near else ""),
                f'Add it to distill.toml under [prices]: "{model}" = {{ input_usd = 1.0, output_usd = 5.0 }} (dollars '
                "for a million tokens), or do not count costs: --no-track-costs (in distill.toml: track_costs = "
                "false). A model on this machine needs no price: openai:MODEL@http://localhost:11434/v1",
            )
        return price

    def cost_of(self, record: TeacherRecord) -> float | None:
        """Return the cost of an answer; None if its usage or its price is unknown.

        The price of the requested model holds for its snapshots and for models without a name.
        """
        model = model_of(record.teacher)
        known = not record.model or record.model.startswith(model) or price_of(record.model, self.prices)
        if not known or record.usage == Usage():
            return None
        usd = cost_of(self.price_of(model), record.usage, batch=bool(record.batch))
        return usd if usd is not None and math.isfinite(usd) else None


def model_of(teacher: str) -> str:
    """Return the model in a teacher's name."""
    return teacher.partition(":")[2]


def is_paid(teacher: Teacher, budget: Budget) -> bool:
    """Return whether the teacher's costs are counted."""
    return bool(teacher.billed_model and budget.track_costs)


def price_of(model: str, prices: Prices = PRICES) -> Price | None:
    """Return the price of a model, named with or without its snapshot's date (`claude-haiku-4-5-20251001`)."""
    return prices.get(model) or prices.get(re.sub(r"-\d{8}$", "", model))


def cost_of(price: Price, usage: Usage, *, batch: bool = False) -> float | None:
    """Return the US dollars of an answer; None if its prompt is longer than the price holds for."""
    n_input = usage.input_tokens + usage.cache_creation_tokens + usage.cache_read_tokens
    if price.max_input_tokens is not None and n_input > price.max_input_tokens:
        return None
    cached = price.cache_write * usage.cache_creation_tokens + price.cache_read * usage.cache_read_tokens
    usd = (usage.input_tokens + cached) * price.input_usd + usage.output_tokens * price.output_usd
    return usd * (price.batch if batch else 1.0) / 1e6


def max_input_tokens(messages: Messages) -> int:
    """Return an upper bound of the prompt's tokens for any tokenizer: one for each byte, and the frame."""
    return FRAME_TOKENS + sum(len(message.content.encode("utf-8", "surrogatepass")) for message in messages)


def worst_case_usd(price: Price, messages: Messages, max_tokens: int, *, batch: bool = False) -> float | None:
    """Return the most that a request can cost; None if its prompt may be longer than the price holds for."""
    return cost_of(price, Usage(max_input_tokens(messages), max_tokens), batch=batch)


@dataclass(frozen=True)
class ModelUsage:
    """Usage and cost of one model."""

    model: str
    n_answers: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    thinking_tokens: int = 0
    """The part of `output_tokens` that was thinking."""
    cache_tokens: int = 0
    input_usd: float = 0.0
    output_usd: float = 0.0
    cache_usd: float = 0.0
    batch_saved_usd: float = 0.0
    """How much more single requests would have cost. Not part of `usd`."""
    n_repeated: int = 0
    """Answers to prompts that had an answer already (it was truncated, refused or empty)."""
    repeated_usd: float = 0.0
    """Their part of the other figures."""
    n_unknown: int = 0
    """Requests that may have been charged (dropped connections, killed runs): counted in full."""
    unknown_usd: float = 0.0
    n_pending: int = 0
    """Requests in batches without results yet: counted in full."""
    pending_usd: float = 0.0

    @property
    def usd(self) -> float:
        """Everything that counts as spent."""
        return self.input_usd + self.output_usd + self.cache_usd + self.unknown_usd + self.pending_usd

    def plus(self, other: ModelUsage) -> ModelUsage:
        """Return the sum, under this model's name."""
        numbers = [each.name for each in fields(self) if each.name != "model"]
        return ModelUsage(self.model, **{name: getattr(self, name) + getattr(other, name) for name in numbers})


@dataclass(frozen=True)
class UsageReport:
    """Usage and cost by model and in total."""

    models: tuple[ModelUsage, ...] = ()
    total_usd: float = 0.0

    @property
    def total(self) -> ModelUsage:
        """All models together."""
        return functools.reduce(ModelUsage.plus, self.models, ModelUsage("all"))

    def plus(self, other: UsageReport) -> UsageReport:
        """Return both together."""
        return usage_report((*self.models, *other.models))


def add_usage(usages: dict[str, ModelUsage], usage: ModelUsage) -> None:
    """Add a usage to that of its model."""
    usages[usage.model] = usages[usage.model].plus(usage) if usage.model in usages else usage


def usage_report(usages: Iterable[ModelUsage]) -> UsageReport:
    """Group usages by model."""
    groups: dict[str, ModelUsage] = {}
    for usage in usages:
        add_usage(groups, usage)
    models = tuple(groups[model] for model in sorted(groups))
    return UsageReport(models, sum(model.usd for model in models))


def usage_of(record: TeacherRecord, prices: Prices, *, repeated: bool) -> ModelUsage:
    """Return the usage of one paid answer. Its cost is what the record says; today's price only splits it."""
    usd, usage, model = record.cost_usd or 0.0, record.usage, model_of(record.teacher)
    price = price_of(model, prices)
    total = cost_of(price, usage) if price else None
    inputs = cost_of(price, Usage(usage.input_tokens)) if price else None
    outputs = cost_of(price, Usage(0, usage.output_tokens)) if price else None
    input_usd, output_usd = (usd * (part or 0.0) / total if total else 0.0 for part in (inputs, outputs))
    saved = usd * (1.0 / price.batch - 1.0) if price and price.batch and record.batch else 0.0
    return ModelUsage(
        model,
        n_answers=1,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        thinking_tokens=usage.thinking_tokens,
        cache_tokens=usage.cache_creation_tokens + usage.cache_read_tokens,
        input_usd=input_usd,
        output_usd=output_usd if total else usd,
        cache_usd=max(0.0, usd - input_usd - output_usd) if total else 0.0,
        batch_saved_usd=saved,
        n_repeated=int(repeated),
        repeated_usd=usd if repeated else 0.0,
    )
