"""The settings and the result of the server."""

from __future__ import annotations

from typing import Annotated

import msgspec

from mlx_distill.config import doc
from mlx_distill.formatting import plural
from mlx_distill.models.config import AnswerConfig


class ServeConfig(AnswerConfig, frozen=True):
    """Default settings for requests that do not give their own, and the port."""

    port: Annotated[int, doc("port on 127.0.0.1; 0 takes any free port", ge=0, le=65535)] = 8080


class ServeResult(msgspec.Struct, frozen=True):
    """Counts of a server's run."""

    n_answers: int

    def summary(self) -> str:
        return plural(self.n_answers, "answer")
