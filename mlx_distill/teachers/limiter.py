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

    It starts with START_WIDTH. Rate-limit headers open the full width at once, and hold requests back when the limit is
    used up. Without headers each answer allows one more request. An overload halves the width; from then on each round
    of answers allows one more (additive increase, multiplicative decrease, as in TCP). While requests fail and none is
    answered, one request at a time tries. Times are those of the event loop.
    """

    def __init__(self, max_width: int, on_exhausted: Callable[[str, float], None] = lambda _unit, _wait: None) -> None:
        self._max_width = max_width
        self._on_exhausted = on_exhausted
        self._width = float(min(max_width, START_WIDTH))
        self._slowed_at = -1.0
        self._probing = False
        self._n_started = self._n_ended = 0
        self._paused_until = 0.0
        self._room: float = float("inf")
        self._room_until = 0.0
        self._refill = 0
        self._exhausted = ""
        self._usage, self._n_usages = Usage(), 0
        self._changed = asyncio.Event()
        self._queue = asyncio.Lock()  # first come, first served
        self._time = asyncio.get_running_loop().time
        self.n_overloads = 0
        """Overloads in a row. Requests that were in flight together count once."""

    async def acquire(self) -> Permit:
        """Wait until one more request may start."""
        async with self._queue:
            while True:
                now = self._time()
                if now >= self._room_until:  # a new window; when the next one starts is unknown until an answer says it
                    self._room = self._refill or float("inf")
                    self._room_until = now + MAX_RESET_SECONDS if self._refill else float("inf")
                    self._exhausted = ""
                if now < self._paused_until:
                    await self._wait(self._paused_until - now)
                elif self._n_started - self._n_ended >= (1 if self._probing else int(self._width)):
                    await self._wait(None)
                elif self._room <= 0:
                    if self._exhausted:
                        self._on_exhausted(self._exhausted, self._room_until - now)
                    await self._wait(self._room_until - now)
                else:
                    self._n_started += 1
                    self._room -= 1
                    return Permit(now, self._n_ended)

    def release(self) -> None:
        """End a request."""
        self._n_ended += 1
        self._changed.set()

    def answered(self, permit: Permit, usage: Usage, limits: Sequence[RateLimit]) -> None:
        """Learn from an answer: it worked, its size, and what the provider still allows."""
        self.n_overloads, self._probing = 0, False
        slowed = self._slowed_at >= 0.0
        self._width = min(float(self._max_width), self._width + (1.0 / self._width if slowed else 1.0))
        self._usage, self._n_usages = self._usage.plus(usage), self._n_usages + 1
        if limits:
            # The headers describe the moment when the provider took the request in. Only requests that had ended before
            # it started are certainly included: others overtake one another on the network.
            n_unsure = self._n_started - 1 - permit.n_ended
            self._room, tightest = min(
                ((limit.remaining // self._size(limit) - n_unsure, limit) for limit in limits), key=lambda pair: pair[0]
            )
            self._exhausted, self._refill = tightest.unit, tightest.limit // self._size(tightest)
            self._room_until = self._time() + min(tightest.reset_seconds, MAX_RESET_SECONDS)
            if not slowed:
                self._width = float(self._max_width)
        self._changed.set()

    def failed(self, permit: Permit, *, overloaded: bool, pause_seconds: float) -> None:
        """Slow down after an overload, or after a failure with no answer since: then probe one by one.

        Failures of requests that started before the last slowdown change nothing but the pause.
        """
        self._paused_until = max(self._paused_until, self._time() + pause_seconds)
        self._probing = self._probing or not overloaded
        if permit.started >= self._slowed_at:
            self._slowed_at = self._time()
            self.n_overloads += 1
            if overloaded:
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
