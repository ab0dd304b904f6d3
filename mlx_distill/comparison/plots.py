"""The geometry of the page's plots; the template draws it as SVG, and style sheets colour it.

Coordinates are in the units of a view box that is as wide as a phone, so that text in it stays readable there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlx_distill.comparison.figures import HeldOut, Measured
from mlx_distill.comparison.history import Moment
from mlx_distill.comparison.wording import loss_bounds
from mlx_distill.text_safety import printable

WIDTH = 360
HEIGHT = 210
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 36
LABEL_WIDTH = 100
ROW_HEIGHT = 30
LONGEST_LABEL = 13
MOST_POINTS = 400
"""Of a line; a longer one is thinned evenly, its last point kept."""


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Line:
    """One series: its name, its place among the colours, its points, and whether each of them is marked."""

    name: str
    number: int
    points: tuple[tuple[float, float], ...]
    marked: bool


@dataclass(frozen=True)
class Curves:
    """A figure by training step."""

    name: str
    title: str
    description: str
    """The course in words, for those who cannot see it."""
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Bar:
    """One row of the intervals: a dot at the difference, a line over its interval where there is one."""

    label: str
    full_label: str
    y: float
    at: float
    low: float | None
    high: float | None
    overall: bool


@dataclass(frozen=True)
class Intervals:
    """The difference of the loss, overall and by category."""

    height: float
    zero: float
    ticks: tuple[Tick, ...]
    bars: tuple[Bar, ...]
    description: str


def training_curves(moments: Sequence[Moment]) -> list[Curves]:
    """Loss and token accuracy by step; a figure that was never taken has no plot."""
    plots = []
    for name, title, scale in (("loss", "Loss", 1.0), ("accuracy", "Token accuracy, %", 100.0)):
        series = {
            kind: [(m.step, scale * value) for m in moments if (value := getattr(m, f"{field}_{name}")) is not None]
            for kind, field in (("training batch", "train"), ("validation", "valid"))
        }
        series = {kind: points for kind, points in series.items() if points}
        if any(len(points) > 1 for points in series.values()):
            plots.append(_curves(name, title, series))
    return plots


def _curves(name: str, title: str, series: Mapping[str, Sequence[tuple[int, float]]]) -> Curves:
    steps = [step for points in series.values() for step, _ in points]
    values = [value for points in series.values() for _, value in points]
    y_marks = marks(min(values), max(values), 4)
    low, high = min(y_marks[0], *values), max(y_marks[-1], *values)
    first, last = min(steps), max(max(steps), min(steps) + 1)

    def x(step: float) -> float:
        return _between(LEFT, WIDTH - RIGHT, (step - first) / (last - first))

    def y(value: float) -> float:
        return _between(HEIGHT - BOTTOM, TOP, (value - low) / ((high - low) or 1))

    said = "; ".join(
        f"{kind}: {points[0][1]:.3f} at step {points[0][0]}, {points[-1][1]:.3f} at step {points[-1][0]}"
        for kind, points in series.items()
    )
    return Curves(
        name,
        title,
        f"{title} by training step. {said}.",
        tuple(Tick(x(mark), f"{mark:g}") for mark in marks(first, last, 5) if mark == int(mark)),
        tuple(Tick(y(mark), f"{mark:g}") for mark in y_marks),
        tuple(
            Line(kind, number, tuple((x(step), y(value)) for step, value in _thinned(points)), marked=len(points) <= 40)
            for number, (kind, points) in enumerate(series.items())
        ),
    )


def _thinned(points: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    stride = math.ceil(len(points) / MOST_POINTS)
    return [*points[:-1:stride], points[-1]]


def loss_intervals(test: HeldOut) -> Intervals:
    """Distilled minus base by category, all rows first."""
    groups: dict[str, Measured] = {"all rows": test}
    if len(test.by_category) > 1:
        groups |= {("all rows " if name == "all rows" else name): group for name, group in test.by_category.items()}
    changes = [group.difference.loss for group in groups.values()]
    ends = [end for change in changes for end in (change.value, change.low, change.high) if end is not None]
    ticks = marks(min(0.0, *ends), max(0.0, *ends), 4)
    low, high = min(0.0, *ends, *ticks), max(0.0, *ends, *ticks)

    def x(value: float) -> float:
        return _between(LABEL_WIDTH, WIDTH - RIGHT, (value - low) / ((high - low) or 1))

    bars = [
        Bar(
            _short(name),
            name,
            TOP + ROW_HEIGHT * (row + 0.5),
            x(change.value),
            None if change.low is None else x(change.low),
            None if change.high is None else x(change.high),
            overall=row == 0,
        )
        for row, (name, change) in enumerate(zip(groups, changes, strict=True))
    ]
    said = "; ".join(
        f"{name.strip()} {group.difference.loss.value:+.3f}"
        + (f", interval {loss_bounds(group)}" if group.has_interval else ", no interval")
        for name, group in groups.items()
    )
    return Intervals(
        TOP + ROW_HEIGHT * len(bars) + BOTTOM,
        x(0.0),
        tuple(Tick(x(mark), f"{mark:+g}" if mark else "0") for mark in ticks),
        tuple(bars),
        f"Difference of the loss, distilled minus base: {said}.",
    )


def marks(low: float, high: float, about: int) -> list[float]:
    """Round numbers within [low, high], some `about` of them, 1, 2 or 5 times a power of ten apart."""
    span = (high - low) or abs(high) or 1.0
    rough = span / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [round(step * n, 12) for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)] or [
        low
    ]


def _short(name: str) -> str:
    flat = " ".join(printable(name).split())
    return flat if len(flat) <= LONGEST_LABEL else flat[: LONGEST_LABEL - 1] + "…"


def _between(start: float, end: float, share: float) -> float:
    return round(start + (end - start) * share, 2)
