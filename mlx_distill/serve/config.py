"""The settings of the server."""

from __future__ import annotations

from typing import Annotated

from mlx_distill.config import doc
from mlx_distill.models.config import ChatConfig


class ServeConfig(ChatConfig, frozen=True):
    """Default settings for requests that do not give their own, and the port."""

    port: Annotated[int, doc("port on 127.0.0.1; 0 takes any free port", ge=0, le=65535)] = 8080
