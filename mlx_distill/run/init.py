"""`init`: a new project folder, its distill.toml written from the configs themselves, so that it cannot go stale."""

from __future__ import annotations

import json
import re
import shutil
import textwrap
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from mlx_distill.config import Config, doc, fields_of, parse, to_plain
from mlx_distill.errors import InputError
from mlx_distill.events import Report, ignore
from mlx_distill.run.project import PRICES_SECTION, PROJECT_FILE, Project, ProjectConfig
from mlx_distill.run.stages import CONTROLS, STAGES
from mlx_distill.storage.atomic import new_folder
from mlx_distill.storage.package_data import shipped
from mlx_distill.teachers.pricing import PRICES, PRICES_AS_OF, Price

PROMPT_FILES = ("prompts.jsonl", "test_prompts.jsonl")
SAMPLE = {"teacher": "recorded:sample", "student": "sample"}
WIDTH = 100

OWN_FILES = {"prompts": "data/prompts.jsonl", "test_prompts": "data/test_prompts.jsonl"}
"""Settings that name shipped files by default, and a project's own copies in a project."""

TITLES = {
    "collect": "Ask the teacher: prompts to answers, in data/NAME/teacher_data.jsonl.",
    "convert": "The student as an MLX model, in models/STUDENT.",
    "prepare": "Answers to train, valid and test rows, in data/NAME.",
    "train": "Rows to a LoRA adapter, in adapters/NAME.",
    "compare": "Base and distilled side by side, in reports/NAME.",
    "fuse": "The adapter added into a standalone model, in models/NAME.",
    "chat": "Talk to it: mlx-distill chat.",
}


PRICES_TITLE = (
    "US dollars for a million tokens. A line here takes the place of the built-in price, or adds a model. Also: "
    "max_input_tokens (longer prompts have another price), cache_write and cache_read (times input_usd), batch (times "
    "all). The built-in prices are those of"
)


class InitConfig(Config, frozen=True):
    """Which folder to make, and for whom."""

    folder: Annotated[Path, doc("the new project folder; its last part is the project's name")]
    sample: Annotated[bool, doc("the embedded sample: recorded answers and a small student, no key, no Hub")] = False


@dataclass(frozen=True)
class InitResult:
    """A new project."""

    folder: Path
    name: str
    teacher: str
    student: str
    files: tuple[Path, ...]


def run(config: InitConfig, _report: Report = ignore) -> InitResult:
    """Make the folder, whole or not at all; InputError where it exists and is not empty, or its name will not do."""
    folder = config.folder
    name = folder.resolve().name
    project = parse(ProjectConfig, {"name": name, **(SAMPLE if config.sample else {})}, f"init {folder}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists already and is not empty.", "Choose another name; nothing was changed.")
    with new_folder(folder) as scratch:
        (scratch / "data").mkdir()
        for file in PROMPT_FILES:
            shutil.copyfile(shipped(file), scratch / "data" / file)
        (scratch / PROJECT_FILE).write_text(project_file(project), encoding="utf-8")
    files = tuple(folder / file for file in (PROJECT_FILE, *(f"data/{file}" for file in PROMPT_FILES)))
    return InitResult(folder, name, project.teacher, project.student, files)


def project_file(config: ProjectConfig) -> str:
    """The text of a distill.toml with every setting of every stage, each with what it means, at its default."""
    project = Project(Path(PROJECT_FILE), config)
    lines = [
        "# What `mlx-distill run` does in this folder. Every setting of a run is here, at its default;",
        "# a line that is deleted means the same. `mlx-distill run --set train.epochs=2` overrides one for once.",
        "",
        *_settings(ProjectConfig, to_plain(config), leave_out=()),
    ]
    for name, stage in STAGES.items():
        given = {key: value for key, value in project.values(name).items() if key not in OWN_FILES}
        lines += ["", f"# {TITLES[name]}", f"[{name}]"]
        lines += _settings(stage.config, OWN_FILES, leave_out={*given, *CONTROLS})
        lines += _wrapped(f"Taken from the top of this file unless set here: {', '.join(given)}.")
        for field in fields_of(stage.config):
            if field.group:
                lines += ["", f"[{name}.{field.name}]", *_settings(field.group, {}, leave_out=())]
    lines += ["", *_wrapped(f"{PRICES_TITLE} {PRICES_AS_OF}."), f"[{PRICES_SECTION}]"]
    lines += [f"# {_key(name)} = {_price(price)}" for name, price in PRICES.items()]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    """A model's name as a TOML key."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def _price(price: Price) -> str:
    """A price as an inline table, without what is at its default."""
    usual = Price(price.input_usd, price.output_usd)
    parts = {name: value for name, value in to_plain(price).items() if name.endswith("_usd")}
    parts |= {name: value for name, value in to_plain(price).items() if value != getattr(usual, name)}
    return "{ " + ", ".join(f"{name} = {_toml(value)}" for name, value in parts.items()) + " }"


def _settings(config: type[Config], values: Mapping[str, Any], leave_out: Iterable[str]) -> list[str]:
    lines: list[str] = []
    for field in fields_of(config):
        if field.name in leave_out or field.group:
            continue
        lines += _wrapped(field.help + (f" ({', '.join(filter(None, field.choices))})" if field.choices else ""))
        value = values.get(field.name, field.default)
        lines.append(f"# {field.name} =" if value is None or field.required else f"{field.name} = {_toml(value)}")
    return lines


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def _toml(value: Any) -> str:
    """A TOML value; basic strings are written as JSON writes them, long ones over several lines."""
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, str) and len(value) > WIDTH:
        lines = textwrap.wrap(json.dumps(value, ensure_ascii=False)[1:-1], WIDTH - 2, break_on_hyphens=False)
        folded = '"""\\\n' + " \\\n".join(lines) + '"""'  # a backslash at its end joins a line to the next
        if tomllib.loads(f"value = {folded}")["value"] == value:
            return folded
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)
