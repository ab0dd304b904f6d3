"""The settings of the server."""

from __future__ import annotations

from typing import Annotated

from mlx_distill.config import doc
from mlx_distill.models.config import AnswerConfig


class ServeConfig(AnswerConfig, frozen=True):
    """The chat's settings, which hold for requests that say nothing else, and where to listen."""

    port: Annotated[int, doc("port on 127.0.0.1; 0 takes any free one", ge=0, le=65535)] = 8080
