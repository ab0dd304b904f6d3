"""The table of stages, in order: their config and result types, and their titles. `pipeline` runs them."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from mlx_distill import device
from mlx_distill.chat import ChatConfig
from mlx_distill.collect.config import CollectConfig, CollectResult
from mlx_distill.compare.config import CompareConfig, CompareResult
from mlx_distill.config import Config, to_plain
from mlx_distill.convert.config import ConvertConfig, ConvertResult
from mlx_distill.events import Report, ignore
from mlx_distill.fuse.config import FuseConfig, FuseResult
from mlx_distill.logprobs.config import LogprobsConfig, LogprobsResult
from mlx_distill.prepare.config import PrepareConfig, PrepareResult
from mlx_distill.run.config import RUN_ORDER
from mlx_distill.train.config import TrainConfig, TrainResult

RUN_FLAGS = frozenset({"force", "resume", "retry", "wait"})
"""Fields that control one call. They are left out of `distill.toml` and of manifests."""
COST_SETTINGS = frozenset({"batch", "max_cost", "track_costs", "prices"})
"""Settings that change the cost of a stage, but not its outputs. They are left out of manifests."""


class StageResult(Protocol):
    """The result of a stage: a frozen record of its figures."""

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
        """The name of the stage's package: `train` for mlx_distill.train."""
        return self.config.__module__.split(".")[1]

    def run(self, config: C, report: Report = ignore) -> R:
        """Import the stage's package and run it. Writes no manifest."""
        if self.uses_mlx:
            device.prepare()  # a fast BLAS must be loaded before MLX
        result: R = importlib.import_module(f"mlx_distill.{self.name}.run").run(config, report)
        return result


COLLECT = Stage(
    CollectConfig, CollectResult, "Teacher answers to the prompts, in data/NAME/teacher_data.jsonl.", uses_mlx=False
)
CONVERT = Stage(ConvertConfig, ConvertResult, "The student as an MLX model, in models/STUDENT.")
PREPARE = Stage(PrepareConfig, PrepareResult, "Answers to train, valid and test rows, in data/NAME.")
LOGPROBS = Stage(
    LogprobsConfig,
    LogprobsResult,
    'The local teacher\'s log-probabilities, in data/NAME/logprobs. Only for objective "kd".',
)
TRAIN = Stage(TrainConfig, TrainResult, "Rows to a LoRA adapter, in adapters/NAME.")
COMPARE = Stage(CompareConfig, CompareResult, "Base and distilled side by side, in reports/NAME.")
FUSE = Stage(FuseConfig, FuseResult, "The adapter fused into a standalone model, in models/NAME.")

STAGES: tuple[Stage[Any, Any], ...] = tuple(
    sorted((COLLECT, CONVERT, PREPARE, LOGPROBS, TRAIN, COMPARE, FUSE), key=lambda stage: RUN_ORDER.index(stage.name))
)

SECTIONS: dict[str, tuple[type[Config], str]] = {
    **{stage.name: (stage.config, stage.title) for stage in STAGES},
    "chat": (ChatConfig, "Chat with the result: mlx-distill chat."),
}
"""Sections of `distill.toml`, each with its config and its title."""


def decisive_settings(config: Config) -> dict[str, Any]:
    """Return the settings that change the outputs of a stage, as JSON data."""
    return {name: value for name, value in to_plain(config).items() if name not in RUN_FLAGS | COST_SETTINGS}
