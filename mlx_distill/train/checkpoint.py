"""The adapter folder: best and last adapter in mlx-lm's format, and a checkpoint to resume from.

Every file is written under a temporary name and renamed, so a kill leaves the previous one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import msgspec
from mlx.utils import tree_flatten, tree_unflatten

from mlx_distill.errors import InputError, MissingError
from mlx_distill.formatting import format_percent
from mlx_distill.models.adapter import CHECKPOINT_KEY
from mlx_distill.storage import files
from mlx_distill.storage.atomic import new_file, write_json
from mlx_distill.train.config import TrainConfig

LAST = "last"
"""The folder of the last adapter, in that of the best one."""
DIGEST_BYTES = 1 << 20


class Evaluation(msgspec.Struct, frozen=True):
    """Figures on valid.jsonl after a step, as means over its answer tokens."""

    step: int
    loss: float
    """The cross-entropy."""
    accuracy: float
    kl: float | None = None
    """KL(teacher || student), if the objective knows the teacher's probabilities. Then it chooses the best adapter."""

    def is_better_than(self, other: Evaluation) -> bool:
        if self.kl is not None and other.kl is not None:
            return self.kl < other.kl
        return self.loss < other.loss

    def __str__(self) -> str:
        kl = "" if self.kl is None else f"valid KL {self.kl:.4f}, "
        return f"{kl}valid loss {self.loss:.3f}, accuracy {format_percent(self.accuracy)}"


class TrainState(msgspec.Struct):
    """The position of a run. Every checkpoint has it; a resumed run continues from exactly here."""

    settings: dict[str, Any]
    """The settings that decide the result. A checkpoint of other settings is refused."""
    before: Evaluation
    """At step 0."""
    best: Evaluation
    step: int = 0
    epoch: int = 0
    position: int = 0
    """Steps done in this epoch."""
    evals_without_improvement: int = 0
    supervised_tokens: int = 0
    step_seconds: float = 0.0
    """Time in steps, without evaluations."""
    seconds: float = 0.0
    """Time since the start, evaluations included."""
    peak_bytes: int = 0

    def advance(self, supervised_tokens: int, seconds: float, steps_per_epoch: int) -> None:
        """Count a step."""
        self.step += 1
        self.position += 1
        if self.position == steps_per_epoch:
            self.epoch, self.position = self.epoch + 1, 0
        self.supervised_tokens += supervised_tokens
        self.step_seconds += seconds

    @property
    def between_epochs(self) -> bool:
        return self.position == 0


def refuse_to_overwrite(config: TrainConfig) -> None:
    """Raise InputError if the folder holds a run or anything else, and neither resume nor force is set."""
    folder = config.adapter
    if config.resume or config.force or not folder.exists():
        return
    if (folder / files.CHECKPOINT).exists() and not (folder / files.TRAINING_RUN).exists():
        raise InputError(f"{folder} holds an interrupted run.", "Pass --resume to continue, or --force to start again.")
    # A run that is killed before its first checkpoint leaves only hidden temporary files and the metrics of step 0.
    if not folder.is_dir() or any(p.name != files.METRICS and not p.name.startswith(".") for p in folder.iterdir()):
        raise InputError(f"{folder} already exists.", "Pass --force to train again, or choose another --adapter.")


def model_digest(folder: Path) -> str:
    """Return a hash of the model's files, so that a run does not resume on another model of the same shape.

    Reads the size and both ends of each weights file.
    """
    digest = hashlib.sha256((folder / files.MODEL_CONFIG).read_bytes())
    for file in sorted(folder.glob("model*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as opened:
            digest.update(opened.read(DIGEST_BYTES))
            opened.seek(max(size - DIGEST_BYTES, 0))
            digest.update(opened.read(DIGEST_BYTES))
    return digest.hexdigest()[:16]


def save_adapter(folder: Path, model: nn.Module, config: Mapping[str, Any], label: str) -> None:
    """Write the trained weights as an adapter folder that mlx-lm reads. `label` names the step: `best, step 40`."""
    write_json(folder / files.ADAPTER_CONFIG, config)
    _save(folder / files.ADAPTER_WEIGHTS, dict(tree_flatten(model.trainable_parameters())), {CHECKPOINT_KEY: label})


def save_checkpoint(folder: Path, model: nn.Module, optimizer: optim.Optimizer, state: TrainState) -> None:
    """Write weights, optimiser state and position as one file. Random state needs no saving: each step is seeded."""
    arrays = {f"adapter.{name}": value for name, value in tree_flatten(model.trainable_parameters())}
    arrays |= {f"optimizer.{name}": value for name, value in tree_flatten(optimizer.state)}
    _save(folder / files.CHECKPOINT, arrays, {"state": msgspec.json.encode(state).decode()})


def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: optim.Optimizer, settings: Mapping[str, Any]
) -> TrainState:
    """Restore weights and optimiser from a checkpoint and return the position.

    Raises MissingError without a checkpoint, InputError for one of another version, model or other settings.
    """
    path = folder / files.CHECKPOINT
    if not path.exists():
        raise MissingError(f"{folder} has no checkpoint to resume from.", "Run without --resume.")
    try:
        loaded: Any = mx.load(str(path), return_metadata=True)
        arrays, metadata = loaded
        state = msgspec.json.decode(metadata["state"], type=TrainState)
    except (RuntimeError, ValueError, KeyError) as error:
        message = f"{path}: not a checkpoint of this version: {error}"
        raise InputError(message, "Pass --force to start again.") from error
    problems = [
        f"{name}: was {state.settings.get(name)!r}, is {value!r}"
        for name, value in settings.items()
        if value != state.settings.get(name)
    ]
    if problems:
        advice = "Use the settings of that run, or pass --force to start again."
        raise InputError(f"{path} is from a run with other settings.", advice, problems)
    restored: dict[str, list[tuple[str, mx.array]]] = {"adapter": [], "optimizer": []}
    for name, value in arrays.items():
        kind, _, rest = name.partition(".")
        restored[kind].append((rest, value))
    model.load_weights(restored["adapter"], strict=False)
    optimizer.init(model.trainable_parameters())
    optimizer.state = tree_unflatten(restored["optimizer"])
    mx.eval(model.trainable_parameters(), optimizer.state)
    return state


def _save(path: Path, arrays: dict[str, mx.array], metadata: dict[str, str]) -> None:
    with new_file(path, replace=True) as scratch, scratch.open("wb") as file:
        mx.save_safetensors(file, arrays, metadata={"format": "mlx", **metadata})
