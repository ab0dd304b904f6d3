"""Distance of both models from the probabilities of a teacher on this machine, for all rows and by category."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from mlx_distill.compare.models import Comparison
from mlx_distill.compare.statistics import MIN_FAMILIES, Array, bootstrap, sum_by_family
from mlx_distill.compare.table import INTERVAL, Cell, Estimate, Table, estimate, number, percent
from mlx_distill.formatting import plural

ALL = "all rows"


class Figures(msgspec.Struct, frozen=True):
    """KL, reverse KL, acceptance and agreement of both models on some rows, and the differences `b - a`."""

    a: tuple[float, ...]
    b: tuple[float, ...]
    difference: tuple[Estimate, ...]
    n_rows: int
    n_tokens: int
    n_families: int

    def kl_change(self) -> str:
        """Return the relative change of the KL divergence, such as ` (-37.5 %)`."""
        return f" ({100 * self.difference[0].value / self.a[0]:+.1f} %)" if self.a[0] else ""


def measure(data: Comparison, indices: Sequence[int]) -> Figures | None:
    """Compute the figures over some rows; None if a model has none. Each token counts once; families are resampled."""
    if data.a.fidelity is None or data.b.fidelity is None:
        return None
    pairs = [(data.a.fidelity[index], data.b.fidelity[index]) for index in indices]
    values = [
        (a.n_tokens, *(value for row in (a, b) for value in (row.kl, row.reverse_kl, row.acceptance, row.n_agreed)))
        for a, b in pairs
    ]
    sums = sum_by_family([data.rows[index].family for index in indices], values)
    total = sums.sum(axis=0)
    means = total[1:] / total[0]
    difference = bootstrap(sums, _differences, data.seed)
    a_means, b_means = tuple(map(float, means[:4])), tuple(map(float, means[4:]))
    return Figures(a_means, b_means, difference, len(indices), int(total[0]), len(sums))


def _differences(sums: Array) -> Array:
    """Turn sums (..., 9) of tokens and both models' figures into the four differences of the means."""
    means = sums[..., 1:] / sums[..., :1]
    return np.subtract(means[..., 4:], means[..., :4])


def fidelity(data: Comparison) -> Table | None:
    """Compare both models with the teacher on all held-out rows; None without a teacher on this machine."""
    found = measure(data, range(len(data.rows)))
    if found is None:
        return None
    few = f" No interval: there are fewer than {MIN_FAMILIES} families." if found.n_families < MIN_FAMILIES else ""
    rows = {}
    for index, name in enumerate(("KL(teacher ‖ model)", "KL(model ‖ teacher)")):
        rows[name] = (
            *(number(figures[index], "{:.4f}") for figures in (found.a, found.b)),
            estimate(found.difference[index], "{:+.4f}", extra=found.kl_change() if index == 0 else ""),
        )
    for index, name in ((2, "acceptance"), (3, "greedy agreement")):
        rows[name] = (
            *(percent(figures[index]) for figures in (found.a, found.b)),
            estimate(found.difference[index], "{:+.1f}", scale=100, unit=" points"),
        )
    return Table(
        id="fidelity",
        title="Fidelity to the teacher",
        columns=(data.a.name, data.b.name, f"difference [{INTERVAL}]"),
        rows=rows,
        note=(
            f"Probabilities of the teacher {data.teacher} at {plural(found.n_tokens, 'answer token')} of "
            f"{plural(found.n_rows, 'test row')} in {plural(found.n_families, 'family', 'families')}, over the whole "
            "vocabulary; the teacher sees its context. KL: mean Kullback-Leibler divergence in nats; 0 is the teacher "
            "itself. Acceptance: mean of sum(min(p, q)), the share of tokens that the teacher would accept from this "
            "model as a draft. Greedy agreement: share of tokens at which both find the same token most probable. "
            f"Difference: {data.b.name} minus {data.a.name}.{few}"
        ),
        finding=_finding(data, found),
    )


def _finding(data: Comparison, found: Figures) -> str:
    kl = found.difference[0]
    said = (
        f"The KL divergence from the teacher is {found.a[0]:.4f} nats a token for {data.a.name} and {found.b[0]:.4f} "
        f"for {data.b.name}{found.kl_change()}"
    )
    if kl.low is None or kl.high is None:
        return f"{said}, without an interval: the difference may be chance."
    zero = "includes zero, so it may be chance" if kl.low <= 0 <= kl.high else "excludes zero"
    return f"{said}; the {INTERVAL} of the difference [{kl.low:+.4f}, {kl.high:+.4f}] {zero}."


def fidelity_by_category(data: Comparison) -> Table | None:
    """Compare both models with the teacher on all rows and on each category; None without a teacher here."""
    groups: dict[str, list[int]] = {ALL: list(range(len(data.rows)))}
    for index, row in enumerate(data.rows):
        groups.setdefault(row.category, []).append(index)
    if len(groups) == 2:  # one category is all rows
        groups = {ALL: groups[ALL]}
    found = {name: one for name, indices in groups.items() if (one := measure(data, indices))}
    if not found:
        return None
    both = f"{data.a.name} → {data.b.name}"
    few = any(one.n_families < MIN_FAMILIES for one in found.values())
    return Table(
        id="fidelity_by_category",
        title="Fidelity by category",
        columns=("rows", "families", "tokens", "KL", "KL difference", "acceptance", "greedy agreement"),
        rows={name: _category_cells(one) for name, one in found.items()},
        note=f"KL(teacher ‖ model), acceptance and greedy agreement: {both}. In brackets: {INTERVAL}."
        + (f" Fewer than {MIN_FAMILIES} families have no interval." if few else ""),
        plot=4,
    )


def _category_cells(found: Figures) -> tuple[Cell, ...]:
    shares = [
        Cell(f"{percent(found.a[index]).text} → {percent(found.b[index]).text}", found.b[index]) for index in (2, 3)
    ]
    return (
        number(found.n_rows),
        number(found.n_families),
        number(found.n_tokens),
        Cell(f"{found.a[0]:.4f} → {found.b[0]:.4f}", found.b[0]),
        estimate(found.difference[0], "{:+.4f}"),
        *shares,
    )
