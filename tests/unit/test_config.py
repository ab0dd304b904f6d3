"""Settings: types, ranges and choices are checked, and all problems are reported together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import msgspec
import pytest

from mlx_distill.config import Config, default_of, doc, fields_of, parse, to_plain
from mlx_distill.errors import InputError


class Inner(Config, frozen=True):
    share: Annotated[float, doc("a share", ge=0, le=1)] = 0.5


class Example(Config, frozen=True):
    renamed: ClassVar[Mapping[str, str]] = {"pace": "rate"}

    out: Annotated[Path, doc("output folder")]
    steps: Annotated[int, doc("number of steps", ge=1)] = 3
    rate: Annotated[float, doc("learning rate", gt=0)] = 0.5
    kind: Annotated[Literal["a", "b"], doc("kind of example")] = "a"
    modes: Annotated[tuple[Literal["a", "b"], ...], doc("modes")] = ()
    loud: Annotated[bool, doc("print more")] = False
    parts: Annotated[tuple[str, ...], doc("parts")] = ()
    limit: Annotated[float, doc("limit", ge=0)] | None = None
    inner: Inner = Inner()
    table: Annotated[Mapping[str, Inner], doc("named shares")] = msgspec.field(default_factory=dict)

    def check(self) -> None:
        if self.limit is not None and self.limit < self.rate:
            raise ValueError("limit must not be below rate")


def test_values_become_the_types_of_their_fields() -> None:
    made = parse(Example, {"out": "x/y", "rate": 1, "parts": ["a", "b"], "limit": 2, "inner": {"share": 1}}, "here")

    assert made == Example(Path("x/y"), rate=1.0, parts=("a", "b"), limit=2.0, inner=Inner(1.0))
    assert isinstance(made.rate, float) and isinstance(made.limit, float)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"out": ""}, "out = '': expected a path"),
        ({"out": "x", "steps": "3"}, "steps = '3': expected int, got str"),
        ({"out": "x", "steps": 1.5}, "steps = 1.5: expected int, got float"),
        ({"out": "x", "steps": True}, "steps = True: expected int, got bool"),
        ({"out": "x", "steps": 0}, "steps = 0: expected int >= 1"),
        ({"out": "x", "modes": 3}, "modes: 3 is not one of a, b"),
        ({"out": "x", "modes": "a"}, "modes = 'a': expected array, got str"),
        ({"out": "x", "modes": ["a", "c"]}, "modes: 'c' is not one of a, b"),
        ({"out": "x", "kind": "c"}, "kind: 'c' is not one of a, b"),
        ({"out": "x", "loud": 1}, "loud = 1: expected bool, got int"),
        ({"out": "x", "parts": "a"}, "parts = 'a': expected array, got str"),
        ({"out": "x", "limit": -1}, "limit = -1: expected float >= 0.0"),
        ({"out": "x", "limit": 0.1}, "limit must not be below rate"),
        ({"out": "x", "inner": {"share": 2}}, "inner: share = 2: expected float <= 1.0"),
        ({"out": "x", "inner": {"shares": 1}}, "inner: unknown setting 'shares'; did you mean 'share'?"),
        ({"out": "x", "table": {"n": 3}}, "table.n: expected object, got int"),
        ({"out": "x", "stepz": 3}, "unknown setting 'stepz'; did you mean 'steps'?"),
        ({"out": "x", "xyzzy": 3}, "unknown setting 'xyzzy'"),
        ({"out": "x", "pace": 3}, "pace is called rate now"),
        ({}, "out is missing"),
    ],
)
def test_wrong_value_is_refused(values: dict[str, object], problem: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(Example, values, "distill.toml [example]")

    assert caught.value.problems == (problem,)
    assert caught.value.message == "distill.toml [example]: 1 problem."


def test_all_problems_are_reported_together() -> None:
    with pytest.raises(InputError) as caught:
        parse(Example, {"stepz": 3, "rate": "fast"}, "here")

    assert len(caught.value.problems) == 3  # the third: out is missing


def test_constructor_makes_the_same_checks() -> None:
    with pytest.raises(ValueError, match="steps = 0: expected int >= 1"):
        Example(Path("x"), steps=0)
    with pytest.raises(ValueError, match="limit must not be below rate"):
        Example(Path("x")).replace(limit=0.1)


def test_config_round_trips_through_plain_data() -> None:
    config = Example(Path("x"), parts=("a",), table={"n": Inner(0.1)})

    assert parse(Example, to_plain(config), "here") == config


def test_results_become_plain_data() -> None:
    @dataclass(frozen=True)
    class Result:
        parts: list[Inner]
        path: Path

    assert to_plain(Result([Inner()], Path("x"))) == {"parts": [{"share": 0.5}], "path": "x"}


def test_fields_describe_options() -> None:
    fields = {field.name: field for field in fields_of(Example)}

    assert fields["out"].required and fields["out"].plain_type is Path and fields["out"].help == "output folder"
    assert fields["kind"].choices == ("a", "b")
    assert fields["parts"].is_list and fields["parts"].plain_type is str
    assert fields["inner"].group is Inner and fields["table"].is_table
    assert default_of(Example, "steps") == 3
