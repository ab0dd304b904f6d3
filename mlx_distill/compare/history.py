"""What earlier stages left behind: collected answers and their cost, the training run, the times of the stages.

Each file may be missing or damaged, or may belong to another run. What does not belong here is left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlx_distill.compare.report import Collected, TrainingRun, TrainingStep
from mlx_distill.storage import files


def read_collected(data: Path) -> Collected | None:
    """Count the answers that the prompt index names, and sum their prices from the journal."""
    index = _read_object(data / files.PROMPT_INDEX).get("answers")
    if not isinstance(index, list) or not index:
        return None
    keys = {item.get("key") for item in index if isinstance(item, Mapping)}
    answers = {row["key"]: row for row in _read_objects(data / files.TEACHER_DATA) if row.get("key") in keys}
    prices = [price for row in answers.values() if (price := _number(row.get("cost_usd"))) is not None]
    teachers, models = (
        tuple(sorted({str(row[name]) for row in answers.values() if row.get(name)})) for name in ("teacher", "model")
    )
    return Collected(len(keys), len(answers), teachers, models, math.fsum(prices) if prices else None, len(prices))


def read_training(adapter: Path) -> TrainingRun | None:
    """Read how an adapter was trained; None if its folder does not say."""
    record = _read_object(adapter / files.TRAINING_RUN)
    names = TrainingStep.__struct_fields__[1:]
    steps = {
        row["step"]: TrainingStep(row["step"], *(_number(row.get(name)) for name in names))
        for row in _read_objects(adapter / files.METRICS)
        if isinstance(row.get("step"), int)
    }
    if not record and not steps:
        return None
    settings, result = (
        dict(part) if isinstance(part := record.get(name), Mapping) else {} for name in ("settings", "result")
    )
    return TrainingRun(settings, result, tuple(steps[step] for step in sorted(steps)))


def read_stage_times(manifests: Path, data: Path, model: Path, adapter: Path | None) -> dict[str, float]:
    """Return the seconds of the stages whose manifests name the folders of this comparison."""
    ours = {
        "collect": ("out", data),
        "convert": ("out", model),
        "prepare": ("data", data),
        "train": ("adapter", adapter),
    }
    times = {}
    for stage, (setting, folder) in ours.items():
        manifest = _read_object(manifests / f"{stage}.json")
        settings, seconds = manifest.get("settings"), _number(manifest.get("seconds"))
        if isinstance(settings, Mapping) and seconds is not None and settings.get(setting) == str(folder):
            times[stage] = seconds
    return times


def _read_object(file: Path) -> Mapping[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, Mapping) else {}


def _read_objects(file: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the objects of a JSON lines file; skip other lines."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError):
        return
    for line in lines:
        try:
            row = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            continue
        if isinstance(row, Mapping):
            yield row


def _number(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None
