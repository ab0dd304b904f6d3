"""What training leaves beside an adapter, for later stages: `run.json` and `metrics.jsonl`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import msgspec

from mlx_distill.config import to_plain
from mlx_distill.storage import files
from mlx_distill.storage.atomic import write_json


class MetricPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `metrics.jsonl`, as far as readers need it. None: not measured at this step."""

    step: int
    epoch: float = 0.0
    train_loss: float | None = None
    train_accuracy: float | None = None
    valid_loss: float | None = None
    valid_accuracy: float | None = None


class TrainingRun(msgspec.Struct, frozen=True):
    """Settings, final figures and metrics of a training run."""

    settings: Mapping[str, Any] = {}
    """The fields of `TrainConfig`. Empty if `run.json` is missing: the run has not finished."""
    result: Mapping[str, Any] = {}
    """The fields of `TrainResult`."""
    points: tuple[MetricPoint, ...] = ()

    @classmethod
    def load(cls, adapter: Path) -> Self | None:
        """Read an adapter folder. Return None if it says nothing about its training; ignore what is malformed."""
        try:
            record = msgspec.json.decode((adapter / files.TRAINING_RUN).read_bytes(), type=cls)
        except (OSError, msgspec.DecodeError):
            record = cls()
        points = read_metrics(adapter)
        if not (record.settings or record.result or points):
            return None
        return msgspec.structs.replace(record, points=points)

    def save(self, adapter: Path) -> None:
        """Write `run.json`."""
        write_json(adapter / files.TRAINING_RUN, {"settings": to_plain(self.settings), "result": to_plain(self.result)})


def read_metrics(adapter: Path) -> tuple[MetricPoint, ...]:
    """Return the points of `metrics.jsonl` in the order of their steps; the last line of a step counts."""
    points: dict[int, MetricPoint] = {}
    try:
        lines = (adapter / files.METRICS).read_bytes().splitlines()
    except OSError:
        lines = []
    for line in lines:
        try:
            point = msgspec.json.decode(line, type=MetricPoint)
        except msgspec.DecodeError:  # a line that a kill cut off, or of another program
            continue
        if all(value is None or math.isfinite(value) for value in msgspec.structs.astuple(point)):
            points[point.step] = point
    return tuple(points[step] for step in sorted(points))
