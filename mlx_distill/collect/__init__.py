"""Prompts to teacher records: `mlx_distill.collect.run.run(CollectConfig(...))`."""

from mlx_distill.collect.config import CollectConfig, CollectResult

__all__ = ["CollectConfig", "CollectResult"]
