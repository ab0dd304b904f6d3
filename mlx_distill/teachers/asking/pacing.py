"""How fast a teacher is asked: how many requests at once, and how long to wait after trouble.

The clock and the randomness of asking live here.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlx_distill.records import Usage
from mlx_distill.teachers.protocol import Limit, TryLaterError

FIRST_WIDTH = 16
"""Requests at once before anything is known of the provider's limits."""
LONGEST_REFILL_SECONDS = 60.0
"""Providers count by the minute: a later reset is a clock that goes wrong, here or there."""
LONGEST_STATED_SECONDS = 86_400.0
"""What a teacher asks to wait is waited, up to a day: daily limits end."""


@dataclass(frozen=True)
class Patience:
    """How long to keep asking a teacher that does not answer."""

    limit_seconds: float = 600.0
    """Give up when a request has failed for so long; a longer wait that the teacher asks for is waited all the same."""
    first_wait_seconds: float = 1.0
    longest_wait_seconds: float = 60.0

    def wait_seconds(self, n_failures: int, asked_for: float = 0.0) -> float:
        """The wait after the nth failure in a row: what the teacher asked for, or twice as long each time.

        Jitter keeps requests that failed together from coming back together.
        """
        if asked_for:
            return asked_for + random.uniform(0.0, min(self.first_wait_seconds, asked_for))
        wait = min(self.first_wait_seconds * 2.0 ** min(n_failures - 1, 30), self.longest_wait_seconds)
        return wait * random.uniform(0.75, 1.25)


class Trouble:
    """What one request meets until it is answered: how often it failed, since when, and how long to wait now."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self.n_failures = 0
        self.since = 0.0
        """Monotonic seconds; 0 before the first failure."""

    def excuse(self, seconds: float) -> None:
        """So much of the time since was no trouble."""
        self.since += seconds if self.since else 0.0

    def wait_seconds(self, error: TryLaterError, n_overloads: int = 0) -> float | None:
        """How long to wait after this failure, the nth overload of all in a row; None where patience has ended."""
        now = time.monotonic()
        self.since = self.since or now
        self.n_failures += 1
        left, stated = self.since + self._patience.limit_seconds - now, error.after_seconds or 0.0
        if left <= 0.0 or stated > LONGEST_STATED_SECONDS:
            return None
        wait = self._patience.wait_seconds(max(self.n_failures, n_overloads), stated)
        if stated > left:
            self.since = now + wait  # patience begins anew after it
        return wait if stated else min(wait, left)


@dataclass(frozen=True)
class Turn:
    """The leave to send one request."""

    started: float
    """Monotonic seconds."""
    n_ended: int
    """How many requests had ended by then."""


class Pace:
    """How many requests are in flight, shared by all who ask one teacher; it finds its own width, up to `most`.

    It begins with FIRST_WIDTH. The first answer that says how much the provider allows opens all of that at once, and
    requests are held back when it is used up; without such words each answer allows one more. An overload halves the
    width, and from then on each round of answers allows one more (additive increase, multiplicative decrease, as TCP
    does). While requests fail and none is answered, one at a time tries whether it works again. `tell` hears what is
    used up and for how many seconds the next requests wait.
    """

    def __init__(self, most: int, tell: Callable[[str, float], None] = lambda _what, _seconds: None) -> None:
        self._most = most
        self._tell = tell
        self._allowed = float(min(most, FIRST_WIDTH))
        self._ever_slowed = False
        self._in_flight = 0
        self._n_started = 0
        self._n_ended = 0
        self._held_until = 0.0
        self._probing = False
        self._queue = asyncio.Lock()  # first come, first served: who met trouble does not wait behind all others
        self._slowed_at = 0.0
        self._room = 0
        self._used_up = ""
        self._room_until = 0.0
        self._refill = 0
        self._seen = Usage()
        self._n_seen = 0
        self.n_overloads = 0
        """Overloads and stalls in a row; those of requests that were in flight together count once."""
        self._freed = asyncio.Event()

    async def turn(self) -> Turn:
        """Wait until one more request may start."""
        async with self._queue:
            while True:
                now = time.monotonic()
                if self._refill and now >= self._room_until:
                    self._room, self._room_until = self._refill, now + LONGEST_REFILL_SECONDS
                    self._used_up = ""  # when it will be refilled next is not known until an answer says it
                if now < self._held_until:
                    await asyncio.sleep(self._held_until - now)
                elif self._in_flight >= (1 if self._probing else int(self._allowed)):
                    await self._until_freed(None)
                elif now < self._room_until and self._room <= 0:
                    if self._used_up:
                        self._tell(self._used_up, self._room_until - now)
                    await self._until_freed(self._room_until - now)
                else:
                    self._in_flight += 1
                    self._n_started += 1
                    self._room -= 1
                    return Turn(now, self._n_ended)

    def done(self) -> None:
        """A request that had its turn has ended."""
        self._in_flight -= 1
        self._n_ended += 1
        self._freed.set()

    def went_well(self) -> None:
        """A request was answered."""
        self.n_overloads = 0
        self._probing = False
        more = 1.0 / self._allowed if self._ever_slowed else 1.0
        self._allowed = min(float(self._most), self._allowed + more)

    def learn(self, limits: Sequence[Limit], turn: Turn, usage: Usage) -> None:
        """Take in what came with the answer to the request of `turn`: the provider's limits after it, and its size."""
        self._seen = self._seen.plus(usage)
        self._n_seen += 1
        if not limits:
            return
        # A limit is as it was when the provider took the request in. Only those that had ended before it started are
        # surely in it: requests that are under way together overtake one another on the network.
        unsure = self._n_started - 1 - turn.n_ended
        rooms = [(limit.remaining // self._use_of_one(limit) - unsure, limit) for limit in limits]
        self._room, tightest = min(rooms, key=lambda room: room[0])
        self._used_up = tightest.of
        self._refill = tightest.full // self._use_of_one(tightest)
        self._room_until = time.monotonic() + min(tightest.resets_in_seconds, LONGEST_REFILL_SECONDS)
        if not self._ever_slowed:
            self._allowed = float(self._most)
        self._freed.set()

    def slow_down(self, turn: Turn) -> None:
        """The request of `turn` met an overload; one that began before the last slowing says no news."""
        if turn.started >= self._slowed_at:
            self._slowed_at = time.monotonic()
            self._ever_slowed = True
            self.n_overloads += 1
            self._allowed = max(1.0, self._allowed / 2.0)

    def stall(self, turn: Turn) -> None:
        """The request of `turn` failed, and nothing was answered since: let one at a time try until something is."""
        self._probing = True
        if turn.started >= self._slowed_at:
            self._slowed_at = time.monotonic()
            self.n_overloads += 1

    def hold(self, seconds: float) -> None:
        """Let nobody start for so long."""
        self._held_until = max(self._held_until, time.monotonic() + seconds)

    async def _until_freed(self, seconds: float | None) -> None:
        """Wait until a request has ended or something was learnt, or for so long."""
        self._freed.clear()
        try:
            await asyncio.wait_for(self._freed.wait(), seconds)
        except TimeoutError:
            """The wait is over."""

    def _use_of_one(self, limit: Limit) -> int:
        """How much of a limit one request uses, by the answers so far."""
        if limit.of == "requests":
            return 1
        used = self._seen.input_tokens if limit.of == "input tokens" else self._seen.output_tokens
        return max(1, -(-used // self._n_seen))
