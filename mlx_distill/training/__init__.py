"""Examples to adapter: `run(TrainConfig(model=..., data=..., adapter=...))`."""

from __future__ import annotations

from mlx_distill import machine
from mlx_distill.events import Report, ignore
from mlx_distill.training.config import TrainConfig, TrainResult

__all__ = ["TrainConfig", "TrainResult", "run"]


def run(config: TrainConfig, report: Report = ignore) -> TrainResult:
    """Train a LoRA adapter and keep the best one by validation loss, and the last.

    Raises InputError for rows or settings that cannot be trained on, before anything is written; Interrupted after
    Ctrl-C or SIGTERM, with a checkpoint to resume from.
    """
    machine.prepare()
    from mlx_distill.training.loop import train

    return train(config, report)
