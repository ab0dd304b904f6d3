"""What earlier stages left behind, for the report: answers collected, what they cost, the course of training, times.

Every file here may be missing or of another run. What is not there, or does not belong to what is compared, is left
out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STAGES = {
    "collect": ("out", "data"),
    "convert": ("out", "model"),
    "prepare": ("data", "data"),
    "train": ("adapter",) * 2,
}
"""Stages before the comparison: the setting of each that names its results, and the comparison's name for the same."""


@dataclass(frozen=True)
class Collected:
    """The teacher's answers that the student learnt from."""

    n_prompts: int
    n_answered: int
    teachers: tuple[str, ...]
    """Who was asked, as the project names it."""
    models: tuple[str, ...]
    """As the provider names them."""
    cost_usd: float | None
    """Of all these answers, whenever they were bought; None where no answer has a price."""
    n_priced: int
    """Answers whose price is known."""


@dataclass(frozen=True)
class Moment:
    """One step of training; None where a figure was not taken at it."""

    step: int
    train_loss: float | None
    valid_loss: float | None
    train_accuracy: float | None
    valid_accuracy: float | None


@dataclass(frozen=True)
class Course:
    """How training went."""

    settings: Mapping[str, Any]
    result: Mapping[str, Any]
    """As `run.json` has them."""
    moments: tuple[Moment, ...]


@dataclass(frozen=True)
class StageTime:
    """How long an earlier stage took, and when it ended."""

    stage: str
    seconds: float
    finished_at: str


@dataclass(frozen=True)
class History:
    """What is known of the stages before the comparison."""

    collected: Collected | None
    stages: tuple[StageTime, ...]


def read_history(data: Path, manifests: Path, folders: Mapping[str, Path | None]) -> History:
    """The answers in `data`, and how long the stages took that made `folders` (`model`, `adapter`, `data`)."""
    return History(collected=_collected(data), stages=tuple(_stage_times(manifests, folders)))


def _collected(data: Path) -> Collected | None:
    """From `collect.json`, which names the answers of the present prompts, and the journal, which has their prices."""
    index = _json(data / "collect.json").get("answers")
    if not isinstance(index, list) or not index:
        return None
    keys = {item.get("key") for item in index if isinstance(item, Mapping)}
    answers = {row["key"]: row for row in _lines(data / "teacher_data.jsonl") if row.get("key") in keys}
    prices = [price for row in answers.values() if (price := _number(row.get("cost_usd"))) is not None]
    teachers, models = (
        tuple(sorted({str(row[name]) for row in answers.values() if row.get(name)})) for name in ("teacher", "model")
    )
    return Collected(len(keys), len(answers), teachers, models, math.fsum(prices) if prices else None, len(prices))


def read_course(adapter: Path) -> Course | None:
    """How the training of an adapter went, as its folder says; None where it says nothing."""
    record = _json(adapter / "run.json")
    names = ("train_loss", "valid_loss", "train_accuracy", "valid_accuracy")
    moments = {
        row["step"]: Moment(row["step"], *(_number(row.get(name)) for name in names))
        for row in _lines(adapter / "metrics.jsonl")
        if isinstance(row.get("step"), int)
    }
    if not record and not moments:
        return None
    settings, result = record.get("settings"), record.get("result")
    return Course(
        settings if isinstance(settings, Mapping) else {},
        result if isinstance(result, Mapping) else {},
        tuple(moments[step] for step in sorted(moments)),
    )


def _stage_times(folder: Path, ours: Mapping[str, Path | None]) -> Iterator[StageTime]:
    """Of the stages whose manifests name the folders that are compared here."""
    for stage, (theirs, name) in STAGES.items():
        manifest = _json(folder / f"{stage}.json")
        settings, seconds = manifest.get("settings"), _number(manifest.get("seconds"))
        if isinstance(settings, Mapping) and seconds is not None and settings.get(theirs) == str(ours.get(name)):
            yield StageTime(stage, seconds, str(manifest.get("finished_at", "")))


def _json(file: Path) -> Mapping[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, Mapping) else {}


def _lines(file: Path) -> Iterator[Mapping[str, Any]]:
    """The objects of a JSON lines file; a line that is none is passed over: these figures are an aside."""
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


def _number(value: object) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None  # type: ignore[arg-type]
