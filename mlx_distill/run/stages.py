"""The stages of the flow by name: where each is found, which files it reads and which it writes.

A stage is imported when it is asked for, and importing one is light: nothing here loads mlx.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mlx_distill import device
from mlx_distill.config import to_plain
from mlx_distill.events import Report
from mlx_distill.storage.package_data import shipped

ADAPTER_FILES = ("adapters.safetensors", "adapter_config.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json")
PREPARED_FILES = ("train.jsonl", "valid.jsonl", "test.jsonl", "rejected.jsonl", "stats.json")

Files = Iterable[Path]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step of the flow. `reads` and `writes` are what its manifest watches."""

    module: str
    config_name: str
    reads: Callable[[Any], Files]
    """The input files of a config; a folder stands for all files in it."""
    writes: Callable[[Any], Files]
    """The output files of a config, likewise."""
    config_module: str = ""
    lacks: Callable[[Mapping[str, Any]], str] = lambda _: ""
    """What a finished result still lacks, so that the stage is done again; empty for nothing."""

    @property
    def config(self) -> type[Any]:
        """The dataclass of its settings."""
        found: type[Any] = getattr(importlib.import_module(self.config_module or self.module), self.config_name)
        return found

    def run(self, config: Any, report: Report) -> Any:
        """Do it; returns the stage's result dataclass."""
        if self.config_module:  # a stage whose module imports mlx as it is loaded
            device.prepare()
        return importlib.import_module(self.module).run(config, report)


def _in(folder: Path, names: Iterable[str]) -> list[Path]:
    return [folder / name for name in names]


def _local(source: str) -> list[Path]:
    """The file or folder that something comes from, where it is one on this machine."""
    path = Path(source).expanduser()
    return [path] if path.exists() else []


def _model_files(source: str) -> list[Path]:
    """The files of a local student; of a folder only those that make a model, not all that may lie below it."""
    return [
        file
        for path in _local(source)
        for file in ([*path.glob("*.safetensors"), *path.glob("*.json")] if path.is_dir() else [path])
    ]


def _recorded(teacher: str) -> list[Path]:
    """The journal, or the folder of them, that a `recorded:` teacher replays."""
    provider, _, source = teacher.partition(":")
    if provider != "recorded":
        return []
    return [shipped("sample")] if source == "sample" else _local(source)


def _missing_answers(count: int) -> str:
    return "" if count == 0 else "1 answer is missing" if count == 1 else f"{count} answers are missing"


STAGES: Mapping[str, Stage] = {
    "collect": Stage(
        "mlx_distill.collect.run",
        "CollectConfig",
        reads=lambda config: [config.prompts, *_recorded(config.teacher)],
        writes=lambda config: _in(config.out, ["teacher_data.jsonl", "collect.json"]),
        lacks=lambda result: _missing_answers(result["n_prompts"] - result["n_answered"]),
    ),
    "convert": Stage(
        "mlx_distill.convert.run",
        "ConvertConfig",
        reads=lambda config: _model_files(config.source),
        writes=lambda config: [config.out],
    ),
    "prepare": Stage(
        "mlx_distill.prepare.run",
        "PrepareConfig",
        reads=lambda config: [
            *_in(config.data, ["teacher_data.jsonl", "collect.json"]),
            *_in(config.model, TOKENIZER_FILES),
            config.test_prompts,
        ],
        writes=lambda config: _in(config.data, PREPARED_FILES),
    ),
    "train": Stage(
        "mlx_distill.train.run",
        "TrainConfig",
        reads=lambda config: [config.model, *_in(config.data, ["train.jsonl", "valid.jsonl"])],
        writes=lambda config: _in(config.adapter, ADAPTER_FILES),
        config_module="mlx_distill.train.config",
    ),
    "compare": Stage(
        "mlx_distill.compare.run",
        "CompareConfig",
        reads=lambda config: [
            config.model,
            *_in(config.adapter, ADAPTER_FILES),
            config.data / "test.jsonl",
            config.test_prompts,
            *_recorded(config.teacher),
            *_recorded(config.judge),
        ],
        writes=lambda config: _in(config.out, ["report.json", "report.md", "report.html"]),
    ),
    "fuse": Stage(
        "mlx_distill.fuse.run",
        "FuseConfig",
        reads=lambda config: [config.model, *_in(config.adapter, ADAPTER_FILES), config.data / "test.jsonl"],
        writes=lambda config: [config.out],
    ),
    "chat": Stage("mlx_distill.chat.run", "ChatConfig", reads=lambda _: [], writes=lambda _: []),
}
"""In the order of a run, of which `chat` is no part; `prepare` needs the tokenizer that `convert` writes."""

RUN_ORDER = tuple(name for name in STAGES if name != "chat")

CONTROLS = frozenset({"force", "resume", "retry", "show", "wait"})
"""Fields that steer one call and do not change what comes out: no setting of a project, no part of a manifest."""


MONEY = frozenset({"batch", "max_cost", "track_costs", "prices"})
"""Settings that save, bound or count what is spent and do not change what comes out: no part of a manifest."""


def settings_of(config: Any) -> dict[str, Any]:
    """The settings that decide what a stage makes, as JSON data."""
    return {name: value for name, value in to_plain(config).items() if name not in CONTROLS | MONEY}
