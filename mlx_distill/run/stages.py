"""The stages of the flow, in order: config and result types, and titles. `pipeline` runs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from mlx_distill.chat import ChatConfig
from mlx_distill.collect.config import CollectConfig, CollectResult
from mlx_distill.compare.config import CompareConfig, CompareResult
from mlx_distill.config import Config, to_plain
from mlx_distill.convert.config import ConvertConfig, ConvertResult
from mlx_distill.fuse.config import FuseConfig, FuseResult
from mlx_distill.prepare.config import PrepareConfig, PrepareResult
from mlx_distill.run.config import RUN_ORDER
from mlx_distill.train.config import TrainConfig, TrainResult

RUN_FLAGS = frozenset({"force", "resume", "retry", "wait"})
"""Fields that control one call. They are no settings of a project and no part of a manifest."""
COST_SETTINGS = frozenset({"batch", "max_cost", "track_costs", "prices"})
"""Settings that change what is spent, but not what a stage makes. They are no part of a manifest."""


class StageResult(Protocol):
    """What every stage returns: a frozen record of its figures."""

    def summary(self) -> str:
        """Return the main figures in one line."""


C = TypeVar("C", bound=Config)
R = TypeVar("R", bound=StageResult)


@dataclass(frozen=True)
class Stage(Generic[C, R]):
    """One step of the flow. Its config names its input and output files (`inputs()`, `outputs()`)."""

    config: type[C]
    result: type[R]
    title: str
    """Comment above the stage's section in a new `distill.toml`."""
    uses_mlx: bool = True

    @property
    def name(self) -> str:
        return self.config.__module__.split(".")[1]


COLLECT = Stage(
    CollectConfig, CollectResult, "Teacher answers to the prompts, in data/NAME/teacher_data.jsonl.", uses_mlx=False
)
CONVERT = Stage(ConvertConfig, ConvertResult, "The student as an MLX model, in models/STUDENT.")
PREPARE = Stage(PrepareConfig, PrepareResult, "Answers to train, valid and test rows, in data/NAME.")
TRAIN = Stage(TrainConfig, TrainResult, "Rows to a LoRA adapter, in adapters/NAME.")
COMPARE = Stage(CompareConfig, CompareResult, "Base and distilled side by side, in reports/NAME.")
FUSE = Stage(FuseConfig, FuseResult, "The adapter fused into a standalone model, in models/NAME.")

_BY_NAME: dict[str, Stage[Any, Any]] = {
    stage.name: stage for stage in (COLLECT, CONVERT, PREPARE, TRAIN, COMPARE, FUSE)
}
STAGES: tuple[Stage[Any, Any], ...] = tuple(_BY_NAME[name] for name in RUN_ORDER)

SECTIONS: dict[str, tuple[type[Config], str]] = {
    **{stage.name: (stage.config, stage.title) for stage in STAGES},
    "chat": (ChatConfig, "Chat with the result: mlx-distill chat."),
}
"""Sections of `distill.toml`: config and title."""


def decisive_settings(config: Config) -> dict[str, Any]:
    """Return the settings that decide what a stage makes, as JSON data."""
    return {name: value for name, value in to_plain(config).items() if name not in RUN_FLAGS | COST_SETTINGS}
