"""How many requests may be in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from mlx_distill.records import Usage
from mlx_distill.teachers.base import RateLimit

START_WIDTH = 16
"""Requests at once until the provider's limits are known."""
MAX_RESET_SECONDS = 60.0
"""Providers count by the minute: a later reset means that a clock is wrong."""


@dataclass(frozen=True)
class Permit:
    """Permission to send one request."""

    started: float
    n_ended: int
    """Requests that had ended by then."""


class ConcurrencyLimiter:
    """Limits the requests in flight to what the provider takes, up to `max_width`.

    The width starts at START_WIDTH. Rate-limit headers open it at once, and hold requests back when a limit is used up.
    Without headers each answer allows one more request. An overload halves the width; from then on each round of
    answers allows one more (additive increase, multiplicative decrease, as in TCP). After a failure without an answer
    since, one request at a time tries. Times are those of the event loop.
    """

    def __init__(self, max_width: int, on_exhausted: Callable[[str, float], None] = lambda _unit, _wait: None) -> None:
        self._max_width, self._on_exhausted = max_width, on_exhausted
        self._width = float(min(max_width, START_WIDTH))
        self._slowed_at = -1.0
        self._paused_until = 0.0
        self._n_started = self._n_ended = 0
        self._n_allowed = self._n_allowed_after_reset = float("inf")
        """Requests that the rate limits still allow before the next reset, and after it."""
        self._reset_at = 0.0
        self._unit = ""
        """The unit of the tightest rate limit."""
        self._usage, self._n_usages = Usage(), 0
        self._changed = asyncio.Event()
        self._queue = asyncio.Lock()  # first come, first served
        self._time = asyncio.get_running_loop().time

    async def acquire(self, fits: Callable[[], bool] = lambda: True) -> Permit:
        """Wait until one more request may start. While others are in flight, wait also until `fits` is true."""
        async with self._queue:
            while True:
                now, n_in_flight = self._time(), self._n_started - self._n_ended
                if now >= self._reset_at:
                    self._n_allowed, self._reset_at = self._n_allowed_after_reset, now + MAX_RESET_SECONDS
                if now < self._paused_until:
                    await self._wait(self._paused_until - now)
                elif n_in_flight >= int(self._width) or (n_in_flight and not fits()):
                    await self._wait(None)
                elif self._n_allowed <= 0:
                    self._on_exhausted(self._unit, self._reset_at - now)
                    await self._wait(self._reset_at - now)
                else:
                    self._n_started += 1
                    self._n_allowed -= 1
                    return Permit(now, self._n_ended)

    def release(self) -> None:
        """End a request."""
        self._n_ended += 1
        self._changed.set()

    def answered(self, permit: Permit, usage: Usage, limits: Sequence[RateLimit]) -> None:
        """Learn from an answer: it worked, its size, and what the provider still allows."""
        slowed = self._slowed_at >= 0.0
        self._width = min(float(self._max_width), self._width + (1.0 / self._width if slowed else 1.0))
        self._usage, self._n_usages = self._usage.plus(usage), self._n_usages + 1
        if limits:
            # The headers describe the moment when the provider took the request in. They certainly include the requests
            # that had ended before this one started; the others may have overtaken it on the network.
            n_unsure = self._n_started - 1 - permit.n_ended
            n_allowed, tightest = min(
                ((limit.remaining // self._size(limit), limit) for limit in limits), key=lambda pair: pair[0]
            )
            self._n_allowed, self._unit = n_allowed - n_unsure, tightest.unit
            self._n_allowed_after_reset = tightest.limit // self._size(tightest) or float("inf")
            self._reset_at = self._time() + min(tightest.reset_seconds, MAX_RESET_SECONDS)
            if not slowed:
                self._width = float(self._max_width)
        self._changed.set()

    def failed(self, permit: Permit, *, overloaded: bool, pause_seconds: float) -> None:
        """Pause everyone. Halve the width after an overload; otherwise send one request at a time.

        Requests that were in flight together halve it once.
        """
        self._paused_until = max(self._paused_until, self._time() + pause_seconds)
        if not overloaded:
            self._width = 1.0
        elif permit.started >= self._slowed_at:
            self._slowed_at = self._time()
            self._width = max(1.0, self._width / 2.0)

    async def _wait(self, seconds: float | None) -> None:
        self._changed.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), seconds)

    def _size(self, limit: RateLimit) -> int:
        """Return how much of a limit one request uses, by the answers so far."""
        if limit.unit == "requests":
            return 1
        used = self._usage.input_tokens if limit.unit == "input tokens" else self._usage.output_tokens
        return max(1, -(-used // self._n_usages))
