"""How fast a teacher is asked: how many requests at once, and how long to wait after trouble.

The clock and the randomness of asking live here.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Patience:
    """How long to keep asking a teacher that does not answer."""

    limit_seconds: float = 600.0
    """Give up when a request has failed for so long and nothing else was answered meanwhile."""
    first_wait_seconds: float = 1.0
    longest_wait_seconds: float = 60.0

    def wait_seconds(self, n_failures: int, asked_for: float | None) -> float:
        """The wait after the nth failure in a row: what the teacher asked for, or twice as long each time.

        Jitter keeps requests that failed together from coming back together.
        """
        if asked_for:
            return asked_for + random.uniform(0.0, min(self.first_wait_seconds, asked_for))
        wait = min(self.first_wait_seconds * 2.0 ** min(n_failures - 1, 30), self.longest_wait_seconds)
        return wait * random.uniform(0.75, 1.25)


class Pace:
    """How many requests are in flight, shared by all who ask one teacher.

    An overload halves the number and holds everybody back for a while; each round of answers allows one more, up to
    `most` (additive increase, multiplicative decrease, as TCP does).
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._allowed = float(most)
        self._in_flight = 0
        self._held_until = 0.0
        self._slowed_at = 0.0
        self.n_overloads = 0
        """Overloads in a row; those of requests that were in flight together count once."""
        self._freed = asyncio.Event()

    async def turn(self) -> float:
        """Wait until one more request may start; returns the time it starts (monotonic seconds)."""
        while True:
            now = time.monotonic()
            if now < self._held_until:
                await asyncio.sleep(self._held_until - now)
            elif self._in_flight >= int(self._allowed):
                self._freed.clear()
                await self._freed.wait()
            else:
                self._in_flight += 1
                return now

    def done(self) -> None:
        """A request that had its turn has ended."""
        self._in_flight -= 1
        self._freed.set()

    def went_well(self) -> None:
        """A request was answered."""
        self.n_overloads = 0
        self._allowed = min(float(self._most), self._allowed + 1.0 / self._allowed)

    def slow_down(self, started: float) -> None:
        """A request that started at `started` met an overload; one that began before the last slowing says no news."""
        if started >= self._slowed_at:
            self._slowed_at = time.monotonic()
            self.n_overloads += 1
            self._allowed = max(1.0, self._allowed / 2.0)

    def hold(self, seconds: float) -> None:
        """Let nobody start for so long."""
        self._held_until = max(self._held_until, time.monotonic() + seconds)
