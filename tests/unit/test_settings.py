"""Settings as dataclasses: what `build` takes, what it refuses, and that it says everything at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from mlx_distill.errors import InputError
from mlx_distill.settings import build, setting, to_plain


@dataclass(frozen=True)
class Inner:
    file: Path


@dataclass(frozen=True)
class Example:
    out: Path = setting(help="where to")
    steps: int = setting(3, help="how many")
    rate: float = setting(0.5, help="how fast")
    name: str = setting("a", help="who")
    loud: bool = setting(False, help="whether aloud")
    parts: tuple[str, ...] = setting((), help="which")
    limit: float | None = setting(None, help="how far")

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}, it must be at least 1")


def test_values_become_the_types_of_their_fields() -> None:
    made = build(Example, {"out": "x/y", "rate": 1, "parts": ["a", "b"], "limit": 2}, "here")

    assert made == Example(Path("x/y"), rate=1.0, parts=("a", "b"), limit=2.0)
    assert isinstance(made.rate, float) and isinstance(made.limit, float)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"out": ""}, "out: '' is not a path"),
        ({"out": "x", "steps": "3"}, "steps: '3' is not a whole number"),
        ({"out": "x", "steps": 1.5}, "steps: 1.5 is not a whole number"),
        ({"out": "x", "steps": True}, "steps: True is not a whole number"),
        ({"out": "x", "rate": "fast"}, "rate: 'fast' is not a number"),
        ({"out": "x", "name": 7}, "name: 7 is not text"),
        ({"out": "x", "loud": 1}, "loud: 1 is not true or false"),
        ({"out": "x", "parts": "a"}, "parts: 'a' is not a list"),
        ({"out": "x", "stepz": 3}, "unknown setting 'stepz'; did you mean 'steps'?"),
        ({"out": "x", "xyzzy": 3}, "unknown setting 'xyzzy'"),
        ({"out": "x", "steps": 0}, "steps is 0, it must be at least 1"),
        ({}, "out is missing"),
    ],
)
def test_a_wrong_value_is_refused_with_a_sentence(values: dict[str, object], problem: str) -> None:
    with pytest.raises(InputError) as caught:
        build(Example, values, "distill.toml [example]")

    assert caught.value.problems == (problem,)
    assert caught.value.message == "distill.toml [example]: 1 problem."


def test_all_wrong_values_are_told_together() -> None:
    with pytest.raises(InputError) as caught:
        build(Example, {"stepz": 3, "rate": "fast"}, "here")

    assert len(caught.value.problems) == 3  # the third: out is missing


def test_a_config_survives_json() -> None:
    config = Example(Path("x"), parts=("a",), limit=None)

    assert build(Example, to_plain(config), "here") == config


def test_dataclasses_and_paths_inside_a_result_become_plain() -> None:
    @dataclass(frozen=True)
    class Outer:
        parts: tuple[Inner, ...]
        named: dict[str, Inner]

    inner = Inner(Path("x"))
    assert to_plain(Outer((inner,), {"a": inner})) == {"parts": [{"file": "x"}], "named": {"a": {"file": "x"}}}
