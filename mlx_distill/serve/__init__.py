"""The OpenAI-compatible server."""

from mlx_distill.serve.config import ServeConfig, ServeResult

__all__ = ["ServeConfig", "ServeResult"]
