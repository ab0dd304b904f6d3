"""Create a project folder: a `distill.toml` with every setting explained, and prompts to start from."""

from __future__ import annotations

import json
import re
import shutil
import textwrap
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from mlx_distill.config import Config, doc, fields_of, parse, to_plain
from mlx_distill.errors import InputError
from mlx_distill.events import Report, ignore
from mlx_distill.models.config import MLX, SELF, is_local
from mlx_distill.models.context import ContextConfig
from mlx_distill.run.project import CONTEXT_SECTION, PRICES_SECTION, Project, ProjectConfig
from mlx_distill.run.stages import RUN_FLAGS, SECTIONS
from mlx_distill.storage.atomic import is_occupied, new_folder, write_jsonl
from mlx_distill.storage.files import PROJECT_FILE
from mlx_distill.storage.package_data import package_data_path
from mlx_distill.teachers.pricing import PRICES, PRICES_AS_OF, Price
from mlx_distill.teachers.registry import provider_of, teacher_usage

PROMPT_FILES = ("prompts.jsonl", "test_prompts.jsonl")
SAMPLE = {"teacher": "recorded:sample", "student": "sample"}
LINE_WIDTH = 100

OWN_FILES = {"prompts": "data/prompts.jsonl", "test_prompts": "data/test_prompts.jsonl"}
"""Settings whose default is a packaged file, with the project's own copy of it."""

LOCAL: Mapping[str, Mapping[str, Any]] = {
    "collect": {"max_tokens": 512},
    "train": {"objective": "kd", "learning_rate": 3e-4},
}
"""Settings for a local teacher: its probabilities are better than its text alone, and want a lower learning rate."""

