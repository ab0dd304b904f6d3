"""Files of earlier stages: the collected answers with their cost, and the training run.

Each file may be missing, damaged or from another program. What cannot be read is left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_distill.compare.report import Collected, TrainingRun, TrainingStep
from mlx_distill.errors import DistillError
from mlx_distill.storage import files
from mlx_distill.storage.jsonl import read_text


def read_collected(data: Path) -> Collected | None:
    """Count the answers that the prompt index names, and sum their prices from the journal."""
    index = _parse(_read(data / files.PROMPT_INDEX)).get("answers")
    if not isinstance(index, list) or not index:
        return None
    keys = {item.get("key") for item in index if isinstance(item, Mapping)}
    answers = {row["key"]: row for row in _rows(data / files.TEACHER_DATA) if row.get("key") in keys}
    prices = [price for row in answers.values() if (price := _number(row.get("cost_usd"))) is not None]
    teachers, models = (
        tuple(sorted({str(row[name]) for row in answers.values() if row.get(name)})) for name in ("teacher", "model")
    )
    return Collected(len(keys), len(answers), teachers, models, math.fsum(prices) if prices else None, len(prices))


def read_training(adapter: Path) -> TrainingRun | None:
    """Read how an adapter was trained; None if its folder does not say."""
    record = _parse(_read(adapter / files.TRAINING_RUN))
    figures = TrainingStep.__struct_fields__[1:]
    steps = {
        row["step"]: TrainingStep(row["step"], *(_number(row.get(name)) for name in figures))
        for row in _rows(adapter / files.METRICS)
        if isinstance(row.get("step"), int)
    }
    settings, result = (record.get(name) for name in ("settings", "result"))
    if not record and not steps:
        return None
    return TrainingRun(
        settings if isinstance(settings, dict) else {},
        result if isinstance(result, dict) else {},
        tuple(steps[step] for step in sorted(steps)),
    )


def _rows(file: Path) -> list[Mapping[str, Any]]:
    return [_parse(line) for line in _read(file).split("\n")]


def _read(file: Path) -> str:
    try:
        return read_text(file)
    except DistillError:
        return ""


def _parse(text: str) -> Mapping[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, Mapping) else {}


def _number(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None
