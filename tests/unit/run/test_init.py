"""`init`: a complete folder whose `distill.toml` holds every setting at its default."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from mlx_distill.config import Config, fields_of, parse, to_plain
from mlx_distill.errors import InputError
from mlx_distill.models.context import read_context
from mlx_distill.run.config import RunConfig
from mlx_distill.run.init import InitConfig, project_file, run
from mlx_distill.run.pipeline import load_project, stage_configs
from mlx_distill.run.project import Project, ProjectConfig
from mlx_distill.run.stages import RUN_FLAGS, SECTIONS
from mlx_distill.teachers.pricing import PRICES
from mlx_distill.train.config import TrainConfig

PATHS = {"data", "model", "adapter", "out", "prompts", "test_prompts"}


def table(text: str, name: str) -> str:
    return text.split(f"[{name}]\n")[1].split("\n[")[0]


def test_new_project_has_settings_and_prompts(tmp_path: Path) -> None:
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


def test_sample_project_needs_no_key_and_no_hub(tmp_path: Path) -> None:
    run(InitConfig(tmp_path / "demo", sample=True))
    config = Project.load(tmp_path / "demo" / "distill.toml").config
    assert (config.teacher, config.student) == ("recorded:sample", "sample")


@pytest.mark.parametrize(("name", "config"), [(name, config) for name, (config, _) in SECTIONS.items()])
def test_every_setting_is_listed_with_its_default(
    name: str, config: type[Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = project_file(ProjectConfig(name="demo"))
    given = Project(Path("distill.toml"), ProjectConfig(name="demo")).values(name)
    for field in fields_of(config):
        if field.group:
            section = field.name if field.name in given else f"{name}.{field.name}"
            assert set(tomllib.loads(table(text, section))) <= set(field.group.__struct_fields__)
            continue
        listed = re.search(rf"^(# )?{field.name} =", table(text, name), re.MULTILINE)
        assert bool(listed) == (field.name not in {*given, *RUN_FLAGS}), field.name
    monkeypatch.chdir(tmp_path)
    Path("distill.toml").write_text(text)
    read = to_plain(parse(config, Project.load(Path("distill.toml")).values(name), name))
    default = to_plain(parse(config, given, name))
    assert {key: read[key] for key in read.keys() - PATHS} == {key: default[key] for key in default.keys() - PATHS}


def test_preset_replaces_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(InitConfig(tmp_path / "demo"))
    monkeypatch.chdir(tmp_path / "demo")
    train = stage_configs(load_project(RunConfig(overrides=('train.preset="demo"',))))["train"]
    assert isinstance(train, TrainConfig)
    assert (train.rank, train.scale, train.epochs) == (4, 4.0, 3)
    assert train.targets == ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def test_new_project_uses_its_own_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(InitConfig(tmp_path / "demo"))
    monkeypatch.chdir(tmp_path / "demo")
    configs = stage_configs(Project.load(Path("distill.toml")))
    assert configs["collect"].prompts == Path("data/prompts.jsonl")
    assert configs["prepare"].test_prompts == configs["compare"].test_prompts == Path("data/test_prompts.jsonl")
    assert len(Path("data/prompts.jsonl").read_text().splitlines()) == 104
    assert len(Path("data/test_prompts.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    "system",
    [
        'Say "yes"\\no.\nThen — “stop”. 🛑',
        'A long "message" \\ of many words,\n\n  indented lines,   wide gaps and\ttabs. ' * 4,
        "word " * 40 + "end",
    ],
)
def test_text_is_quoted_for_toml(system: str) -> None:
    assert tomllib.loads(project_file(ProjectConfig(name="demo", system=system)))["system"] == system


def test_lines_are_short_enough_to_read() -> None:
    assert max(map(len, project_file(ProjectConfig(name="demo")).splitlines())) <= 120


def test_occupied_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    assert run(InitConfig(tmp_path / "demo")).name == "demo"  # an empty folder is fine
    with pytest.raises(InputError, match="demo already exists and is not empty"):
        run(InitConfig(tmp_path / "demo"))


@pytest.mark.parametrize("name", ["my demo", "-x", ".hidden", "ä", "x" * 65])
def test_unusable_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="1 problem"):
        run(InitConfig(tmp_path / name))
    assert not list(tmp_path.iterdir())


def test_built_in_prices_can_be_uncommented(tmp_path: Path) -> None:
    before, section = project_file(ProjectConfig(name="demo")).split("[prices]\n")
    file = tmp_path / "distill.toml"
    file.write_text(before + "[prices]\n" + section.replace("# ", ""))
    assert Project.load(file).prices == PRICES


def test_local_teacher_gets_settings_that_suit_it(
    tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_student.parent)
    with pytest.raises(InputError, match="nothing follows"):
        run(InitConfig(tmp_path / "demo", teacher="mlx:"))
    run(InitConfig(tmp_path / "demo", teacher=f"mlx:./{tiny_student.name}/../{tiny_student.name}", student="sample"))

    project = Project.load(tmp_path / "demo" / "distill.toml")
    configs = stage_configs(project)
    assert (project.config.teacher, project.config.student) == (f"mlx:{tiny_student.resolve()}", "sample")
    assert (configs["train"].objective, configs["collect"].max_tokens) == ("kd", 512)
    assert configs["collect"].teacher_context.examples is None


def test_context_comes_with_dialogues_to_start_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(InitConfig(tmp_path / "demo", sample=True, context=True))

    assert (result.teacher, result.student) == ("self", "sample")
    assert tmp_path / "demo" / "data" / "examples.jsonl" in result.files
    monkeypatch.chdir(tmp_path / "demo")
    configs = stage_configs(load_project(RunConfig()))
    assert len(read_context(configs["collect"].teacher_context).examples) == 4
    assert configs["train"].teacher_context == configs["compare"].teacher_context == configs["collect"].teacher_context
