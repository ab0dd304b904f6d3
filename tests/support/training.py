"""Helpers for tests of training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_distill.models.load import Student
from mlx_distill.models.tokenize import TokenizedChat, render
from mlx_distill.records import Example
from mlx_distill.storage.jsonl import read_jsonl


def read_weights(folder: Path) -> dict[str, NDArray[Any]]:
    """Return the adapter of a folder."""
    loaded: Any = mx.load(str(folder / "adapters.safetensors"))
    return {name: np.array(value) for name, value in loaded.items()}


def same_weights(one: Path, other: Path) -> bool:
    """Return True if two folders hold the same adapter, bit for bit."""
    first, second = read_weights(one), read_weights(other)
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def tokenized(path: Path, student: Student) -> tuple[TokenizedChat, ...]:
    """Return the rows of a split as `sft` tokenises them."""
    examples = read_jsonl(path, Example.from_json)
    return tuple(render(student.tokenizer, example.messages) for example in examples)


def quantized(base: Path, folder: Path) -> Path:
    """Make a 4-bit copy of `base`, as `mlx_lm.convert -q` does."""
    from mlx_lm.utils import load_model, quantize_model, save_config, save_model

    shutil.copytree(base, folder)
    (folder / "model.safetensors").unlink()
    model, config = quantize_model(*load_model(base), group_size=32, bits=4)
    save_model(folder, model)
    save_config(config, folder / "config.json")
    return folder
