"""A LoRA adapter on a loaded student, switched on and off without a second copy of the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.tuner.utils import load_adapters

from mlx_distill.errors import InputError, MissingError
from mlx_distill.events import Note, Report, ignore
from mlx_distill.models.load import Student, load_student

ADAPTER_FILE = "adapters.safetensors"
CONFIG_FILE = "adapter_config.json"
MOMENT = "moment"
"""What training writes into the metadata of the weights, such as `best, step 40`; with them, or not at all."""
_TRAIN = "Train one with `mlx-distill train`, or name another adapter folder."


class Adapter:
    """The adapted layers of a student. While `enabled` is False the model is the base, bit for bit."""

    def __init__(self, student: Student, folder: Path, config: dict[str, Any]) -> None:
        self.folder = folder
        self.config = config
        self.moment = _moment_of(folder)
        """Which moment of training it is; empty where the file does not say."""
        self._student = student
        self._adapted: dict[str, nn.Module] = {
            name: module for name, module in student.model.named_modules() if "lora_b" in module
        }
        self._enabled = True

    @property
    def enabled(self) -> bool:
        return self._enabled

    @enabled.setter
    def enabled(self, wanted: bool) -> None:
        if wanted != self._enabled:
            layers = [(name, layer if wanted else base_of(layer)) for name, layer in self._adapted.items()]
            self._student.model.update_modules(tree_unflatten(layers))
            self._enabled = wanted

    @property
    def origin(self) -> str:
        """See `origin_of`."""
        return origin_of(self.folder, self.moment)

    @property
    def rank(self) -> int:
        return int(self.config["lora_parameters"]["rank"])

    @property
    def scale(self) -> float:
        """What the update is multiplied by: alpha / rank."""
        return float(self.config["lora_parameters"]["scale"])

    @property
    def layers(self) -> dict[str, nn.Module]:
        """Module path in the model to its adapted layer."""
        return self._adapted

    @property
    def is_zero(self) -> bool:
        """True where it changes nothing: no training step was ever taken."""
        return not any(bool(mx.any(layer.lora_b != 0)) for layer in self._adapted.values())


def origin_of(folder: Path, moment: str) -> str:
    """The folder, and the moment where it is known: `adapters/mine (best, step 40)`."""
    return f"{folder} ({moment})" if moment else str(folder)


def attach(student: Student, folder: Path) -> Adapter:
    """Put an adapter folder's weights onto a student, enabled.

    Raises MissingError where there is no adapter, InputError (every mismatch together) where it belongs to another
    model.
    """
    config = read_adapter_config(folder)
    try:
        load_adapters(student.model, str(folder))
    except (ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        first, *problems = str(error).splitlines() or [type(error).__name__]
        raise InputError(
            f"{folder}: this adapter does not fit {student.path}: {first.rstrip(':')}",
            "Name the model that it was trained on, or train again.",
            problems[:10],
        ) from error
    student.model.eval()
    adapter = Adapter(student, folder, config)
    mx.eval([value for _, value in tree_flatten(student.model.trainable_parameters())])
    return adapter


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """`adapter_config.json` in mlx-lm's format, with the fields that loading needs checked and the weights beside it.

    Quick: commands ask it before they load a model, which may take a minute.
    """
    file = folder / CONFIG_FILE
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise MissingError(f"{file}: there is no adapter here.", _TRAIN) from error
    except ValueError as error:
        raise InputError(f"{file}: not valid JSON: {error}", _TRAIN) from error
    kind = config.get("fine_tune_type", "lora") if isinstance(config, dict) else "lora"
    if kind not in ("lora", "dora"):
        model = config.get("model") or "MODEL"
        raise InputError(
            f"{folder} holds all weights of a model (fine_tune_type {kind!r}), no update to switch on and off.",
            f"Make a model of it: python -m mlx_lm fuse --model {model} --adapter-path {folder} --save-path OUT. "
            "Then name OUT as the model.",
        )
    parameters = config.get("lora_parameters") if isinstance(config, dict) else None
    if not isinstance(parameters, dict) or not {"rank", "scale", "dropout"} <= set(parameters):
        raise InputError(f'{file}: "lora_parameters" with rank, scale and dropout is missing.', _TRAIN)
    if not (folder / ADAPTER_FILE).is_file():
        raise MissingError(f"{folder}: {ADAPTER_FILE} is missing.", _TRAIN)
    return config  # type: ignore[no-any-return]


def _moment_of(folder: Path) -> str:
    loaded: Any = mx.load(str(folder / ADAPTER_FILE), return_metadata=True)
    return str(loaded[1].get(MOMENT, ""))


def base_of(layer: nn.Module) -> nn.Module:
    """The frozen layer inside an adapted one."""
    return layer.linear if "linear" in layer else layer.embedding


def open_student(model: Path, adapter: Path | None, report: Report = ignore) -> tuple[Student, Adapter | None]:
    """Load a student and put an adapter on it, if one is named. Raises what `load_student` and `attach` raise."""
    report(Note(f"Loading {model} ..."))
    if adapter:
        read_adapter_config(adapter)  # what is missing is said before the model is loaded
    student = load_student(model)
    attached = attach(student, adapter) if adapter else None
    if attached:
        report(Note(f"With the adapter {attached.origin}."))
    return student, attached
