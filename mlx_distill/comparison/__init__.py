"""Two sides compared: figures on held-out rows, answers to test prompts, the teacher's beside them.

`run(CompareConfig(...))` compares a student before and after, `run(PairConfig(...))` any two adapters or models; each
writes `report.html`, `report.md` and `report.json`.
"""

from mlx_distill.comparison.compare import CompareResult, run
from mlx_distill.comparison.config import CompareConfig, PairConfig

__all__ = ["CompareConfig", "CompareResult", "PairConfig", "run"]
