"""Wins, ties and losses by the judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mlx_distill.compare.models import Comparison
from mlx_distill.compare.report import AnsweredPrompt, Judgement, Outcome
from mlx_distill.compare.statistics import bootstrap_mean
from mlx_distill.compare.table import INTERVAL, NONE, Cell, Estimate, Table, estimate, number
from mlx_distill.formatting import format_usd, plural

POINTS = {Outcome.A: 0.0, Outcome.TIE: 0.5, Outcome.B: 1.0}
Pair = tuple[AnsweredPrompt, Judgement]


def judge(data: Comparison) -> Table | None:
    """Count the verdicts, over all pairs and by category; None without a judge."""
    if not data.judge:
        return None
    pairs, a, b = [(one, one.judgement) for one in data.answers if one.judgement], data.a.name, data.b.name
    groups = {"all pairs": pairs}
    for category in dict.fromkeys(one.category for one, _ in pairs):
        label = f"{category} (category)" if category in groups else category
        groups[label] = [pair for pair in pairs if pair[0].category == category]
    return Table(
        id="judge",
        title="What the judge says",
        columns=(f"{b} wins", "ties", f"{a} wins", "no verdict", f"win rate [{INTERVAL}]"),
        rows={label: _tally(group, data.seed) for label, group in groups.items()},
        note=(
            f"Judge: {', '.join(data.judge.names)}. A model wins a pair if both orders say so; if they disagree, the "
            f"pair is a tie. Win rate: wins and half of the ties of {b}, of the pairs with a verdict. {_checks(pairs)} "
            "The judge's preference does not prove that an answer is right."
        )
        + (f" Cost: {format_usd(data.judge.cost_usd)}." if data.judge.cost_usd is not None else ""),
        finding=_finding(data, pairs),
    )


def win_rate(pairs: Sequence[Pair], seed: int) -> Estimate | None:
    """Return the share of wins of b, ties as half; None without a verdict."""
    clear = [(one.family, POINTS[found.outcome]) for one, found in pairs if found.outcome in POINTS]
    return bootstrap_mean([family for family, _ in clear], [points for _, points in clear], seed) if clear else None


def _tally(pairs: Sequence[Pair], seed: int) -> tuple[Cell, ...]:
    counts, rate = Counter(found.outcome for _, found in pairs), win_rate(pairs, seed)
    known = [counts[Outcome.B], counts[Outcome.TIE], counts[Outcome.A]]
    rate_cell = estimate(rate, "{:.1f}", scale=100, unit=" %") if rate else NONE
    return (*map(number, (*known, len(pairs) - sum(known))), rate_cell)


def _checks(pairs: Sequence[Pair]) -> str:
    """Return signs that the judge went by order or length."""
    clear = [found for _, found in pairs if found.outcome in POINTS]
    split = [found for found in clear if found.orders[0] is not found.orders[1]]
    first = sum(found.orders == (Outcome.A, Outcome.B) for found in split)
    won = [
        (found.outcome is Outcome.B, len(one.b.text.split()) - len(one.a.text.split()))
        for one, found in pairs
        if found.outcome in (Outcome.A, Outcome.B)
    ]
    longer = [b_wins == (extra > 0) for b_wins, extra in won if extra]
    return (
        f"The two orders disagree on {len(split)} of {plural(len(clear), 'pair')}; the judge prefers the first answer "
        f"both times on {first} of them. The longer answer wins {sum(longer)} of the {len(longer)} pairs that one "
        f"model wins. {sum(not found.replies for found in clear)} pairs have the same text and count as ties."
    )


def _finding(data: Comparison, pairs: Sequence[Pair]) -> str:
    counts, rate = Counter(found.outcome for _, found in pairs), win_rate(pairs, data.seed)
    name = data.judge.names[0] if data.judge else ""
    if not rate:
        return f"{name} gave no clear verdict on {plural(len(pairs), 'pair')} of answers."
    n_clear = sum(counts[outcome] for outcome in POINTS)
    said = (
        f"{name} prefers {data.b.name} in {counts[Outcome.B]} and {data.a.name} in {counts[Outcome.A]} of "
        f"{plural(n_clear, 'pair')} of answers, {counts[Outcome.TIE]} tied: a win rate of {100 * rate.value:.1f} %"
    )
    if rate.low is None or rate.high is None:
        return f"{said}, without an interval (too few families, or all are equal)."
    verb = "includes" if rate.low <= 0.5 <= rate.high else "excludes"
    return f"{said}; the {INTERVAL} [{100 * rate.low:.1f}, {100 * rate.high:.1f}] {verb} 50 %."
