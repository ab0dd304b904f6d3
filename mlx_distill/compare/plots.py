"""The page's plots, drawn by Matplotlib in units of a phone's width, so that text in them stays readable there.

Colours are names of the page's style sheet: see `svg.as_element`, which makes the drawing fit into the page.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mlx_distill.compare.figures import HeldOut, Measured
from mlx_distill.compare.history import Moment
from mlx_distill.compare.svg import COLOURS, UNITS_AN_INCH, as_element
from mlx_distill.compare.wording import loss_bounds
from mlx_distill.sanitize import printable

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 36
LABEL_WIDTH = 100
ROW_HEIGHT = 30
LONGEST_LABEL = 13
MOST_POINTS = 400
"""Of a line; a longer one is thinned evenly, its last point kept."""
MOST_MARKED = 40
"""Points of a line that are marked one by one."""
ROUND = [1, 2, 5, 10]
"""Axes are marked at these times a power of ten."""
SERIES = (("training batch", "train", "soft"), ("validation", "valid", "distilled"))
"""The name of a line, the field of a `Moment`, and its colour."""

STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.edgecolor": COLOURS["soft"],
    "axes.labelcolor": COLOURS["soft"],
    "xtick.labelcolor": COLOURS["soft"],
    "ytick.labelcolor": COLOURS["soft"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "axes.linewidth": 1,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 1,
    "axes.axisbelow": True,
    "text.parse_math": False,  # a name with two dollar signs is no formula
}


@dataclass(frozen=True)
class Plot:
    """One drawing, and the lines in it as (name, colour)."""

    title: str
    drawing: Markup
    lines: tuple[tuple[str, str], ...] = ()


def training_curves(moments: Sequence[Moment], key: str) -> list[Plot]:
    """Loss and token accuracy by step; a figure that was never taken has no plot. `key` keeps ids apart."""
    plots = []
    for name, title, scale in (("loss", "Loss", 1.0), ("accuracy", "Token accuracy, %", 100.0)):
        series = {
            (kind, colour): [
                (m.step, scale * value) for m in moments if (value := getattr(m, f"{field}_{name}")) is not None
            ]
            for kind, field, colour in SERIES
        }
        series = {line: points for line, points in series.items() if points}
        if any(len(points) > 1 for points in series.values()):
            plots.append(_curves(f"{key}-{name}", title, series))
    return plots


def _curves(name: str, title: str, series: Mapping[tuple[str, str], Sequence[tuple[int, float]]]) -> Plot:
    with _axes(HEIGHT, LEFT) as (figure, axes):
        for (_, colour), points in series.items():
            steps, values = zip(*_thinned(points), strict=True)
            marker = "o" if len(points) <= MOST_MARKED else ""
            axes.plot(steps, values, color=COLOURS[colour], linewidth=2, marker=marker, markersize=5)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=ROUND, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=ROUND))
        axes.margins(x=0.02)
        axes.yaxis.grid()
        axes.set_xlabel("step")
        said = "; ".join(
            f"{kind}: {points[0][1]:.3f} at step {points[0][0]}, {points[-1][1]:.3f} at step {points[-1][0]}"
            for (kind, _), points in series.items()
        )
        what = f"{title} by training step"
        return Plot(title, as_element(figure, name, what, f"{what}. {said}."), tuple(series))


def loss_intervals(test: HeldOut, names: Mapping[str, str]) -> Plot:
    """The second side minus the first by category, all rows first."""
    groups: dict[str, Measured] = {"all rows": test}
    if len(test.by_category) > 1:
        groups |= {("all rows " if name == "all rows" else name): group for name, group in test.by_category.items()}
    height = TOP + ROW_HEIGHT * len(groups) + BOTTOM
    with _axes(height, LABEL_WIDTH) as (figure, axes):
        axes.axvline(0, color=COLOURS["soft"], linewidth=1)
        for row, group in enumerate(groups.values()):
            change = group.difference.loss
            if change.low is not None and change.high is not None:
                axes.plot([change.low, change.high], [row, row], color=COLOURS["distilled"], linewidth=3)
            axes.plot(
                *([change.value], [row]),
                marker="o",
                markersize=9,
                markeredgewidth=2,
                markeredgecolor=COLOURS["distilled"],
                markerfacecolor=COLOURS["paper" if change.low is None else "distilled"],
            )
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.set_yticks(range(len(groups)), [_short(name) for name in groups])
        axes.tick_params(axis="y", pad=LABEL_WIDTH)
        for label in axes.get_yticklabels():
            label.set_horizontalalignment("left")
        axes.get_yticklabels()[0].set_color(COLOURS["ink"])
        axes.get_yticklabels()[0].set_fontweight("bold")
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=ROUND))
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:+g}".replace("-", "−") if value else "0")
        )
        axes.xaxis.grid()
        axes.spines["bottom"].set_visible(False)
        base, distilled = (_short(printable(names[side])) for side in ("base", "distilled"))
        axes.set_xlabel(f"{distilled} − {base}; left of 0 is nearer to the teacher")
        what = f"Difference of the loss, {names['distilled']} minus {names['base']}"
        said = "; ".join(
            f"{name.strip()} {group.difference.loss.value:+.3f}"
            + (f", interval {loss_bounds(group)}" if group.has_interval else ", no interval")
            for name, group in groups.items()
        )
        return Plot("Difference of the loss", as_element(figure, "intervals", what, f"{what}: {said}."))


@contextmanager
def _axes(height: float, left: float) -> Iterator[tuple[Figure, Axes]]:
    """Axes between margins in the page's units."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the reader's fonts draw the text, not Matplotlib's
        figure = Figure(figsize=(WIDTH / UNITS_AN_INCH, height / UNITS_AN_INCH), facecolor="none")
        box = (left / WIDTH, BOTTOM / height, (WIDTH - left - RIGHT) / WIDTH, (height - TOP - BOTTOM) / height)
        axes = figure.add_axes(box, facecolor="none")
        for side in ("left", "right", "top"):
            axes.spines[side].set_visible(False)
        yield figure, axes


def _thinned(points: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    stride = math.ceil(len(points) / MOST_POINTS)
    return [*points[:-1:stride], points[-1]]


def _short(name: str) -> str:
    flat = " ".join(printable(name).split())
    return flat if len(flat) <= LONGEST_LABEL else flat[: LONGEST_LABEL - 1] + "…"
