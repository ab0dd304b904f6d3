"""The chat with a student on the terminal."""

from mlx_distill.models.config import ChatConfig

__all__ = ["ChatConfig"]
