"""A project: the settings in `distill.toml`, and the folders that its stages read and write."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import msgspec

from mlx_distill.config import Config, doc, parse, to_plain
from mlx_distill.errors import InputError
from mlx_distill.formatting import plural
from mlx_distill.models.context import ContextConfig
from mlx_distill.records import STUDENT_SYSTEM
from mlx_distill.storage.files import MANIFESTS, PROJECT_FILE, RUN_LOG
from mlx_distill.storage.jsonl import read_text
from mlx_distill.teachers.pricing import MAX_COST_HELP, PRICES_HELP, TRACK_COSTS_HELP, Budget, Price
from mlx_distill.teachers.registry import teacher_usage

SECTION_NAMES = ("collect", "expand", "prepare", "convert", "logprobs", "train", "compare", "fuse", "chat")
PRICES_SECTION = "prices"
CONTEXT_SECTION = "teacher_context"


class ProjectConfig(Config, frozen=True):
    """The settings above the sections of `distill.toml`, which several stages share."""

    renamed: ClassVar[Mapping[str, str]] = {"cost": "track_costs"}

    name: Annotated[str, doc("name of the project, in data/NAME, adapters/NAME, models/NAME and reports/NAME")]
    teacher: Annotated[str, doc(f"who answers: {teacher_usage()}")] = "anthropic:claude-sonnet-4-6"
    student: Annotated[str, doc("who learns: a Hub id, a folder, a GGUF file, or `sample`")] = (
        "Qwen/Qwen2.5-0.5B-Instruct"
    )
    system: Annotated[str, doc("system message of the student, in training and in use")] = STUDENT_SYSTEM
    seed: Annotated[int, doc("random seed of all stages", ge=0)] = 0
    max_cost: Annotated[float, doc(MAX_COST_HELP, ge=0)] | None = None
    track_costs: Annotated[bool, doc(TRACK_COSTS_HELP)] = True

    def check(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", self.name):
            raise ValueError(
                f"name {self.name!r} may contain letters, digits, '.', '_' and '-', must start with a letter or "
                "digit, and have at most 64 characters"
            )
        Budget(self.max_cost, track_costs=self.track_costs)


class _Shared(Config, frozen=True):
    """The sections that several stages share, as a config so that they are checked like the others."""

    prices: Annotated[Mapping[str, Price], doc(PRICES_HELP)] = msgspec.field(default_factory=dict)
    teacher_context: ContextConfig = ContextConfig()


@dataclass(frozen=True)
class Project:
    """A parsed `distill.toml`. All paths are relative to the project folder, which is the working folder."""

    file: Path
    config: ProjectConfig
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    prices: Mapping[str, Price] = field(default_factory=dict)
    """The section [prices]."""
    context: ContextConfig = field(default_factory=ContextConfig)
    """The section [teacher_context]."""

    @classmethod
    def find(cls, folder: Path) -> Project | None:
        """Return the project of `folder`, or None if it has no `distill.toml`."""
        file = folder / PROJECT_FILE
        return cls.load(file) if file.exists() else None

    @classmethod
    def load(cls, file: Path) -> Project:
        """Read `distill.toml`. Raises InputError with the line of a syntax error, or with all wrong settings."""
        try:
            data = tomllib.loads(read_text(file, "Create one with `mlx-distill init NAME`, or change to its folder."))
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"{file}: not valid TOML: {error}.", "Fix that line and run the command again.") from error
        return cls.from_values(file, data)

    @classmethod
    def from_values(cls, file: Path, data: Mapping[str, Any]) -> Project:
        """Build a project from parsed TOML data. Raises InputError for unknown sections and wrong shared settings."""
        sections = {name: value for name, value in data.items() if isinstance(value, Mapping)}
        known = (*SECTION_NAMES, *_Shared.__struct_fields__)
        unknown = [f"unknown section [{name}]; known are {', '.join(known)}" for name in sections if name not in known]
        if unknown:
            raise InputError(
                f"{file}: {plural(len(unknown), 'problem')}.", "Fix it and run the command again.", unknown
            )
        shared = {name: value for name, value in data.items() if name not in sections}
        given = {name: sections[name] for name in _Shared.__struct_fields__ if name in sections}
        tables = parse(_Shared, given, str(file))
        return cls(file, parse(ProjectConfig, shared, str(file)), sections, tables.prices, tables.teacher_context)

    @property
    def data(self) -> Path:
        return Path("data") / self.config.name

    @property
    def model(self) -> Path:
        """Folder of the converted student, named after its source."""
        return Path("models") / student_name(self.config.student)

    @property
    def adapter(self) -> Path:
        return Path("adapters") / self.config.name

    @property
    def fused(self) -> Path:
        return Path("models") / self.config.name

    @property
    def report(self) -> Path:
        return Path("reports") / self.config.name

    @property
    def manifests(self) -> Path:
        return self.report / MANIFESTS

    @property
    def run_log(self) -> Path:
        return self.report / RUN_LOG

    @property
    def objective(self) -> str:
        """The objective of `train` as the file gives it; `train` checks it."""
        return str(self.sections.get("train", {}).get("objective", "sft"))

    @property
    def trains_with_teacher(self) -> bool:
        """True if teacher and student are in memory at the same time."""
        return self.objective == "on-policy" or (self.objective == "kd" and self._teacher_in_memory)

    @property
    def _teacher_in_memory(self) -> bool:
        """True if training loads the teacher: no log-probabilities are stored, or the student writes the text."""
        on_policy = self.sections.get("train", {}).get("objective") == "on-policy"
        return on_policy or self.sections.get("logprobs", {}).get("top_k") == 0

    def values(self, section: str) -> dict[str, Any]:
        """Return the values of a section: paths and shared settings of the project, and the section's own settings."""
        config = self.config
        budget = {"max_cost": config.max_cost, "track_costs": config.track_costs, "prices": self.prices}
        shared: dict[str, dict[str, Any]] = {
            "collect": {
                "teacher": config.teacher,
                "model": self.model,
                "out": self.data,
                CONTEXT_SECTION: to_plain(self.context),
                "seed": config.seed,
                **budget,
            },
            "expand": {"teacher": config.teacher, "model": self.model, "data": self.data, **budget},
            "prepare": {"data": self.data, "model": self.model, "system": config.system, "seed": config.seed},
            "convert": {"source": config.student, "out": self.model},
            "logprobs": {
                "teacher": config.teacher,
                "model": self.model,
                "data": self.data,
                CONTEXT_SECTION: to_plain(self.context),
            },
            "train": {
                "model": self.model,
                "data": self.data,
                "adapter": self.adapter,
                "seed": config.seed,
                CONTEXT_SECTION: to_plain(self.context),
                **({"teacher": config.teacher} if self._teacher_in_memory else {}),
            },
            "compare": {
                "model": self.model,
                "adapter": self.adapter,
                "data": self.data,
                "out": self.report,
                "teacher": config.teacher,
                CONTEXT_SECTION: to_plain(self.context),
                "system": config.system,
                "seed": config.seed,
                **budget,
            },
            "fuse": {"model": self.model, "adapter": self.adapter, "data": self.data, "out": self.fused},
            "chat": {"model": self.model, "adapter": self.adapter, "system": config.system},
        }
        return {**shared[section], **self.sections.get(section, {})}


def student_name(source: str) -> str:
    """Return a folder name for a student: the last part of a Hub id or path, without a .gguf suffix."""
    if source == "sample":
        return "SmolLM2-135M-Instruct"
    name = Path(source.rstrip("/")).name.removesuffix(".gguf")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "student"
