"""The learning rate as a function of how far the run is."""

from __future__ import annotations

import math

FLOOR = 0.05
"""The rate ends at this share of its peak, so that the last steps still learn."""


def learning_rate(peak: float, progress: float, *, warmup: float, schedule: str) -> float:
    """Linear warm-up over the share `warmup`, then cosine, linear or constant. `progress` is 0 at the first step
    and 1 at the end, be the end a number of steps or of minutes."""
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup:
        return peak * max(progress / warmup, FLOOR)
    if schedule == "constant":
        return peak
    left = 1 - (progress - warmup) / (1 - warmup)
    fall = left if schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left))
    return peak * (FLOOR + (1 - FLOOR) * fall)
