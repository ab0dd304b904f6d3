"""Settings that more than one command takes to load a model and to generate with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from mlx_distill.config import Config, doc

DEFAULT_CONTEXT = 4096
"""Tokens of conversation kept where the user sets nothing and the model could hold more."""


class AnswerConfig(Config, frozen=True):
    """Settings that chat and serve share: the model, and how it answers."""

    model: Annotated[Path, doc("an MLX model folder")]
    adapter: Annotated[Path, doc("an adapter folder to put on it")] | None = None
    system: Annotated[str, doc("the system message")] = ""
    max_tokens: Annotated[int, doc("longest answer in tokens", ge=1)] = 1024
    context_tokens: Annotated[
        int,
        doc(
            f"tokens of conversation and answer kept; 0 means {DEFAULT_CONTEXT}, or what the model holds if less", ge=0
        ),
    ] = 0
    temperature: Annotated[float, doc("0 always takes the most probable token", ge=0, le=10)] = 0.0
    seed: Annotated[int, doc("makes answers at a temperature repeatable")] = 0

    def check(self) -> None:
        if 0 < self.context_tokens <= self.max_tokens:
            raise ValueError(
                f"context_tokens ({self.context_tokens}) must be more than max_tokens ({self.max_tokens}): "
                "it holds the conversation and the answer"
            )


def check_temperature(temperature: float) -> None:
    """ValueError where it is no temperature."""
    if not 0 <= temperature <= 10:
        raise ValueError(f"temperature is {temperature}, it must be between 0 and 10")
