"""Compare two models on held-out rows and on test prompts, and write a report."""

from mlx_distill.compare.config import CompareConfig, CompareResult, PairConfig

__all__ = ["CompareConfig", "CompareResult", "PairConfig"]
