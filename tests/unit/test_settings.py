"""Settings as dataclasses: what `build` takes, what it refuses, and that it says everything at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from mlx_distill.config import parse, setting, to_plain
from mlx_distill.errors import InputError
from mlx_distill.run.project import Project
from mlx_distill.teachers.pricing import Price


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
    made = parse(Example, {"out": "x/y", "rate": 1, "parts": ["a", "b"], "limit": 2}, "here")

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
        parse(Example, values, "distill.toml [example]")

    assert caught.value.problems == (problem,)
    assert caught.value.message == "distill.toml [example]: 1 problem."


def test_all_wrong_values_are_told_together() -> None:
    with pytest.raises(InputError) as caught:
        parse(Example, {"stepz": 3, "rate": "fast"}, "here")

    assert len(caught.value.problems) == 3  # the third: out is missing


def test_a_config_survives_json() -> None:
    config = Example(Path("x"), parts=("a",), limit=None)

    assert parse(Example, to_plain(config), "here") == config


def test_dataclasses_and_paths_inside_a_result_become_plain() -> None:
    @dataclass(frozen=True)
    class Outer:
        parts: tuple[Inner, ...]
        named: dict[str, Inner]

    inner = Inner(Path("x"))
    assert to_plain(Outer((inner,), {"a": inner})) == {"parts": [{"file": "x"}], "named": {"a": {"file": "x"}}}


def project(text: str, tmp_path: Path) -> Project:
    file = tmp_path / "distill.toml"
    file.write_text(text)
    return Project.load(file)


def test_prices_of_the_project_reach_every_stage_that_asks_a_teacher(tmp_path: Path) -> None:
    text = 'name = "demo"\nmax_cost = 3\n[prices]\n"gpt-4.1" = { input_usd = 2, output_usd = 8.0, batch = 0.4 }\n'
    for stage in ("collect", "expand", "compare"):
        values = project(text, tmp_path).values(stage)
        assert (values["max_cost"], values["cost"]) == (3.0, True)
        assert values["prices"] == {"gpt-4.1": Price(2.0, 8.0, batch=0.4)}


def test_every_fault_of_the_prices_is_named(tmp_path: Path) -> None:
    text = (
        'name = "demo"\n[prices]\na = { input_usd = 2 }\nb = { input_usd = -1, output_usd = 1 }\nc = 3\n'
        "d = { input_usd = 1, output_usd = 1, ouput = 2 }\ngpt-4.1 = { input_usd = 1, output_usd = 1 }\n"
    )
    with pytest.raises(InputError) as caught:
        project(text, tmp_path)

    [problem] = caught.value.problems
    for words in (
        "a: output_usd is missing",
        "b: input_usd is -1, it must be 0 or more",
        "c: 3 is not a table",
        "d: unknown setting 'ouput'; did you mean",
        "gpt-4: unknown setting '1'",
    ):
        assert words in problem


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("max_cost = -1", "max_cost is -1"),
        ("max_cost = nan", "max_cost is nan"),
        ("max_cost = 1\ncost = false", "leave"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        project(f'name = "demo"\n{line}\n', tmp_path)
