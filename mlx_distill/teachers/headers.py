"""What a provider's response headers say about waiting and about how much more may be asked."""

from __future__ import annotations

import email.utils
import math
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Literal

from mlx_distill.teachers.protocol import Limit

ANTHROPIC_LIMITS: Mapping[str, Literal["requests", "input tokens", "output tokens"]] = {
    "anthropic-ratelimit-requests": "requests",
    "anthropic-ratelimit-input-tokens": "input tokens",
    "anthropic-ratelimit-output-tokens": "output tokens",
}


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait by `retry-after-ms`, or by `retry-after` in seconds or as a date (RFC 9110, 10.2.3).

    None where nothing is asked for: no header, a date in the past, nonsense.
    """
    in_ms = _number(headers.get("retry-after-ms", ""))
    seconds = in_ms / 1000.0 if in_ms is not None else _number(headers.get("retry-after", ""))
    if seconds is None:
        try:
            date = email.utils.parsedate_tz(headers.get("retry-after", ""))
            seconds = email.utils.mktime_tz(date) - time.time() if date else 0.0
        except (ValueError, OverflowError):  # a year that no calendar has
            return None
    return seconds if seconds > 0.0 else None


def limits_of(
    headers: Mapping[str, str], names: Mapping[str, Literal["requests", "input tokens", "output tokens"]]
) -> tuple[Limit, ...]:
    """The limits that `NAME-limit`, `NAME-remaining` and `NAME-reset` (RFC 3339) give; nonsense is passed over."""
    found = []
    for name, of in names.items():
        remaining = _number(headers.get(f"{name}-remaining", ""))
        if remaining is None:
            continue
        try:
            resets_at = datetime.fromisoformat(headers.get(f"{name}-reset", "")).timestamp()
        except ValueError:
            continue
        full = _number(headers.get(f"{name}-limit", "")) or 0.0
        found.append(Limit(of, max(0, int(full)), int(remaining), resets_at - time.time()))
    return tuple(found)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
