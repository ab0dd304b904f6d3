"""Waits between attempts, and when they end."""

from __future__ import annotations

import pytest

from mlx_distill.teachers.base import RetryableError
from mlx_distill.teachers.retry import Backoff, RetryPolicy

POLICY = RetryPolicy(limit_seconds=100.0, first_wait_seconds=1.0, max_wait_seconds=60.0)


@pytest.mark.parametrize(("failing", "middle"), [(0, 1), (1, 2), (3, 4), (59, 60), (1000, 60)])
def test_waits_double_up_to_a_maximum_and_differ(failing: float, middle: float) -> None:
    waits = {POLICY.wait_seconds(failing) for _ in range(50)}
    assert all(0.75 * middle <= wait <= 1.25 * middle for wait in waits)
    assert len(waits) > 40


def test_last_attempt_is_at_the_limit() -> None:
    backoff, now, n_failures = Backoff(POLICY), 5.0, 0
    while (wait := backoff.wait_seconds(RetryableError("down"), now)) is not None:
        now, n_failures = now + wait, n_failures + 1
    assert now == pytest.approx(105.0)
    assert 5 <= n_failures <= 12


def test_retry_after_is_honoured_and_moves_the_limit() -> None:
    backoff = Backoff(POLICY)
    for now in (0.0, 3600.0):
        wait = backoff.wait_seconds(RetryableError("busy", retry_after=3600.0), now)
        assert wait is not None
        assert 3600.0 <= wait <= 3601.0
    assert backoff.wait_seconds(RetryableError("down"), 7250.0) is not None
    assert backoff.wait_seconds(RetryableError("busy", retry_after=90_000.0), 7250.0) is None


def test_success_starts_the_waits_again() -> None:
    backoff = Backoff(POLICY)
    backoff.wait_seconds(RetryableError("down"), 0.0)
    backoff.succeeded()
    wait = backoff.wait_seconds(RetryableError("down"), 500.0)
    assert wait is not None
    assert wait < 2.0
