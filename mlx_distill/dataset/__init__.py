"""Teacher records to examples: what is complete and sound, split by family, measured in the student's tokens.

`run(PrepareConfig(...))` writes train, valid and test rows, every rejected answer with its reason, and the figures.
"""

from mlx_distill.dataset.filters import FilterConfig
from mlx_distill.dataset.prepare import PrepareConfig, PrepareResult, run

__all__ = ["FilterConfig", "PrepareConfig", "PrepareResult", "run"]
