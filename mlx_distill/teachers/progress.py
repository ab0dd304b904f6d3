"""Progress and warnings of a run, each said once or once in a while, however many requests it concerns."""

from __future__ import annotations

import time

from mlx_distill.events import Progress, Report, Warning
from mlx_distill.formatting import format_duration, format_time_of_day
from mlx_distill.teachers.base import RetryableError

REPEAT_SECONDS = 10.0
"""The same failure is reported at most this often."""
SHORT_WAIT_SECONDS = 1.0
"""Shorter rate-limit waits are not reported."""


class ProgressReporter:
    """Reports the progress of one job."""

    def __init__(self, report: Report, job: str, total: int) -> None:
        self._report, self._job, self._total = report, job, total
        self._silent_until: dict[str, float] = {}
        self._n_done = 0
        self.cost_usd = 0.0
        """Cost of the answers so far."""

    def progress(self, n_done: int | None = None, note: str = "") -> None:
        """Report how many requests are done, their cost, and a note."""
        self._n_done = self._n_done if n_done is None else n_done
        cost = f"{self.cost_usd:.2f} USD" if self.cost_usd else ""
        text = "  ".join(filter(None, [cost, note]))
        self._report(Progress(self._job, self._n_done, self._total, "prompts", text))

    def retrying(self, error: RetryableError, wait: float, limit_seconds: float) -> None:
        """Report a failure and the time of the retry."""
        limit = f"; gives up after {format_duration(limit_seconds)} without an answer" if wait <= limit_seconds else ""
        at = format_time_of_day(wait)
        self.warn(f"{error.reason}: retrying in {format_duration(wait)}, at {at}{limit}.", error.reason, wait)
        self.progress(note=f"waiting until {at}")

    def exhausted(self, unit: str, wait: float) -> None:
        """Report that a rate limit is used up."""
        if wait >= SHORT_WAIT_SECONDS:
            at = format_time_of_day(wait)
            self.warn(
                f"The rate limit of {unit} is used up: continuing in {format_duration(wait)}, at {at}.", unit, wait
            )
            self.progress(note=f"waiting until {at}")

    def warn_once(self, text: str, topic: str = "") -> None:
        """Warn, unless the topic was reported before."""
        self.warn(text, topic, float("inf"))

    def warn(self, text: str, topic: str, seconds: float) -> None:
        """Warn, unless the topic was reported within `seconds` or REPEAT_SECONDS."""
        now = time.monotonic()
        if now >= self._silent_until.get(topic or text, 0.0):
            self._silent_until[topic or text] = now + max(seconds, REPEAT_SECONDS)
            self._report(Warning(text))
