"""Format durations, times, sizes, money and counts for people."""

from __future__ import annotations

import time


def format_duration(seconds: float) -> str:
    """Return `0.4 s`, `12 s`, `2 min 55 s` or `1 h 04 min`."""
    if seconds < 10 and seconds != int(seconds):
        return f"{seconds:.1f} s"
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s" if total % 60 else f"{total // 60} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if minutes else f"{hours} h"


def format_time_of_day(seconds_from_now: float) -> str:
    """Return the local time that many seconds from now: `14:05:09`."""
    return time.strftime("%H:%M:%S", time.localtime(time.time() + seconds_from_now))


def format_bytes(count: float) -> str:
    """Return `988.1 MB` or `1.9 GB` (powers of ten)."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def format_usd(amount: float) -> str:
    """Return `12.34 USD`; amounts below one cent get four decimals."""
    return f"{amount:.4f} USD" if 0.0 < amount < 0.01 else f"{amount:,.2f} USD"


def format_percent(fraction: float, digits: int = 1) -> str:
    """Return `57.1 %`."""
    return f"{100 * fraction:.{digits}f} %"


def plural(count: int, noun: str, nouns: str = "") -> str:
    """Return `1 prompt` or `1,234 prompts`; `nouns` is the plural if it is irregular."""
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"


def first_line(error: object, max_length: int = 300) -> str:
    """Return the first line of an error's text, or its type's name if it has no text."""
    text = str(error).strip()
    return (text.splitlines()[0] if text else type(error).__name__)[:max_length]
