"""Wins, ties and losses by the judge."""

from __future__ import annotations

from collections.abc import Sequence

from mlx_distill.compare.judge import Judgement, Judging, Outcome
from mlx_distill.compare.models import Comparison
from mlx_distill.compare.statistics import bootstrap_mean
from mlx_distill.compare.table import INTERVAL, NONE, Cell, Estimate, Table, estimate, number
from mlx_distill.formatting import format_usd, plural

POINTS = {Outcome.A: 0.0, Outcome.TIE: 0.5, Outcome.B: 1.0}


def judge(data: Comparison) -> Table | None:
    """Count the verdicts, over all pairs and by category; None without a judge."""
    if not data.judging:
        return None
    pairs, a, b = data.judging.pairs, data.a.name, data.b.name
    categories = dict.fromkeys(pair.category for pair in pairs)
    rows = {"all pairs": _tally(pairs, data.seed)}
    if len(categories) > 1:
        for category in categories:
            label = category if category not in rows else f"{category} (category)"
            rows[label] = _tally([pair for pair in pairs if pair.category == category], data.seed)
    return Table(
        id="judge",
        title="What the judge says",
        columns=(f"{b} wins", "ties", f"{a} wins", "no verdict", f"win rate [{INTERVAL}]"),
        rows=rows,
        note=(
            f"Judge: {', '.join(dict.fromkeys((data.judging.judge, *data.judging.models)))}. A model wins a pair if "
            "both orders say so; if they disagree, the pair is a tie. Win rate: wins and half of the ties of "
            f"{b}, of the pairs with a verdict. {_checks(data.judging)} The judge's preference does not prove that an "
            "answer is right."
        ),
        finding=_finding(data.judging, win_rate(pairs, data.seed), a, b),
    )


def _checks(found: Judging) -> str:
    """Return signs that the judge went by order or length, and the cost."""
    clear = [pair for pair in found.pairs if pair.outcome in POINTS]
    split = [pair for pair in clear if pair.orders[0] is not pair.orders[1]]
    first = sum(pair.orders == (Outcome.A, Outcome.B) for pair in split)
    won = [pair for pair in clear if pair.outcome is not Outcome.TIE and pair.extra_words]
    longer = sum((pair.outcome is Outcome.B) == (pair.extra_words > 0) for pair in won)
    cost = f" Cost: {format_usd(found.cost_usd)}." if found.cost_usd is not None else ""
    return (
        f"The two orders disagree on {len(split)} of {plural(len(clear), 'pair')}; the judge prefers the first answer "
        f"both times on {first} of them. The longer answer wins {longer} of the {len(won)} pairs that one model wins. "
        f"{sum(pair.identical for pair in found.pairs)} pairs have the same text and count as ties.{cost}"
    )


def win_rate(pairs: Sequence[Judgement], seed: int) -> Estimate | None:
    """Return the share of wins of b, ties as half; None without a clear verdict."""
    clear = [pair for pair in pairs if pair.outcome in POINTS]
    points = [POINTS[pair.outcome] for pair in clear]
    return bootstrap_mean([pair.family for pair in clear], points, seed) if clear else None


def _tally(pairs: Sequence[Judgement], seed: int) -> tuple[Cell, ...]:
    rate = win_rate(pairs, seed)
    counts = [sum(pair.outcome is outcome for pair in pairs) for outcome in (Outcome.B, Outcome.TIE, Outcome.A)]
    unknown = len(pairs) - sum(counts)
    return (*map(number, (*counts, unknown)), estimate(rate, "{:.1f}", scale=100, unit=" %") if rate else NONE)


def _finding(found: Judging, rate: Estimate | None, a: str, b: str) -> str:
    if not rate:
        return f"{found.judge} gave no clear verdict on {plural(len(found.pairs), 'pair')} of answers."
    wins, losses, ties = (
        sum(pair.outcome is one for pair in found.pairs) for one in (Outcome.B, Outcome.A, Outcome.TIE)
    )
    said = (
        f"{found.judge} prefers {b} in {wins} and {a} in {losses} of {plural(wins + losses + ties, 'pair')} of "
        f"answers, {ties} tied: a win rate of {100 * rate.value:.1f} %"
    )
    if rate.low is None or rate.high is None:
        return f"{said}, without an interval (too few families, or all are equal)."
    verb = "includes" if rate.low <= 0.5 <= rate.high else "excludes"
    return f"{said}; the {INTERVAL} [{100 * rate.low:.1f}, {100 * rate.high:.1f}] {verb} 50 %."