EXAMPLES_FILE = "data/examples.jsonl"
EXAMPLES = [
    [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    for question, answer in (
        (
            "How do I read a file line by line in Python without loading all of it?",
            "Iterate over the open file: it yields one line at a time.\n\n```python\nfrom pathlib import Path\n\n\n"
            'def count_errors(path: Path) -> int:\n    """Count the lines that contain ERROR."""\n'
            '    with path.open() as lines:\n        return sum("ERROR" in line for line in lines)\n```\n\n'
            "Memory stays constant, however large the file is.",
        ),
        (
            "When is a database index a bad idea?",
            "An index costs more than it saves in three cases:\n\n- The table is small, so a scan is as fast.\n"
            "- Rows are written far more often than they are read: every write updates every index.\n"
            "- The column has few values, so the index does not narrow the search.\n\n"
            "Measure with `EXPLAIN ANALYZE` before and after.",
        ),
    )
]
"""Dialogues to start from: short, direct answers."""

CONTEXT_COMMENT = (
    "What the teacher sees and the student does not. A document for one prompt is the prompt's field `context`. The "
    "student learns to answer as if it saw all this: context distillation."
)
PRICES_COMMENT = (
    "US dollars per million tokens. A line here replaces the built-in price of a model, or adds a model. Also: "
    "max_input_tokens (longer prompts have another price), cache_write and cache_read (times input_usd), batch (times "
    f"all). The built-in prices are of {PRICES_AS_OF}."
)


class InitConfig(Config, frozen=True):
    """The folder to create."""

    folder: Annotated[Path, doc("the new project folder; its last part is the project's name")]
    sample: Annotated[bool, doc("use the embedded sample: recorded answers and a small student, no key, no Hub")] = (
        False
    )
    teacher: Annotated[str, doc(f"who answers: {teacher_usage()}")] = ""
    student: Annotated[str, doc("who learns: a Hub id, a folder, a GGUF file, or `sample`")] = ""
    context: Annotated[
        bool, doc("the teacher sees example dialogues; without --teacher it is the student itself with them")
    ] = False


@dataclass(frozen=True)
class InitResult:
    """A new project."""

    folder: Path
    name: str
    teacher: str
    student: str
    files: tuple[Path, ...]


def run(config: InitConfig, _report: Report = ignore) -> InitResult:
    """Create the folder. Raises InputError if it is not empty, or if its name cannot be the name of a project."""
    folder = config.folder
    named = {"teacher": config.teacher or (SELF if config.context else ""), "student": config.student}
    named = {key: _from_anywhere(value) for key, value in named.items() if value}
    values = {"name": folder.resolve().name, **(SAMPLE if config.sample else {}), **named}
    project = parse(ProjectConfig, values, f"init {folder}")
    provider_of(project.teacher)
    if is_occupied(folder):
        raise InputError(f"{folder} already exists and is not empty.", "Choose another name; nothing was changed.")
    with new_folder(folder) as scratch:
        (scratch / "data").mkdir()
        for file in PROMPT_FILES:
            shutil.copyfile(package_data_path(file), scratch / "data" / file)
        changes = dict(LOCAL) if is_local(project.teacher) else {}
        if config.context:
            changes[CONTEXT_SECTION] = {"examples": EXAMPLES_FILE}
            write_jsonl(scratch / EXAMPLES_FILE, [{"messages": dialogue} for dialogue in EXAMPLES])
        (scratch / PROJECT_FILE).write_text(project_file(project, changes), encoding="utf-8")
        written = sorted(file.relative_to(scratch) for file in scratch.rglob("*") if file.is_file())
    return InitResult(folder, project.name, project.teacher, project.student, tuple(folder / file for file in written))


def _from_anywhere(name: str) -> str:
    """Return the name of a teacher or student with an absolute path, if it is a path that exists here."""
    _, provider, path = name.rpartition(MLX)
    is_path = path not in ("", SELF, SAMPLE["student"]) and Path(path).expanduser().exists()
    return f"{provider}{Path(path).expanduser().resolve()}" if is_path else name


def project_file(config: ProjectConfig, changes: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """Return the text of a `distill.toml` with every setting of every stage, explained, at its default.

    `changes` holds other values by section.
    """
    changes = changes or {}
    project = Project(Path(PROJECT_FILE), config)
    lines = [
        "# Settings of `mlx-distill run` in this folder. Every setting is listed with its default;",
        "# you can delete lines that you do not change. `mlx-distill run --set train.epochs=2` overrides one setting.",
        "",
        *_settings(ProjectConfig, to_plain(config), leave_out=()),
    ]
    lines += [
        "",
        *_wrap(CONTEXT_COMMENT),
        f"[{CONTEXT_SECTION}]",
        *_settings(ContextConfig, changes.get(CONTEXT_SECTION, {}), leave_out=()),
    ]
    for name, (section, title) in SECTIONS.items():
        given = [key for key in project.values(name) if key not in OWN_FILES]
        lines += ["", f"# {title}", f"[{name}]"]
        lines += _settings(section, {**OWN_FILES, **changes.get(name, {})}, leave_out={*given, *RUN_FLAGS})
        lines += _wrap(f"Taken from the top of this file unless set here: {', '.join(given)}.")
        for field in fields_of(section):
            if field.group and field.name not in given:
                lines += ["", f"[{name}.{field.name}]", *_settings(field.group, {}, leave_out=())]
    lines += ["", *_wrap(PRICES_COMMENT), f"[{PRICES_SECTION}]"]
    lines += [f"# {_toml_key(name)} = {_toml_price(price)}" for name, price in PRICES.items()]
    return "\n".join(lines) + "\n"


def _settings(config: type[Config], values: Mapping[str, Any], leave_out: Collection[str]) -> list[str]:
    lines: list[str] = []
    for field in fields_of(config):
        if field.name in leave_out or field.group:
            continue
        choices = ", ".join(filter(None, field.choices))
        lines += _wrap(field.help + (f" ({choices})" if choices else ""))
        value = values.get(field.name, field.default)
        missing = value is None or value is msgspec.NODEFAULT
        lines.append(f"# {field.name} =" if missing else f"{field.name} = {_toml(value)}")
    return lines


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, LINE_WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def _toml_key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def _toml_price(price: Price) -> str:
    """Return a price as an inline table, without the fields at their defaults."""
    default = Price(price.input_usd, price.output_usd)
    parts = {
        name: value
        for name, value in to_plain(price).items()
        if name in ("input_usd", "output_usd") or value != getattr(default, name)
    }
    return "{ " + ", ".join(f"{name} = {_toml(value)}" for name, value in parts.items()) + " }"


def _toml(value: Any) -> str:
    """Return a TOML value. Basic strings are written as JSON writes them; long ones over several lines."""
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, str) and len(value) > LINE_WIDTH:
        lines = textwrap.wrap(json.dumps(value, ensure_ascii=False)[1:-1], LINE_WIDTH - 2, break_on_hyphens=False)
        folded = '"""\\\n' + " \\\n".join(lines) + '"""'  # a backslash at the end of a line joins it to the next
        if tomllib.loads(f"value = {folded}")["value"] == value:
            return folded
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)
