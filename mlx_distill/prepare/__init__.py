"""`prepare`: teacher records to train, valid and test rows."""

from mlx_distill.prepare.config import FilterConfig, PrepareConfig, PrepareResult

__all__ = ["FilterConfig", "PrepareConfig", "PrepareResult"]
