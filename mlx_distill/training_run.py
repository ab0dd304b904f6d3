"""Read and write the record of a training run in its adapter folder: `run.json` and `metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import msgspec

from mlx_distill.config import to_plain
from mlx_distill.storage import files
from mlx_distill.storage.atomic import write_json, write_text


class MetricPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `metrics.jsonl`, as far as readers need it. None: not measured at this step."""

    step: int
    epoch: float = 0.0
    train_loss: float | None = None
    """The loss that the step minimised: for `kd` and `on-policy`, the divergence from the teacher."""
    train_cross_entropy: float | None = None
    train_accuracy: float | None = None
    valid_loss: float | None = None
    valid_accuracy: float | None = None
    valid_kl: float | None = None


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
    """Return the points of `metrics.jsonl`, ordered by step. If a step has several lines, the last one counts."""
    points = {point.step: point for point, _ in _metric_lines(adapter)}
    return tuple(points[step] for step in sorted(points))


def drop_metrics_after(step: int, adapter: Path) -> None:
    """Remove the lines after `step` and an incomplete last line. A resumed run writes them again."""
    kept = [line.decode() + "\n" for point, line in _metric_lines(adapter) if point.step <= step]
    write_text(adapter / files.METRICS, "".join(kept))


def _metric_lines(adapter: Path) -> Iterator[tuple[MetricPoint, bytes]]:
    """Yield each point and its line. Skip lines that a kill cut off or another program wrote."""
    with suppress(OSError):
        for line in (adapter / files.METRICS).read_bytes().splitlines():
            with suppress(msgspec.DecodeError):
                yield msgspec.json.decode(line, type=MetricPoint), line
