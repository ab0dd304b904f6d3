"""The learning rate and the time budget: both follow how far the run is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from mlx_distill.train.config import TrainConfig

MIN_LR_RATIO = 0.05
"""The learning rate ends at this fraction of its peak, so that the last steps still learn."""


def learning_rate(config: TrainConfig, progress: float) -> float:
    """Return the learning rate at `progress` (0 at the first step, 1 at the end): linear warm-up, then the schedule."""
    peak, progress = config.learning_rate, min(max(progress, 0.0), 1.0)
    if progress < config.warmup:
        return peak * max(progress / config.warmup, MIN_LR_RATIO)
    if config.schedule == "constant":
        return peak
    left = 1 - (progress - config.warmup) / (1 - config.warmup)
    decay = left if config.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left))
    return peak * (MIN_LR_RATIO + (1 - MIN_LR_RATIO) * decay)


class TimeBudget:
    """Time since the start of the run, earlier parts of a resumed run included, and the limit for it."""

    def __init__(self, minutes: float, now: Callable[[], float] = time.perf_counter) -> None:
        self.minutes = minutes
        """0: no limit."""
        self.eval_seconds = 0.0
        """Duration of the last evaluation. The budget reserves this time for one more."""
        self._now = now
        self._started = now()

    def add_earlier(self, seconds: float) -> None:
        """Count the time that the run took before it was interrupted."""
        self._started -= seconds

    @property
    def seconds(self) -> float:
        return self._now() - self._started

    def progress(self, step: int, total_steps: int) -> float:
        """Return how far the run is, by steps or by time, whichever is further."""
        by_steps = step / max(total_steps, 1)
        return max(by_steps, self.seconds / self._seconds_for_steps()) if self.minutes else by_steps

    def has_room(self, step_seconds: float) -> bool:
        """Return True if another step of `step_seconds` ends within the budget."""
        return not self.minutes or self.seconds + step_seconds <= self._seconds_for_steps()

    def _seconds_for_steps(self) -> float:
        """The budget without the time for one more evaluation."""
        return max(self.minutes * 60 - self.eval_seconds, 1.0)
