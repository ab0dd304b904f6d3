"""The OpenAI-compatible server."""

from mlx_distill.serve.config import ServeConfig

__all__ = ["ServeConfig"]
