"""The settings of a chat, and what it came to."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_distill.models.config import AnswerConfig


class ChatConfig(AnswerConfig, frozen=True):
    """The model that answers on the terminal."""


@dataclass(frozen=True)
class ChatResult:
    """What a chat came to."""

    n_answers: int
    n_tokens: int
    """Written by the model."""
