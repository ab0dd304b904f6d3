"""Tables: what a metric returns and what every renderer shows."""

from __future__ import annotations

import msgspec

CONFIDENCE = 0.95
INTERVAL = f"{100 * CONFIDENCE:.0f} % interval"


class Estimate(msgspec.Struct, frozen=True):
    """A statistic and its 95 % interval.

    The bounds are None if there are too few families, or if the statistic is equal in all of them: then resampling
    cannot say how different other families would be.
    """

    value: float
    low: float | None = None
    high: float | None = None


class Cell(msgspec.Struct, frozen=True, omit_defaults=True):
    """One cell: the text that readers see, and the figure behind it."""

    text: str
    value: float | None = None
    low: float | None = None
    """Bounds of the 95 % interval. None if there is no interval."""
    high: float | None = None


NONE = Cell("-")


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """A titled table with labelled rows."""

    id: str
    """Short name of the metric: the key in `report.json` and the anchor on the page."""
    title: str
    columns: tuple[str, ...]
    """Column titles, without the column of row labels."""
    rows: dict[str, tuple[Cell, ...]]
    """Row label to its cells, in order."""
    note: str = ""
    """Definitions and what a reader must know before believing the figures."""
    finding: str = ""
    """One sentence on what the table shows, if it shows something."""
    headline: bool = False
    """The page shows the rows as cards at the top."""
    plot: int | None = None
    """Index of a column whose intervals the page draws."""


def number(value: float, form: str = "{:,.0f}") -> Cell:
    """Return a cell with a formatted number."""
    return Cell(form.format(value), float(value))


def percent(share: float) -> Cell:
    """Return a cell such as `57.1 %`."""
    return Cell(f"{100 * share:.1f} %", share)


def share(n: int, of: int) -> Cell:
    """Return a cell such as `2 of 3`, or a dash if there are none."""
    return Cell(f"{n} of {of}", n / of) if of else NONE


def estimate(found: Estimate, form: str, *, scale: float = 1.0, unit: str = "", extra: str = "") -> Cell:
    """Return a cell such as `-0.750 (-37.5 %) [-0.91, -0.52]`; `extra` follows the value."""
    text = f"{form.format(scale * found.value)}{unit}{extra}"
    if found.low is not None and found.high is not None:
        text += f" [{form.format(scale * found.low)}, {form.format(scale * found.high)}]"
    return Cell(text, found.value, found.low, found.high)
