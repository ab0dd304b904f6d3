"""Parts that tests of training share."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    """The adapter of a folder."""
    return {name: np.array(value) for name, value in mx.load(str(folder / "adapters.safetensors")).items()}


def same_weights(one: Path, other: Path) -> bool:
    """True where two folders hold the same adapter, bit for bit."""
    first, second = weights_of(one), weights_of(other)
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def metrics_of(folder: Path) -> list[dict]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def quantized(base: Path, folder: Path) -> Path:
    """A copy of `base` in 4 bits, as `mlx_lm.convert -q` makes it."""
    from mlx_lm.utils import load_model, quantize_model, save_config, save_model

    shutil.copytree(base, folder)
    (folder / "model.safetensors").unlink()
    model, config = quantize_model(*load_model(base), group_size=32, bits=4)
    save_model(folder, model)
    save_config(config, folder / "config.json")
    return folder
