"""Configs: the values that `parse` accepts and refuses, and all problems together."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest

from mlx_distill.config import Config, doc, fields_of, parse, to_plain
from mlx_distill.errors import InputError
from mlx_distill.run.project import Project
from mlx_distill.teachers.money.prices import Price


class Group(Config, frozen=True):
    size: Annotated[int, doc("size of the group", ge=1)] = 2


class Example(Config, frozen=True):
    renamed: ClassVar[dict[str, str]] = {"step_count": "steps"}
    out: Annotated[Path, doc("output folder")]
    steps: Annotated[int, doc("number of steps", ge=1)] = 3
    rate: Annotated[float, doc("steps per second")] = 0.5
    name: Annotated[str, doc("name of the run")] = "a"
    loud: Annotated[bool, doc("print more")] = False
    parts: Annotated[tuple[str, ...], doc("parts to do")] = ()
    limit: Annotated[float, doc("limit of the rate")] | None = None
    method: Annotated[Literal["lora", "full"], doc("method")] = "lora"
    group: Group = Group()

    def check(self) -> None:
        if self.limit is not None and self.rate > self.limit:
            raise ValueError(f"rate is {self.rate}, above the limit {self.limit}")


def test_values_become_the_types_of_their_fields() -> None:
    made = parse(Example, {"out": "x/y", "rate": 1, "parts": ["a", "b"], "limit": 2, "group": {"size": 3}}, "here")

    assert made == Example(Path("x/y"), rate=1.0, parts=("a", "b"), limit=2.0, group=Group(3))
    assert isinstance(made.rate, float) and isinstance(made.limit, float)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"out": ""}, ("out", "path")),
        ({"out": "x", "steps": "3"}, ("steps", "'3'", "int")),
        ({"out": "x", "steps": 1.5}, ("steps", "1.5", "int")),
        ({"out": "x", "steps": True}, ("steps", "True", "int")),
        ({"out": "x", "steps": 0}, ("steps", "0", ">= 1")),
        ({"out": "x", "rate": "fast"}, ("rate", "'fast'", "float")),
        ({"out": "x", "name": 7}, ("name", "7", "str")),
        ({"out": "x", "loud": 1}, ("loud", "1", "bool")),
        ({"out": "x", "parts": "a"}, ("parts", "'a'", "array")),
        ({"out": "x", "method": "half"}, ("method", "'half'", "lora, full")),
        ({"out": "x", "group": {"size": 0}}, ("group", "size", "0", ">= 1")),
        ({"out": "x", "limit": 0.1}, ("rate is 0.5", "above the limit 0.1")),
        ({"out": "x", "stepz": 3}, ("unknown setting 'stepz'; did you mean 'steps'?",)),
        ({"out": "x", "xyzzy": 3}, ("unknown setting 'xyzzy'",)),
        ({"out": "x", "step_count": 3}, ("step_count is called steps now",)),
        ({}, ("out is missing",)),
    ],
)
def test_a_wrong_value_is_refused_with_its_reason(values: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as caught:
        parse(Example, values, "distill.toml [example]")

    [problem] = caught.value.problems
    assert [word for word in words if word not in problem] == [], problem
    assert caught.value.message == "distill.toml [example]: 1 problem."


def test_a_config_made_directly_is_checked_too() -> None:
    with pytest.raises(ValueError, match="steps"):
        Example(Path("x"), steps=0)
    with pytest.raises(ValueError, match="steps"):
        Example(Path("x")).replace(steps=0)


def test_all_problems_are_reported_together() -> None:
    with pytest.raises(InputError) as caught:
        parse(Example, {"stepz": 3, "rate": "fast"}, "here")

    assert len(caught.value.problems) == 3, "the third: out is missing"


def test_a_field_has_its_help_default_and_choices() -> None:
    fields = {field.name: field for field in fields_of(Example)}

    assert fields["out"].required and fields["out"].plain_type is Path
    assert (fields["steps"].default, fields["steps"].help) == (3, "number of steps")
    assert fields["method"].choices == ("lora", "full") and fields["parts"].is_list
    assert fields["group"].group is Group


def test_a_config_survives_json() -> None:
    config = Example(Path("x"), parts=("a",), limit=None)

    assert parse(Example, to_plain(config), "here") == config


def project(text: str, tmp_path: Path) -> Project:
    file = tmp_path / "distill.toml"
    file.write_text(text)
    return Project.load(file)


def test_prices_of_the_project_reach_every_stage_with_a_teacher(tmp_path: Path) -> None:
    text = 'name = "demo"\nmax_cost = 3\n[prices]\n"gpt-4.1" = { input_usd = 2, output_usd = 8.0, batch = 0.4 }\n'
    for stage in ("collect", "expand", "compare"):
        values = project(text, tmp_path).values(stage)
        assert (values["max_cost"], values["cost"]) == (3.0, True)
        assert values["prices"] == {"gpt-4.1": Price(2.0, 8.0, batch=0.4)}


def test_every_problem_of_the_prices_is_named(tmp_path: Path) -> None:
    text = (
        'name = "demo"\n[prices]\na = { input_usd = 2 }\nb = { input_usd = -1, output_usd = 1 }\nc = 3\n'
        "d = { input_usd = 1, output_usd = 1, ouput = 2 }\ngpt-4.1 = { input_usd = 1, output_usd = 1 }\n"
    )
    with pytest.raises(InputError) as caught:
        project(text, tmp_path)

    problems = "\n".join(caught.value.problems)
    for words in ("a: .*output_usd", "b: .*-1|b: .*>= 0", "c: ", "d: .*ouput", "gpt-4: "):
        assert re.search(words, problems), problems


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("max_cost = -1", "max_cost = -1"),
        ("max_cost = nan", "max_cost = nan"),
        ("max_cost = 1\ncost = false", "leave"),
    ],
)
def test_a_budget_out_of_range_is_refused(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        project(f'name = "demo"\n{line}\n', tmp_path)
