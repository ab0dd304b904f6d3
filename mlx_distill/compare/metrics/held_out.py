"""Loss, perplexity and token accuracy on the held-out rows, for all rows and by category."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlx_distill.compare.models import Comparison
from mlx_distill.compare.statistics import (
    MIN_FAMILIES,
    Array,
    PairedFigures,
    describe_interval,
    pair_figures,
    token_means,
)
from mlx_distill.compare.table import INTERVAL, Cell, Estimate, Table, estimate, number, percent
from mlx_distill.formatting import plural

MAX_LOSS = 700.0
"""exp() of more overflows a float. A uniform guess over 150,000 tokens has a loss of 12."""


def measure(data: Comparison, indices: Sequence[int]) -> PairedFigures:
    """Compute the figures over some rows. Each token has the same weight; intervals resample families."""
    values = [
        (a.n_tokens, a.loss_sum, a.n_correct, b.loss_sum, b.n_correct)
        for a, b in ((data.a.scores[n], data.b.scores[n]) for n in indices)
    ]
    return pair_figures([data.rows[n].family for n in indices], values, data.seed, _figures)


def _figures(sums: Array) -> Array:
    """Turn sums (..., 5) of tokens, losses and correct tokens into the figures (..., 2, 3): by model, by measure."""
    loss, accuracy = np.moveaxis(token_means(sums), -1, 0)
    return np.stack([loss, np.exp(np.minimum(loss, MAX_LOSS)), accuracy], axis=-1)


def held_out(data: Comparison) -> Table:
    """Compare both models on all held-out rows."""
    found = measure(data, range(len(data.rows)))
    loss, perplexity, accuracy = found.difference
    losses, perplexities, accuracies = zip(found.a, found.b, strict=True)
    few = (
        f"No interval: {plural(found.n_families, 'family', 'families')} cannot show how other prompts would differ "
        f"({MIN_FAMILIES} is the minimum)."
        if found.n_families < MIN_FAMILIES
        else f"{INTERVAL}: paired bootstrap over families, percentiles expanded for few families."
    )
    return Table(
        id="held_out",
        title="Held-out rows",
        columns=(data.a.name, data.b.name, f"difference [{INTERVAL}]"),
        rows={
            "loss": (
                *(number(value, "{:.3f}") for value in losses),
                estimate(loss, "{:+.3f}", extra=found.relative_change()),
            ),
            "perplexity": (*(number(value, "{:.2f}") for value in perplexities), estimate(perplexity, "{:+.2f}")),
            "token accuracy": (
                *map(percent, accuracies),
                estimate(accuracy, "{:+.1f}", scale=100, unit=" points"),
            ),
        },
        note=(
            f"{plural(found.n_tokens, 'answer token')} of {plural(found.n_rows, 'test row')} in "
            f"{plural(found.n_families, 'family', 'families')}, end tokens included. No training row is among them. "
            "Loss: mean of -log p(token), natural logarithm. Perplexity: exp(loss). Token accuracy: share of tokens "
            "that are the model's most probable one. Lower loss and higher accuracy are nearer to the teacher. "
            f"Difference: {data.b.name} minus {data.a.name}. {few}"
        ),
        finding=_finding(data, found, loss),
        headline=True,
    )


def _finding(data: Comparison, found: PairedFigures, loss: Estimate) -> str:
    if loss.value == 0:
        return f"The loss on held-out rows is the same for {data.a.name} and {data.b.name}: {found.a[0]:.3f}."
    said = (
        f"The loss on held-out rows is {found.a[0]:.3f} for {data.a.name} and {found.b[0]:.3f} for {data.b.name}"
        f"{found.relative_change()}"
    )
    return said + describe_interval(loss, "{:+.3f}")


def held_out_by_category(data: Comparison) -> Table | None:
    """Compare both models on the rows of each category; None if there is only one."""
    categories = data.rows_by_category
    if len(categories) < 2:
        return None
    found = {name: measure(data, indices) for name, indices in categories.items()}
    changes = {name: one.difference[0].value / (one.a[0] or 1.0) for name, one in found.items()}
    best, worst = min(changes, key=changes.__getitem__), max(changes, key=changes.__getitem__)
    finding = (
        f"By category, {data.b.name} is best against {data.a.name} in {best}{found[best].relative_change()} and worst "
        f"in {worst}{found[worst].relative_change()}."
    )
    few = any(one.n_families < MIN_FAMILIES for one in found.values())
    if few:
        finding = finding[:-1] + f"; with fewer than {MIN_FAMILIES} families in a category, this may be chance."
    both = f"{data.a.name} → {data.b.name}"
    return Table(
        id="held_out_by_category",
        title="Held-out rows by category",
        columns=("rows", "families", "tokens", "loss", "loss difference", "token accuracy", "accuracy difference"),
        rows={name: _category_cells(one) for name, one in found.items()},
        note=f"Loss and token accuracy: {both}. In brackets: {INTERVAL}."
        + (f" A category of fewer than {MIN_FAMILIES} families has no interval." if few else ""),
        finding=finding if changes[best] != changes[worst] else "",
        plot=4,
    )


def _category_cells(found: PairedFigures) -> tuple[Cell, ...]:
    return (
        number(found.n_rows),
        number(found.n_families),
        number(found.n_tokens),
        Cell(f"{found.a[0]:.3f} → {found.b[0]:.3f}", found.b[0]),
        estimate(found.difference[0], "{:+.3f}"),
        Cell(f"{percent(found.a[2]).text} → {percent(found.b[2]).text}", found.b[2]),
        estimate(found.difference[2], "{:+.1f}", scale=100, unit=" points"),
    )
