"""The concurrency limiter in virtual time, and the headers that it reads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest

from mlx_distill.records import Usage
from mlx_distill.teachers.base import RateLimit
from mlx_distill.teachers.http_utils import rate_limits, retry_after
from mlx_distill.teachers.limiter import START_WIDTH, ConcurrencyLimiter, Permit
from tests.support.teachers import VirtualTimeLoop

Result = TypeVar("Result")
USAGE = Usage(100, 50)


def run(main: Coroutine[Any, Any, Result]) -> Result:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


async def permits(limiter: ConcurrencyLimiter, seconds: float = 0.01) -> list[Permit]:
    """Take every permit that is available within so many seconds."""
    found = []
    while True:
        try:
            found.append(await asyncio.wait_for(limiter.acquire(), seconds))
        except TimeoutError:
            return found


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "1500", "retry-after": "7"}, 1.5),
        *(({"retry-after": text}, None) for text in ("", "0", "-3", "soon", "nan", "inf")),
        ({"retry-after": "Mon, 01 Jan 99999 00:00:00 GMT"}, None),
        ({"retry-after": "Mon, 01 Jan 2001 00:00:00 GMT"}, None),
    ],
)
def test_retry_after_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_nonsense_in_rate_limit_headers_is_ignored() -> None:
    headers = {"x-remaining": "5", "x-reset": "2099-01-01T00:00:00Z", "y-remaining": "many", "y-reset": "x"}
    [limit] = rate_limits(headers, {"x": "requests", "y": "input tokens", "z": "output tokens"})
    assert (limit.unit, limit.limit, limit.remaining) == ("requests", 0, 5)


def answered(n: int, limits: tuple[RateLimit, ...] = ()) -> Callable[[], Coroutine[Any, Any, int]]:
    """Return how many permits there are after n answers to the first requests."""

    async def main() -> int:
        limiter = ConcurrencyLimiter(100)
        for permit in (await permits(limiter))[:n]:
            limiter.release()
            limiter.answered(permit, USAGE, limits)
        return START_WIDTH - n + len(await permits(limiter))

    return main


def test_each_answer_allows_one_more_without_headers() -> None:
    assert run(answered(0)()) == START_WIDTH
    assert run(answered(4)()) == START_WIDTH + 4


@pytest.mark.parametrize(
    ("limit", "n"),
    [
        (RateLimit("requests", 0, 1000, 60.0), 100),
        # One was answered and 15 are in flight: they may not be included in what remains.
        (RateLimit("requests", 0, 24, 60.0), 24),
        (RateLimit("output tokens", 0, 24 * 50 + 49, 60.0), 24),
        (RateLimit("input tokens", 0, 24 * 100, 60.0), 24),
    ],
)
def test_first_headers_open_the_width_that_they_allow(limit: RateLimit, n: int) -> None:
    assert run(answered(1, (limit,))()) == n


def test_reset_allows_no_more_than_the_limit() -> None:
    exhausted: list[tuple[str, float]] = []

    async def main() -> tuple[int, int]:
        limiter = ConcurrencyLimiter(100, lambda unit, wait: exhausted.append((unit, wait)))
        first = await permits(limiter)
        for _ in first:
            limiter.release()
        limiter.answered(first[0], USAGE, (RateLimit("requests", 20, 15, 30.0),))
        before = len(await permits(limiter))
        await asyncio.sleep(30.0)
        return before, len(await permits(limiter))

    assert run(main()) == (0, 20)
    assert exhausted[0][0] == "requests"
    assert exhausted[0][1] == pytest.approx(30.0, abs=0.1)


@pytest.mark.parametrize(("n_overloaded", "n_answered", "width"), [(0, 0, 8), (8, 0, 4), (8, 5, 5), (8, 100, 8)])
def test_overload_halves_the_width_once(n_overloaded: int, n_answered: int, width: int) -> None:
    async def main() -> int:
        limiter = ConcurrencyLimiter(8)
        started = await permits(limiter)
        for _ in started:
            limiter.release()
        for permit in started[:n_overloaded]:
            limiter.failed(permit, overloaded=True, pause_seconds=0.0)
        for _ in range(n_answered):
            limiter.answered(started[0], USAGE, ())
        return len(await permits(limiter))

    assert run(main()) == width


def test_pause_holds_everyone_back() -> None:
    async def main() -> tuple[int, int]:
        limiter = ConcurrencyLimiter(8)
        permit = await limiter.acquire()
        limiter.failed(permit, overloaded=True, pause_seconds=10.0)
        return len(await permits(limiter, 9.0)), len(await permits(limiter, 2.0))

    assert run(main()) == (0, 3)


def test_one_request_at_a_time_probes_an_outage() -> None:
    async def main() -> tuple[int, int]:
        limiter = ConcurrencyLimiter(8)
        started = await permits(limiter)
        for permit in started:
            limiter.failed(permit, overloaded=False, pause_seconds=0.0)
            limiter.release()
        [probe] = await permits(limiter)
        limiter.release()
        limiter.answered(probe, USAGE, ())
        return 1, len(await permits(limiter))

    assert run(main()) == (1, 2)
