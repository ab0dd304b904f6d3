"""Completion, length and repetition of the answers, and the speed of writing them."""

from __future__ import annotations

from collections.abc import Callable

from mlx_distill.compare.models import Comparison
from mlx_distill.compare.report import CheckedAnswer
from mlx_distill.compare.statistics import bootstrap_mean
from mlx_distill.compare.table import INTERVAL, NONE, Cell, Table, estimate, number, percent
from mlx_distill.formatting import format_bytes, plural


def completion(data: Comparison) -> Table:
    """Compare how answers end, how long they are and how much they repeat."""
    families = [one.family for one in data.answers]

    def row(
        measure: Callable[[CheckedAnswer], float], cell: Callable[[float], Cell], scale: float, unit: str
    ) -> tuple[Cell, ...]:
        values = [[measure(answer) for answer in answers] for _, answers in data.answers_by_name]
        changes = [after - before for before, after in zip(*values[:2], strict=True)]
        difference = bootstrap_mean(families, changes, data.seed)
        means = (cell(sum(each) / len(each)) for each in values)
        return (*means, estimate(difference, "{:+.1f}", scale=scale, unit=unit))

    rows = {
        "finished": row(lambda answer: float(answer.finished), percent, 100, " points"),
        "length in tokens": row(lambda answer: float(answer.n_tokens), number, 1, ""),
        "repetition": row(lambda answer: answer.repetition, percent, 100, " points"),
    }
    n_by_teacher = sum(one.teacher is not None for one in data.answers)
    unknown = [NONE] * (len(data.names) - 1)
    runs = (data.a, data.b)
    rows["tokens/s"] = (*(number(one.tokens_per_second) for one in runs), *unknown)
    rows["peak memory"] = (*(Cell(format_bytes(one.peak_bytes), float(one.peak_bytes)) for one in runs), *unknown)
    a, b = rows["finished"][:2]
    return Table(
        id="completion",
        title="Length and repetition",
        columns=(*data.names, f"difference [{INTERVAL}]"),
        rows=rows,
        note=(
            f"Means over the answers to {plural(len(data.answers), 'prompt')} in "
            f"{plural(len(set(families)), 'family', 'families')}; the teacher answered {n_by_teacher}. Finished: the "
            "answer ends before the token limit. Repetition: share of an answer's runs of four words that occur "
            "earlier in it. Tokens/s and peak memory (arrays of MLX, weights included): all answers at the same time."
        ),
        finding=(
            f"{a.text} of the answers of {data.a.name} and {b.text} of those of {data.b.name} end before the limit; "
            f"their mean length is {rows['length in tokens'][0].text} and {rows['length in tokens'][1].text} tokens."
        ),
    )
