"""What a round of asking says while it goes on: how far it is, what it waits for and until when."""

from __future__ import annotations

import time

from mlx_distill.events import Progress, Report, Warning
from mlx_distill.teachers.protocol import TryLaterError

SAY_AGAIN_SECONDS = 10.0
"""One trouble is told at most so often, however many requests meet it."""
SHORT_SECONDS = 1.0
"""A wait for the provider's limits that is not worth a word."""


class Teller:
    """Says each thing once, or once in a while, however many requests it is about."""

    def __init__(self, report: Report, job: str, n_wanted: int, limit_seconds: float) -> None:
        self._report, self._job, self._n_wanted = report, job, n_wanted
        self._limit_seconds = limit_seconds
        self._said: dict[str, float] = {}
        self._n_settled = 0
        self.cost_usd = 0.0
        """Of the answers so far."""

    def progress(self, n_settled: int | None = None, note: str = "") -> None:
        """How many requests are settled, what they cost, and the moment's note."""
        self._n_settled = self._n_settled if n_settled is None else n_settled
        cost = f"{self.cost_usd:.2f} USD" if self.cost_usd else ""
        text = "  ".join(filter(None, [cost, note]))
        self._report(Progress(self._job, self._n_settled, self._n_wanted, "prompts", text))

    def trouble(self, trouble: TryLaterError, wait: float) -> None:
        """What went wrong and when it is tried again."""
        limit = span(self._limit_seconds)
        gives_up = f"; gives up after {limit} without an answer" if wait <= self._limit_seconds else ""
        self.say_once_in(
            max(wait, SAY_AGAIN_SECONDS),
            f"{trouble.reason}: asking again in {span(wait)}, at {clock(wait)}{gives_up}.",
            about=trouble.reason,
        )
        self.progress(note=f"waiting until {clock(wait)}")

    def used_up(self, what: str, wait: float) -> None:
        """The provider's limit lets no more be asked for now."""
        if wait < SHORT_SECONDS:
            return
        self.say_once_in(
            max(wait, SAY_AGAIN_SECONDS),
            f"The rate limit of {what} is used up: the next are asked in {span(wait)}, at {clock(wait)}.",
            about=f"limit of {what}",
        )
        self.progress(note=f"waiting until {clock(wait)}")

    def say_once(self, text: str, about: str = "") -> None:
        """Say it unless the same was said before."""
        self.say_once_in(float("inf"), text, about)

    def say_once_in(self, seconds: float, text: str, about: str = "") -> None:
        """Say it unless the same was said a moment ago."""
        now = time.monotonic()
        if now >= self._said.get(about or text, 0.0):
            self._said[about or text] = now + seconds
            self._report(Warning(text))


def span(seconds: float) -> str:
    """`0.4 s`, `12 s`, `90 min`, `25 h`."""
    if seconds >= 2 * 3600:
        return f"{seconds / 3600:.3g} h"
    if seconds >= 60:
        return f"{seconds / 60:.3g} min"
    return f"{seconds:.1f} s" if seconds < 10 and seconds != int(seconds) else f"{seconds:.0f} s"


def clock(seconds_from_now: float) -> str:
    """The local time of then."""
    return time.strftime("%H:%M:%S", time.localtime(time.time() + seconds_from_now))
