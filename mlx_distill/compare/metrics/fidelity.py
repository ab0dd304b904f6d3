"""Distance of both models from the probabilities of a teacher on this machine, for all rows and by category."""

from __future__ import annotations

from collections.abc import Sequence

from mlx_distill.compare.models import Comparison
from mlx_distill.compare.statistics import MIN_FAMILIES, PairedFigures, describe_interval, pair_figures
from mlx_distill.compare.table import INTERVAL, Cell, Table, estimate, number, percent
from mlx_distill.formatting import plural

ALL = "all rows"


def measure(data: Comparison, indices: Sequence[int]) -> PairedFigures | None:
    """Compute the figures over some rows; None if a model has none. Each token counts once; families are resampled."""
    if data.a.fidelity is None or data.b.fidelity is None:
        return None
    pairs = [(data.a.fidelity[index], data.b.fidelity[index]) for index in indices]
    values = [
        (a.n_tokens, *(value for row in (a, b) for value in (row.kl, row.reverse_kl, row.acceptance, row.n_agreed)))
        for a, b in pairs
    ]
    return pair_figures([data.rows[index].family for index in indices], values, data.seed)


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
            estimate(found.difference[index], "{:+.4f}", extra=found.relative_change() if index == 0 else ""),
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


def _finding(data: Comparison, found: PairedFigures) -> str:
    said = (
        f"The KL divergence from the teacher is {found.a[0]:.4f} nats a token for {data.a.name} and {found.b[0]:.4f} "
        f"for {data.b.name}{found.relative_change()}"
    )
    return said + describe_interval(found.difference[0], "{:+.4f}")


def fidelity_by_category(data: Comparison) -> Table | None:
    """Compare both models with the teacher on all rows and on each category; None without a teacher here."""
    categories = data.rows_by_category
    groups = {ALL: range(len(data.rows)), **(categories if len(categories) > 1 else {})}  # one category is all rows
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


def _category_cells(found: PairedFigures) -> tuple[Cell, ...]:
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
