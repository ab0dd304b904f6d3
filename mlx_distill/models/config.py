"""Settings that more than one command takes to load a model and to generate with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlx_distill.config import setting

DEFAULT_CONTEXT = 4096
"""Tokens of conversation kept where the user sets nothing and the model could hold more."""


@dataclass(frozen=True)
class AnswerConfig:
    """Settings that chat and serve share: the model, and how it answers."""

    model: Path = setting(help="an MLX model folder")
    adapter: Path | None = setting(None, help="an adapter folder to put on it")
    system: str = setting("", help="the system message")
    max_tokens: int = setting(1024, help="longest answer in tokens")
    context_tokens: int = setting(
        0, help=f"tokens of conversation and answer kept; 0 means {DEFAULT_CONTEXT}, or what the model holds if less"
    )
    temperature: float = setting(0.0, help="0 always takes the most probable token")
    seed: int = setting(0, help="makes answers at a temperature repeatable")

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}, it must be at least 1")
        if self.context_tokens < 0:
            raise ValueError(f"context_tokens is {self.context_tokens}, it must not be negative")
        if 0 < self.context_tokens <= self.max_tokens:
            raise ValueError(
                f"context_tokens ({self.context_tokens}) must be more than max_tokens ({self.max_tokens}): "
                "it holds the conversation and the answer"
            )
        check_temperature(self.temperature)


def check_temperature(temperature: float) -> None:
    """ValueError where it is no temperature."""
    if not 0 <= temperature <= 10:
        raise ValueError(f"temperature is {temperature}, it must be between 0 and 10")
