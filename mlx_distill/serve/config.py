"""The settings of the server."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_distill.config import setting
from mlx_distill.models.config import AnswerConfig


@dataclass(frozen=True)
class ServeConfig(AnswerConfig):
    """The chat's settings, which hold for requests that say nothing else, and where to listen."""

    port: int = setting(8080, help="port on 127.0.0.1; 0 takes any free one")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port is {self.port}, it must be between 0 and 65535")
