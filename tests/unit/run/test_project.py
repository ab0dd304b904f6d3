"""`distill.toml`: shared settings reach their stages, and every wrong setting is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_distill.errors import InputError
from mlx_distill.run.project import Project, student_name
from mlx_distill.teachers.pricing import Price


def load(text: str, folder: Path) -> Project:
    (folder / "distill.toml").write_text(text)
    return Project.load(folder / "distill.toml")


def test_prices_reach_every_stage_that_has_costs(tmp_path: Path) -> None:
    text = 'name = "demo"\nmax_cost = 3\n[prices]\n"gpt-4.1" = { input_usd = 2, output_usd = 8.0, batch = 0.4 }\n'
    for section in ("collect", "expand", "compare"):
        values = load(text, tmp_path).values(section)
        assert (values["max_cost"], values["track_costs"]) == (3.0, True)
        assert values["prices"] == {"gpt-4.1": Price(2.0, 8.0, batch=0.4)}


def test_all_wrong_prices_are_named(tmp_path: Path) -> None:
    text = (
        'name = "demo"\n[prices]\na = { input_usd = 2 }\nb = { input_usd = -1, output_usd = 1 }\nc = 3\n'
        "gpt-4.1 = { input_usd = 1, output_usd = 1 }\n"
    )
    with pytest.raises(InputError) as caught:
        load(text, tmp_path)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "prices.a",
        "prices.b",
        "prices.c",
        "prices.gpt-4",
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("max_cost = -1", "max_cost = -1: expected float >= 0"),
        ("max_cost = nan", "max_cost"),
        ("max_cost = 1\ntrack_costs = false", "max_cost"),
        ("cost = false", "cost is called track_costs now"),
        ("[trian]\nepochs = 1", "unknown section [trian]"),
        ("name", "not valid TOML"),
    ],
)
def test_wrong_settings_are_refused(tmp_path: Path, line: str, problem: str) -> None:
    with pytest.raises(InputError) as caught:
        load(f'name = "demo"\n{line}\n', tmp_path)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("sample", "SmolLM2-135M-Instruct"),
        ("Qwen/Qwen2.5-0.5B-Instruct", "Qwen2.5-0.5B-Instruct"),
        ("/models/My Model.gguf", "My-Model"),
        ("/", "student"),
    ],
)
def test_student_name(source: str, name: str) -> None:
    assert student_name(source) == name
