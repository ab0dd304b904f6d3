"""A LoRA adapter on a loaded student, switched on and off without a second copy of the weights."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.tuner.utils import load_adapters

from mlx_distill.errors import InputError, MissingError
from mlx_distill.events import Note, Report, ignore
from mlx_distill.formatting import first_line
from mlx_distill.models.load import Student, file_errors, load_student, without_bom
from mlx_distill.storage.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from mlx_distill.storage.jsonl import read_json, refuse_pipes

CHECKPOINT_KEY = "moment"
"""Metadata key of the weights file (the old name of a checkpoint). Its value is text such as `best, step 40`."""
MAX_RANK = 65536
_TRAIN = "Train one with `mlx-distill train`, or name another adapter folder."


class Adapter:
    """The adapted layers of a student. While `enabled` is False, the model is the base, bit for bit."""

    def __init__(self, student: Student, folder: Path, config: dict[str, Any], checkpoint: str) -> None:
        self.folder = folder
        self.config = config
        """`adapter_config.json`."""
        self.checkpoint = checkpoint
        """The training checkpoint. Empty if the file does not name it."""
        self.layers = adapted_layers(student.model)
        self._student = student
        self._enabled = True

    @property
    def enabled(self) -> bool:
        return self._enabled

    @enabled.setter
    def enabled(self, wanted: bool) -> None:
        if wanted != self._enabled:
            switch(self._student.model, self.layers, on=wanted)
            self._enabled = wanted

    def cast(self) -> None:
        """Compute with LoRA matrices in the type of the model. mlx-lm computes with 16-bit activations in float32.

        DoRA keeps float32 matrices, because it computes a norm from them.
        """
        for layer in self.layers.values():
            if "m" not in layer:
                layer.lora_a, layer.lora_b = (
                    value.astype(self._student.dtype) for value in (layer.lora_a, layer.lora_b)
                )
        mx.eval([layer.parameters() for layer in self.layers.values()])

    @property
    def label(self) -> str:
        """The folder, and the checkpoint if it is known: `adapters/mine (best, step 40)`."""
        return f"{self.folder} ({self.checkpoint})" if self.checkpoint else str(self.folder)

    @property
    def rank(self) -> int:
        return int(self.config["lora_parameters"]["rank"])

    @property
    def scale(self) -> float:
        """The factor of the update: alpha / rank."""
        return float(self.config["lora_parameters"]["scale"])

    @property
    def is_zero(self) -> bool:
        """True if the adapter changes nothing: training never took a step."""
        return not any(bool(mx.any(layer.lora_b != 0)) for layer in self.layers.values())


def load_adapter(student: Student, folder: Path) -> Adapter:
    """Put an adapter folder's weights onto a student, enabled.

    Raises MissingError if there is no adapter, InputError (all mismatches together) if it belongs to another model.
    """
    config = read_adapter_config(folder)
    problem = f"{folder}: this adapter does not fit {student.path}"
    advice = "Name the model that it was trained on, or train again."
    with file_errors(problem, advice), without_bom(folder) as readable:
        load_adapters(student.model, str(readable))
        loaded: Any = mx.load(str(folder / ADAPTER_WEIGHTS), return_metadata=True)
    student.model.eval()
    mx.eval([value for _, value in tree_flatten(student.model.trainable_parameters())])
    return Adapter(student, folder, config, str(loaded[1].get(CHECKPOINT_KEY, "")))


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Read and check `adapter_config.json` (mlx-lm's format). Also checks that the weights file exists.

    Quick: commands call it before they load a model, which may take a minute. Raises MissingError or InputError.
    """
    file = folder / ADAPTER_CONFIG
    if not file.exists():
        raise MissingError(f"{file}: there is no adapter here.", _TRAIN)
    refuse_pipes(folder, _TRAIN)
    config = read_json(file, _TRAIN)
    if not isinstance(config, dict):
        raise InputError(f"{file}: not a JSON object.", _TRAIN)
    _check_low_rank(config, folder)
    _check_parameters(config, file)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise MissingError(f"{folder}: {ADAPTER_WEIGHTS} is missing.", _TRAIN)
    return config


def _check_low_rank(config: dict[str, Any], folder: Path) -> None:
    """Raise InputError for the weights of a whole model, which mlx-lm stores in the same format."""
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        model = str(config.get("model") or "MODEL")
        command = ["python", "-m", "mlx_lm", "fuse", "--model", model, "--adapter-path", str(folder)]
        raise InputError(
            f"{folder} holds all weights of a model (fine_tune_type {first_line(repr(kind))}), "
            "not an update to switch on and off.",
            f"Make a model of it: {shlex.join(command) if model.isprintable() else 'mlx_lm fuse'} --save-path OUT. "
            "Then name OUT as the model.",
        )


def _check_parameters(config: dict[str, Any], file: Path) -> None:
    """Raise InputError for a rank or scale that mlx-lm cannot build layers from."""
    parameters = config.get("lora_parameters")
    if not isinstance(parameters, dict) or not {"rank", "scale", "dropout"} <= set(parameters):
        raise InputError(f'{file}: "lora_parameters" with rank, scale and dropout is missing.', _TRAIN)
    rank, scale = parameters["rank"], parameters["scale"]
    if not (isinstance(rank, int) and 1 <= rank <= MAX_RANK):
        raise InputError(f"{file}: rank is {first_line(repr(rank))}, not a whole number from 1 to {MAX_RANK}.", _TRAIN)
    if not (isinstance(scale, (int, float)) and math.isfinite(scale) and abs(scale) < 1e6):
        raise InputError(f"{file}: scale is {first_line(repr(scale))}, not a finite number.", _TRAIN)


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """Take the adapted layers out of a model within the block: it is the base, bit for bit. Also during training."""
    layers = adapted_layers(model)
    switch(model, layers, on=False)
    try:
        yield
    finally:
        switch(model, layers, on=True)


def adapted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the adapted layers that are in a model now, by their paths."""
    return {name: module for name, module in model.named_modules() if "lora_b" in module}


def switch(model: nn.Module, layers: dict[str, nn.Module], *, on: bool) -> None:
    """Put adapted layers into a model, or the frozen layers inside them."""
    model.update_modules(tree_unflatten([(name, layer if on else base_of(layer)) for name, layer in layers.items()]))


def base_of(layer: nn.Module) -> nn.Module:
    """Return the frozen layer inside an adapted one."""
    return layer.linear if "linear" in layer else layer.embedding


def open_student(model: Path, adapter: Path | None, report: Report = ignore) -> tuple[Student, Adapter | None]:
    """Load a student and the adapter, if one is named, to chat. Raises what `load_student` and `load_adapter` raise."""
    report(Note(f"Loading {model} ..."))
    if not adapter:
        return load_student(model), None
    read_adapter_config(adapter)  # report a missing adapter before the model loads
    student = load_student(model)
    loaded = load_adapter(student, adapter)
    loaded.cast()
    report(Note(f"With the adapter {loaded.label}."))
    return student, loaded
