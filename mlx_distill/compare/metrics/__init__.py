"""Metrics of a comparison: one file each. A metric returns a table, or None if it has nothing to show.

To add a metric, write a function and append it to METRICS. The report, the page and the terminal show its table and
its finding.
"""

from collections.abc import Callable

from mlx_distill.compare.metrics.code_parses import code_parses
from mlx_distill.compare.metrics.completion import completion
from mlx_distill.compare.metrics.fidelity import fidelity, fidelity_by_category
from mlx_distill.compare.metrics.held_out import held_out, held_out_by_category
from mlx_distill.compare.metrics.judge import judge
from mlx_distill.compare.metrics.style_features import style_features
from mlx_distill.compare.metrics.vocabulary import vocabulary
from mlx_distill.compare.models import Comparison
from mlx_distill.compare.table import Table

Metric = Callable[[Comparison], Table | None]

METRICS: tuple[Metric, ...] = (
    held_out,
    held_out_by_category,
    fidelity,
    fidelity_by_category,
    completion,
    judge,
    code_parses,
    style_features,
    vocabulary,
)
"""All metrics, in the order of the report."""
