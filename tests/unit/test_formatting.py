"""Durations, sizes, money, counts and error texts for people."""

from __future__ import annotations

import pytest

from mlx_distill.formatting import first_line, format_bytes, format_duration, format_usd, plural


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.43, "0.4 s"),
        (9.96, "10.0 s"),
        (12.2, "12 s"),
        (59.7, "1 min"),
        (175, "2 min 55 s"),
        (3599.6, "1 h"),
        (3840, "1 h 04 min"),
        (90_000, "25 h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_sizes_money_and_counts() -> None:
    assert [format_bytes(n) for n in (12, 988_100_000, 1.9e9)] == ["12 B", "988.1 MB", "1.9 GB"]
    assert [format_usd(n) for n in (0.0, 0.0042, 1234.5)] == ["0.00 USD", "0.0042 USD", "1,234.50 USD"]
    assert [plural(1, "prompt"), plural(1200, "prompt"), plural(2, "family", "families")] == [
        "1 prompt",
        "1,200 prompts",
        "2 families",
    ]


def test_first_line_of_an_error() -> None:
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"
