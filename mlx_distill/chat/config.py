"""The settings and the result of a chat."""

from __future__ import annotations

import msgspec

from mlx_distill.formatting import plural
from mlx_distill.models.config import AnswerConfig


class ChatConfig(AnswerConfig, frozen=True):
    """The model that answers on the terminal, and how it answers."""


class ChatResult(msgspec.Struct, frozen=True):
    """Counts of a chat."""

    n_answers: int
    n_tokens: int
    """Tokens that the model wrote."""

    def summary(self) -> str:
        return f"{plural(self.n_answers, 'answer')}, {plural(self.n_tokens, 'token')}"
