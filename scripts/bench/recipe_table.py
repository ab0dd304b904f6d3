"""Markdown tables of the journal: the choice, the effect, the effect by category, harm to other texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from recipe_measure import Measured, measure
from recipe_runs import Done, best_of, settings_text

from mlx_distill.compare.table import Estimate

PARTS = {
    "rates": "learning rate",
    "rank": "rank",
    "dropout": "dropout",
    "epochs": "epochs",
    "batch_size": "batch",
    "learning_rate": "rate at batch 2",
    "seeds": "seeds of the choice",
}


def tables(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return all tables that the journal has lines for."""
    runs = [Done.from_json(line) for line in lines if line["kind"] == "run"]
    parts = [_sweep([run for run in runs if run.part in PARTS])]
    for line in lines:
        if line["kind"] == "test":
            parts.append(_test(line["scored"], line["seeds"]))
    folds = [row for line in lines if line["kind"] == "fold" for row in line["scored"]]
    if folds:
        parts.append(_folds(folds, len({line["fold"] for line in lines if line["kind"] == "fold"})))
    harm = [line for line in lines if line["kind"] == "harm"]
    if harm:
        parts.append(_harm(harm))
    return "\n\n".join(parts)


def _sweep(runs: Sequence[Done]) -> str:
    """Return the table of the sweep on `valid`. The best of the runs that share a seed is bold."""
    best = best_of([run for run in runs if run.part != "seeds"])
    rows = [
        (
            PARTS[run.part],
            settings_text(run.recipe),
            f"**{run.best.loss:.3f}**" if run is best else f"{run.best.loss:.3f}",
            f"{run.best.loss / run.before.loss - 1:+.1%}",
            f"{run.best.accuracy:.1%} ({100 * (run.best.accuracy - run.before.accuracy):+.1f})",
            f"{run.best.epoch:g}",
        )
        for run in sorted(runs, key=lambda run: list(PARTS).index(run.part))
    ]
    return _table(("changed", "settings", "valid loss", "change", "token accuracy (points)", "best epoch"), rows)


def _test(scored: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> str:
    rows = [_figures(f"seed {seed}", measure(scored, number)) for number, seed in enumerate(seeds)]
    mean = measure(scored)
    rows.append(_figures("mean of the seeds", mean))
    return f"Test: {_scope(mean)}\n\n{_table(_HEADER, rows)}"


def _folds(scored: Sequence[Mapping[str, Any]], n_folds: int) -> str:
    every = measure(scored)
    categories = dict.fromkeys(row["category"] for row in scored)
    rows = [_figures(name, measure([row for row in scored if row["category"] == name])) for name in categories]
    rows.append(_figures("all", every))
    return f"Folds ({n_folds} of them): {_scope(every)}\n\n{_table(_HEADER, rows)}"


def _harm(lines: Sequence[Mapping[str, Any]]) -> str:
    measured = [(line["text"], measure(line["scored"])) for line in lines]
    return _table(_HEADER, [_figures(f"{name} ({part.n_rows} texts)", part) for name, part in measured])


_HEADER = ("", "n", "loss, base → distilled", "change (95 %)", "token accuracy", "points (95 %)")


def _figures(name: str, part: Measured) -> tuple[str, ...]:
    (base_loss, base_accuracy), (loss, accuracy) = part.base, part.distilled
    loss_change, accuracy_change = part.difference
    return (
        name,
        f"{part.n_rows} rows, {part.n_families} families, {part.n_tokens} tokens",
        f"{base_loss:.3f} → {loss:.3f}",
        f"{loss_change.value / base_loss:+.1%}{_bounds(loss_change, 1 / base_loss, '+.1%')}",
        f"{base_accuracy:.1%} → {accuracy:.1%}",
        f"{100 * accuracy_change.value:+.1f}{_bounds(accuracy_change, 100, '+.1f')}",
    )


def _bounds(figure: Estimate, factor: float, form: str) -> str:
    if figure.low is None or figure.high is None:
        return ""
    return f" ({figure.low * factor:{form}} to {figure.high * factor:{form}})"


def _scope(part: Measured) -> str:
    return f"{part.n_rows} rows, {part.n_families} families, {part.n_tokens} answer tokens."


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
