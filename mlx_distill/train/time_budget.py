"""How long a run has taken, and whether its time budget has room for another step."""

from __future__ import annotations

import time

from mlx_distill.train.checkpoint import State


class Clock:
    """Time since the start, resumed parts added up. `minutes` is the budget, 0 for none."""

    def __init__(self, minutes: float) -> None:
        self.minutes = minutes
        self.look_seconds = 0.0
        """What the last look at valid.jsonl took."""
        self._started = time.perf_counter()

    def add(self, seconds: float) -> None:
        """Count what an earlier part of the run took."""
        self._started -= seconds

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

    def progress(self, step: int, total_steps: int) -> float:
        """How far the run is, by steps or by the time budget, whichever is further."""
        by_steps = step / max(total_steps, 1)
        return max(by_steps, self.seconds / self._seconds_for_steps()) if self.minutes else by_steps

    def is_over(self, state: State, total_steps: int) -> bool:
        """True where another step would end after the budget."""
        if not self.minutes:
            return False
        a_step = state.step_seconds / max(state.step, 1)
        return self.seconds + a_step > self._seconds_for_steps() and state.step < total_steps

    def _seconds_for_steps(self) -> float:
        """The budget less one more look at valid.jsonl."""
        return max(self.minutes * 60 - self.look_seconds, 1.0)
