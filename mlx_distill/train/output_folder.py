"""Whether a run may write into a folder: never over a result, always over what is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_distill.errors import InputError
from mlx_distill.models.adapter import ADAPTER_FILE, CONFIG_FILE, MOMENT
from mlx_distill.train.checkpoint import CHECKPOINT_FILE, METRICS_FILE, RUN_FILE
from mlx_distill.train.config import TrainConfig

UNTRAINED = "best, step 0"
"""The moment of the adapter that a run begins with."""


def refuse_to_overwrite(config: TrainConfig) -> None:
    """InputError where the folder holds anything but the unfinished start of a run, and leave was not given."""
    if config.resume or config.force or not config.adapter.exists():
        return
    if (config.adapter / CHECKPOINT_FILE).exists() and not (config.adapter / RUN_FILE).exists():
        raise InputError(
            f"{config.adapter} holds a run that was interrupted.", "Pass --resume to go on, or --force to train anew."
        )
    if not config.adapter.is_dir() or not is_unfinished_start(config.adapter):
        raise InputError(
            f"{config.adapter} exists already.", "Pass --force to train anew, or choose another --adapter."
        )


def is_unfinished_start(folder: Path) -> bool:
    """Whether a folder holds no more than what a run writes before its first checkpoint: nothing was learnt yet.

    That is metrics.jsonl with no line but that of step 0, and an adapter that says it is of step 0. One that came from
    elsewhere, or that an earlier run left, says something else or nothing.
    """
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}  # what a kill cut short
    if not names:
        return True
    if not {METRICS_FILE} <= names <= {METRICS_FILE, ADAPTER_FILE, CONFIG_FILE}:
        return False
    try:
        if (folder / METRICS_FILE).read_text(encoding="utf-8").count("\n") > 1:
            return False
        if ADAPTER_FILE not in names:
            return True
        loaded: Any = mx.load(str(folder / ADAPTER_FILE), return_metadata=True)
    except (OSError, ValueError, RuntimeError):
        return False
    return bool(loaded[1].get(MOMENT) == UNTRAINED)
