"""The plots of the page, as SVG elements that the page's style sheet colours."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from markupsafe import Markup

from mlx_distill.compare.table import Table
from mlx_distill.sanitize import printable
from mlx_distill.training_run import MetricPoint

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 348, 12, 174
"""Edges of the area of the training plots. The unit is a pixel of a phone, so that labels stay readable there."""
LABELS_WIDTH, ROW_HEIGHT = 110, 30
MAX_POINTS = 400
"""A longer line is thinned evenly; its last point stays."""
SERIES = (("training batch", "train", "soft"), ("validation", "valid", "b"))
"""Name of a line, prefix of its field in a MetricPoint, and its colour."""
FIGURES = (("loss", "Loss", 1.0), ("kl", "KL to the teacher", 1.0), ("accuracy", "Token accuracy, %", 100.0))
"""Suffix of the fields, title of the plot, and the factor of its values."""


def training_plots(points: Sequence[MetricPoint], key: str) -> list[Markup]:
    """Draw loss, KL and token accuracy by step, each if there are two points or more. `key` makes the ids unique."""
    plots = []
    for field, title, scale in FIGURES:
        lines = {
            (name, colour): [(p.step, scale * y) for p in points if (y := _figure_of(p, kind, field)) is not None]
            for name, kind, colour in SERIES
        }
        lines = {series: line for series, line in lines.items() if line}
        if any(len(line) > 1 for line in lines.values()):
            plots.append(_line_plot(f"{title} by training step", f"{key}-{field}", lines))
    return plots


def _figure_of(point: MetricPoint, kind: str, field: str) -> float | None:
    """Return a figure of the training or the validation rows. The loss is the cross-entropy, whatever is minimised."""
    if (kind, field) == ("train", "loss") and point.train_cross_entropy is not None:
        return point.train_cross_entropy
    value: float | None = getattr(point, f"{kind}_{field}", None)
    return value


def _line_plot(title: str, key: str, lines: dict[tuple[str, str], list[tuple[int, float]]]) -> Markup:
    xs, ys = ([point[axis] for points in lines.values() for point in points] for axis in (0, 1))
    x_ticks, y_ticks = ticks(min(xs), max(xs), 5), ticks(min(ys), max(ys), 4)
    x_at = _scale(xs, LEFT, RIGHT)
    y_at = _scale(ys + y_ticks, BOTTOM, TOP)
    parts = [_line("line", LEFT, y_at(y), RIGHT, y_at(y)) for y in y_ticks]
    parts += [_text(f"{y:g}", LEFT - 8, y_at(y) + 4, "end") for y in y_ticks]
    parts += [_text(f"{x:g}", x_at(x), BOTTOM + 16, "middle") for x in x_ticks if x == int(x)]
    parts += [_line("soft", LEFT, BOTTOM, RIGHT, BOTTOM), _text("step", (LEFT + RIGHT) / 2, HEIGHT - 4, "middle")]
    for (_, colour), points in lines.items():
        stride = math.ceil(len(points) / MAX_POINTS)
        shown = [f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in (*points[:-1:stride], points[-1])]
        parts.append(Markup('<polyline class="stroke-{}" points="{}"/>').format(colour, " ".join(shown)))
    said = "; ".join(
        f"{name}: {points[0][1]:.3f} at step {points[0][0]}, {points[-1][1]:.3f} at step {points[-1][0]}"
        for (name, _), points in lines.items()
    )
    key_template = '<span class="key"><span class="swatch fill-{}"></span>{}</span>'
    legend = Markup(" ").join(Markup(key_template).format(colour, name) for name, colour in lines)
    return _figure(key, HEIGHT, title, said, parts, Markup("{}: {}").format(title, legend))


def interval_plot(table: Table) -> Markup:
    """Draw one column of a table: a dot for each value, a line for its interval."""
    assert table.plot is not None
    cells = {label: row[table.plot] for label, row in table.rows.items()}
    edges = [edge for cell in cells.values() for edge in (cell.value, cell.low, cell.high) if edge is not None]
    x_ticks = ticks(min(0.0, *edges), max(0.0, *edges), 4)
    x_at = _scale(edges + x_ticks, LABELS_WIDTH + 12, RIGHT - 12)
    bottom = TOP + ROW_HEIGHT * len(cells)
    parts = [_line("soft" if x == 0 else "line", x_at(x), TOP, x_at(x), bottom) for x in x_ticks]
    parts += [_text(f"{x:+g}".replace("-", "−") if x else "0", x_at(x), bottom + 16, "middle") for x in x_ticks]
    for number, (label, cell) in enumerate(cells.items()):
        y = TOP + ROW_HEIGHT * (number + 0.5)
        flat = " ".join(printable(label).split())
        parts.append(_text(flat if len(flat) <= 16 else flat[:15] + "…", 0, y + 4, "start"))
        if cell.low is not None and cell.high is not None:
            parts.append(_line("b thick", x_at(cell.low), y, x_at(cell.high), y))
        shape = "dot" if cell.low is not None else "dot open"
        parts.append(Markup('<circle class="{}" cx="{:.1f}" cy="{}" r="5"/>').format(shape, x_at(cell.value or 0.0), y))
    said = "; ".join(f"{label} {cell.text}" for label, cell in cells.items())
    caption = f"{table.columns[table.plot].capitalize()}: dot and interval; an open dot has no interval."
    return _figure(table.id, bottom + 24, f"{table.title}: {table.columns[table.plot]}", said, parts, caption)


def ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` round values between low and high: 1, 2 or 5 times a power of ten apart."""
    if low == high:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    return [round(n * step, 12) for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _scale(values: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    """Return a function that maps the range of the values to positions from start to end."""
    low, factor = min(values), (end - start) / ((max(values) - min(values)) or 1.0)
    return lambda value: start + (value - low) * factor


def _line(colour: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    form = '<line class="stroke-{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>'
    return Markup(form).format(colour, x1, y1, x2, y2)


def _text(text: str, x: float, y: float, anchor: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, text)


def _figure(key: str, height: float, title: str, said: str, parts: Iterable[Markup], caption: str) -> Markup:
    """Return a figure with a title and a description for screen readers."""
    return Markup(
        '<figure><svg viewBox="0 0 {w} {h}" role="img" aria-labelledby="plot-{key} plot-{key}-says">'
        '<title id="plot-{key}">{title}</title><desc id="plot-{key}-says">{said}.</desc>{parts}</svg>'
        "<figcaption>{caption}</figcaption></figure>"
    ).format(
        w=WIDTH,
        h=height,
        key=key,
        title=printable(title),
        said=printable(said),
        parts=Markup("").join(parts),
        caption=caption,
    )
