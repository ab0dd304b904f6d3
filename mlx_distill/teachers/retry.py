"""When to send again what failed, and when to give up."""

from __future__ import annotations

import random
from dataclasses import dataclass

from mlx_distill.teachers.base import RetryableError

MAX_RETRY_AFTER_SECONDS = 86_400.0
"""`retry-after` is honoured for up to 24 hours."""


@dataclass(frozen=True)
class RetryPolicy:
    """How long to retry, and how often."""

    limit_seconds: float = 600.0
    first_wait_seconds: float = 1.0
    max_wait_seconds: float = 60.0

    def wait_seconds(self, failing_seconds: float) -> float:
        """Return the wait after so many seconds of failures: it about doubles each time.

        The jitter spreads requests that failed together.
        """
        return min(self.first_wait_seconds + failing_seconds, self.max_wait_seconds) * random.uniform(0.75, 1.25)


class Backoff:
    """The waits between attempts that fail in a row."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._failing_since: float | None = None
        self._waited = 0.0

    def succeeded(self) -> None:
        """End the row of failures."""
        self._failing_since = None

    def wait_seconds(self, error: RetryableError, now: float | None = None) -> float | None:
        """Return the wait after a failure; None to give up. Without `now`, only these waits count as time.

        A wait that the provider asks for is honoured, and the policy's limit counts from its end.
        """
        asked, limit = error.retry_after or 0.0, self._policy.limit_seconds
        now = self._waited if now is None else now
        if self._failing_since is None:
            self._failing_since = now
        failing_seconds = now - self._failing_since
        if asked > MAX_RETRY_AFTER_SECONDS or failing_seconds >= limit:
            return None
        if asked:
            wait = asked + random.uniform(0.0, min(self._policy.first_wait_seconds, asked))
            self._failing_since = now + wait
        else:
            wait = min(self._policy.wait_seconds(max(0.0, failing_seconds)), limit - failing_seconds)
        self._waited += wait
        return wait
