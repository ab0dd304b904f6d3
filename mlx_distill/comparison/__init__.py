"""Base and distilled compared: figures on held-out rows, answers to test prompts, the teacher's beside them.

`run(CompareConfig(...))` writes `report.html`, `report.md` and `report.json`.
"""

from mlx_distill.comparison.compare import CompareResult, run
from mlx_distill.comparison.config import CompareConfig

__all__ = ["CompareConfig", "CompareResult", "run"]
