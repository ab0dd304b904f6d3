"""`init`: a folder whose distill.toml holds every setting at its default, and which is whole or not there."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_distill.config import parse, parts_of, to_plain
from mlx_distill.errors import InputError
from mlx_distill.run import init as new_project
from mlx_distill.run import pipeline
from mlx_distill.run.init import InitConfig, project_file, run
from mlx_distill.run.project import Project, ProjectConfig
from mlx_distill.run.stages import CONTROLS, STAGES
from mlx_distill.teachers.pricing import PRICES
from tests.conftest import Finished

PATHS = {"data", "model", "adapter", "out", "prompts", "test_prompts"}


def test_a_new_project_has_settings_and_prompts(tmp_path: Path) -> None:
    result = run(InitConfig(tmp_path / "demo"))

    assert sorted(str(file.relative_to(tmp_path)) for file in (tmp_path / "demo").rglob("*") if file.is_file()) == [
        "demo/data/prompts.jsonl",
        "demo/data/test_prompts.jsonl",
        "demo/distill.toml",
    ]
    assert all(file.exists() for file in result.files)
    config = Project.load(tmp_path / "demo" / "distill.toml").config
    assert config == ProjectConfig(
        name="demo", teacher="anthropic:claude-sonnet-4-6", student="Qwen/Qwen2.5-0.5B-Instruct"
    )


def test_the_sample_needs_no_key_and_no_hub(tmp_path: Path) -> None:
    run(InitConfig(tmp_path / "demo", sample=True))

    config = Project.load(tmp_path / "demo" / "distill.toml").config
    assert (config.teacher, config.student) == ("recorded:sample", "sample")


@pytest.mark.parametrize("stage", STAGES)
def test_every_setting_of_a_stage_is_there_at_its_default_and_explained(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = project_file(ProjectConfig(name="demo"))
    section = text.split(f"[{stage}]\n")[1].split("\n[")[0]
    given = Project(Path("distill.toml"), ProjectConfig(name="demo")).values(stage)

    for group, kind in parts_of(STAGES[stage].config).items():
        table = text.split(f"[{stage}.{group}]\n")[1].split("\n[")[0]
        for field in dataclasses.fields(kind):
            assert re.search(rf"^(# )?{field.name} =", table, re.MULTILINE), f"{field.name} is not in [{stage}.{group}]"
    for field in dataclasses.fields(STAGES[stage].config):
        if field.name in parts_of(STAGES[stage].config):
            continue
        if field.name in CONTROLS:
            assert not re.search(rf"^(# )?{field.name} =", section, re.MULTILINE)
        elif field.name not in given:
            assert re.search(rf"^(# )?{field.name} =", section, re.MULTILINE), f"{field.name} is not in [{stage}]"
            assert " ".join(field.metadata["help"].split())[:40] in " ".join(section.replace("\n# ", " ").split())

    monkeypatch.chdir(tmp_path)
    Path("distill.toml").write_text(text)
    read = parse(STAGES[stage].config, Project.load(Path("distill.toml")).values(stage), stage)
    default = parse(STAGES[stage].config, given, stage)
    named = {name: value for name, value in to_plain(read).items() if name not in PATHS}
    assert named == {name: value for name, value in to_plain(default).items() if name not in PATHS}


def test_a_preset_stands_in_for_what_a_new_project_leaves_at_its_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(InitConfig(tmp_path / "demo"))
    monkeypatch.chdir(tmp_path / "demo")

    project = pipeline.load_project(pipeline.RunConfig(overrides=('train.preset="demo"',)))
    train = pipeline.stage_configs(project)["train"]

    assert (train.rank, train.scale, train.epochs) == (4, 4.0, 3)
    assert train.targets == ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def test_a_new_project_uses_its_own_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(InitConfig(tmp_path / "demo"))
    monkeypatch.chdir(tmp_path / "demo")

    configs = pipeline.stage_configs(Project.load(Path("distill.toml")))

    assert configs["collect"].prompts == Path("data/prompts.jsonl")
    assert configs["prepare"].test_prompts == configs["compare"].test_prompts == Path("data/test_prompts.jsonl")
    assert len(Path("data/prompts.jsonl").read_text().splitlines()) == 104
    assert len(Path("data/test_prompts.jsonl").read_text().splitlines()) == 4


def test_text_with_quotes_and_newlines_is_written_as_toml() -> None:
    for system in (
        'Say "yes"\\no.\nThen — “stop”. 🛑',
        'A long "message" \\ of many words,\n\n  indented lines,   wide gaps and\ttabs. ' * 4,
        "word " * 40 + "end",
    ):
        assert tomllib.loads(project_file(ProjectConfig(name="demo", system=system)))["system"] == system


def test_no_line_of_a_new_project_is_too_long_to_read() -> None:
    assert max(map(len, project_file(ProjectConfig(name="demo")).splitlines())) <= 120


def test_a_folder_that_holds_something_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "mine").write_text("x")

    with pytest.raises(InputError, match="demo exists already and is not empty"):
        run(InitConfig(tmp_path / "demo"))

    assert [file.name for file in (tmp_path / "demo").iterdir()] == ["mine"]


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()

    assert run(InitConfig(tmp_path / "demo")).name == "demo"


@pytest.mark.parametrize("name", ["my demo", "-x", ".hidden", "ä", "x" * 65])
def test_a_name_that_cannot_name_results_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="1 problem"):
        run(InitConfig(tmp_path / name))

    assert not list(tmp_path.iterdir())


def test_the_command_ends_with_what_to_type_next(tmp_path: Path, cli: Callable[..., Finished]) -> None:
    finished = cli("init", "demo", cwd=tmp_path)

    assert finished.code == 0, finished.err
    assert "cd demo" in finished.out and "export ANTHROPIC_API_KEY" in finished.out
    assert finished.out.rstrip().endswith("mlx-distill run")

    again = cli("init", "demo", cwd=tmp_path)
    assert again.code == 1 and "exists already" in again.err

    sample = cli("init", "other", "--sample", "--json", cwd=tmp_path)
    assert json.loads(sample.out)["student"] == "sample"


def test_titles_name_every_stage() -> None:
    assert set(new_project.TITLES) == set(STAGES)


def test_every_built_in_price_stands_in_the_file_ready_to_be_changed(tmp_path: Path) -> None:
    text = project_file(ProjectConfig(name="demo"))
    before, section = text.split("[prices]\n")
    file = tmp_path / "distill.toml"
    file.write_text(before + "[prices]\n" + section.replace("# ", ""))

    assert Project.load(file).prices == PRICES
