"""What a run leaves on the disk: best and last adapter in mlx-lm's format, and one file to resume from.

Every file is written aside and renamed, so a kill leaves the one before.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_unflatten

from mlx_distill.errors import InputError, MachineError, MissingError
from mlx_distill.models.adapter import ADAPTER_FILE, CONFIG_FILE, MOMENT
from mlx_distill.storage.atomic import make_folder, sync, sync_folder, write_json

CHECKPOINT_FILE = "checkpoint.safetensors"
RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
LAST_FOLDER = "last"
ENDS_READ = 1 << 20


@dataclass
class State:
    """Where a run is. Saved with every checkpoint; a resumed run goes on from exactly here."""

    step: int = 0
    epoch: int = 0
    position: int = 0
    """Updates done within the epoch."""
    best_step: int = 0
    valid_before: tuple[float, float] = (float("nan"), float("nan"))
    """Loss and accuracy at step 0."""
    valid_best: tuple[float, float] = (float("inf"), 0.0)
    looks_without_gain: int = 0
    supervised_tokens: int = 0
    step_seconds: float = 0.0
    """Spent in steps, evaluation left out."""
    seconds: float = 0.0
    peak_bytes: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    """The settings that decide the result; a checkpoint of other settings is not resumed."""


def digest_of_model(folder: Path) -> str:
    """Changes with the model's files, so that a run is not continued on another model of the same shape. Of each file
    of weights its size and both ends are read, not all of it."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("model*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as opened:
            digest.update(opened.read(ENDS_READ))
            opened.seek(max(size - ENDS_READ, 0))
            digest.update(opened.read(ENDS_READ))
    return digest.hexdigest()[:16]


def save_adapter(folder: Path, model: nn.Module, config: dict[str, Any], moment: str) -> None:
    """Write the trainable weights as an adapter folder that mlx-lm reads; `moment` says which they are."""
    make_folder(folder)
    write_json(folder / CONFIG_FILE, config)
    weights, metadata = dict(tree_flatten(model.trainable_parameters())), {"format": "mlx", MOMENT: moment}
    _write(folder / ADAPTER_FILE, lambda path: mx.save_safetensors(path, weights, metadata=metadata))


def save_checkpoint(folder: Path, model: nn.Module, optimizer: optim.Optimizer, state: State) -> None:
    """Write weights, optimiser state and position as one file. Random numbers need no saving: see `Updater.take`."""
    arrays = {f"adapter.{name}": value for name, value in tree_flatten(model.trainable_parameters())}
    arrays |= {f"optimizer.{name}": value for name, value in tree_flatten(optimizer.state)}
    metadata = {"format": "mlx", "state": json.dumps(asdict(state))}
    _write(folder / CHECKPOINT_FILE, lambda path: mx.save_safetensors(path, arrays, metadata=metadata))


def load_checkpoint(folder: Path, model: nn.Module, optimizer: optim.Optimizer, settings: dict[str, Any]) -> State:
    """Put a checkpoint back and return where the run was.

    Raises MissingError where there is none, InputError where it is of another model or other settings.
    """
    path = folder / CHECKPOINT_FILE
    again = "Use the settings of that run, or pass --force to train anew."
    if not path.exists():
        raise MissingError(f"{folder}: there is no checkpoint to resume from.", "Run without --resume.")
    try:
        loaded: Any = mx.load(str(path), return_metadata=True)
        arrays, metadata = loaded
        values = json.loads(metadata["state"])
        values["valid_before"], values["valid_best"] = tuple(values["valid_before"]), tuple(values["valid_best"])
        state = State(**values)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a checkpoint of this version: {error}", "Pass --force to train anew.") from error
    changed = [name for name in settings if settings[name] != state.settings.get(name)]
    if changed:
        problems = [f"{name}: was {state.settings.get(name)!r}, is {settings[name]!r}" for name in changed]
        raise InputError(f"{path} is of a run with other settings.", again, problems)
    weights = {name.removeprefix("adapter."): value for name, value in arrays.items() if name.startswith("adapter.")}
    expected = {name: value.shape for name, value in tree_flatten(model.trainable_parameters())}
    if {name: value.shape for name, value in weights.items()} != expected:
        raise InputError(f"{path} is of an adapter of another shape or model.", again)
    model.load_weights(list(weights.items()), strict=False)
    kept = [(name.removeprefix("optimizer."), value) for name, value in arrays.items() if name.startswith("optimizer.")]
    optimizer.init(model.trainable_parameters())
    optimizer.state = tree_unflatten(kept)
    mx.eval(model.trainable_parameters(), optimizer.state)
    return state


def _write(path: Path, save: Callable[[str], None]) -> None:
    scratch = path.with_name(f".{path.stem}.part.safetensors")  # mlx insists on the suffix
    try:
        save(str(scratch))
        with scratch.open("rb") as file:
            sync(file.fileno())
        os.replace(scratch, path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        scratch.unlink(missing_ok=True)
        raise MachineError(
            f"{path}: cannot write ({error}).",
            "Free disk space or choose a folder that you may write to; what was saved before is untouched.",
        ) from error
