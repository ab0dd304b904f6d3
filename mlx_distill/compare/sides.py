"""The two sides of a comparison: what each is called, where it is, what is known of it, and its turn in memory.

Everywhere here `base` is the first side and `distilled` the second: a student with its adapter off and on, or any two
adapters or models. What they are called in the report is their `name`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx.utils import tree_flatten

from mlx_distill import device
from mlx_distill.compare.config import AnswerConfig, CompareConfig, PairConfig
from mlx_distill.compare.history import Course, read_course
from mlx_distill.errors import InputError, MissingError
from mlx_distill.models.adapter import ADAPTER_FILE, CONFIG_FILE, Adapter, attach, origin_of, read_adapter_config
from mlx_distill.models.load import Student, load_student
from mlx_distill.models.provenance import Provenance

SIDES = ("base", "distilled")


@dataclass(frozen=True)
class Side:
    """One of the two that are compared."""

    name: str
    model: Path
    adapter: Path | None
    seed: int
    """Of its sampling."""


@dataclass(frozen=True)
class StudentFacts:
    """A model folder."""

    path: Path
    model_type: str
    n_parameters: int
    quantized: bool
    source: str
    """What it was converted from; empty where its folder does not say."""
    revision: str
    """The commit of a Hub repository; empty for files."""


@dataclass(frozen=True)
class AdapterFacts:
    """What was learnt."""

    folder: Path
    file: str
    choice: str
    """Which moment of training it is, such as `best, step 40`; empty where the file does not say."""
    trained_on: str
    """The model folder that it was trained on; empty where the folder does not say."""
    data: str
    """The folder of the rows that it was trained from; empty where the folder does not say."""
    rank: int
    scale: float
    n_trainable: int
    changes_nothing: bool

    @property
    def origin(self) -> str:
        """See `origin_of`."""
        return origin_of(self.folder, self.choice)


@dataclass(frozen=True)
class SideFacts:
    """What is known of a side."""

    name: str
    model: StudentFacts
    adapter: AdapterFacts | None
    """None for a model without one."""
    course: Course | None
    """How its adapter's training went; None where nothing says."""

    def is_same_as(self, other: SideFacts) -> bool:
        """Whether the two are one thing, compared with itself."""
        return (self.model, self.adapter) == (other.model, other.adapter)


def sides_of(config: AnswerConfig) -> dict[str, Side]:
    """`base` and `distilled`, in this order; MissingError or InputError where a folder is neither adapter nor model."""
    if isinstance(config, CompareConfig):
        return {
            "base": Side("base", config.model, None, config.seed),
            "distilled": Side("distilled", config.model, config.adapter, config.seed),
        }
    assert isinstance(config, PairConfig)
    first, second = _side(config.first, config), _side(config.second, config)
    names = _names(config.first, config.second)
    # A thing compared with itself shows what sampling alone does, so its second half must be drawn anew.
    seed = config.seed + (first == second)
    return {
        "base": Side(names[0], *first, config.seed),
        "distilled": Side(names[1], *second, seed),
    }


def _side(folder: Path, config: PairConfig) -> tuple[Path, Path | None]:
    """The model and the adapter that a folder stands for."""
    if not (folder / CONFIG_FILE).exists():
        if not (folder / "config.json").exists():
            raise MissingError(
                f"{folder} holds neither an adapter ({CONFIG_FILE}) nor a model (config.json).",
                "Name two folders of adapters or models, such as adapters/demo and models/demo.",
            )
        return folder, None
    named = config.model or read_adapter_config(folder).get("model")
    if not named:
        raise InputError(f"{folder / CONFIG_FILE} does not say which model it belongs to.", "Say it with --model.")
    return Path(str(named)), folder


def _names(first: Path, second: Path) -> tuple[str, str]:
    """The last parts of both paths, or more of them until they differ."""
    one, other = first.resolve(), second.resolve()
    if one == other:
        return one.name, f"{one.name} again"
    for n_parts in range(1, max(len(one.parts), len(other.parts)) + 1):
        names = "/".join(one.parts[-n_parts:]), "/".join(other.parts[-n_parts:])
        if names[0] != names[1]:
            break
    return names


def names_of(sides: Mapping[str, Side | SideFacts]) -> dict[str, str]:
    """What those who answer are called."""
    return {**{key: side.name for key, side in sides.items()}, "teacher": "teacher"}


class Seats:
    """One model in memory at a time. Sides of the same model take turns on one copy of it, their adapters switched."""

    def __init__(self) -> None:
        self._student: Student | None = None
        self._adapter: Adapter | None = None

    def take(self, side: Side) -> tuple[Student, Adapter | None]:
        """The side's student, ready, and its adapter."""
        if self._adapter and side.adapter and self._adapter.folder != side.adapter:
            self._adapter.enabled = False
            self._adapter = None
        if self._student is None or self._student.path.resolve() != side.model.resolve():
            self._student = self._adapter = None  # two models at once may not fit the memory
            device.release_memory()
            self._student = load_student(side.model)
        if side.adapter and not self._adapter:
            self._adapter = attach(self._student, side.adapter)
        if self._adapter:
            self._adapter.enabled = side.adapter is not None
        return self._student, self._adapter if side.adapter else None


def side_facts(side: Side, student: Student, adapter: Adapter | None) -> SideFacts:
    """What the loaded side is."""
    origin = Provenance.load(side.model)
    model = StudentFacts(
        path=side.model,
        model_type=student.config["model_type"],
        n_parameters=student.n_parameters,
        quantized=student.quantized,
        source=origin.source if origin else "",
        revision=origin.revision if origin else "",
    )
    if not adapter:
        return SideFacts(side.name, model, None, None)
    return SideFacts(side.name, model, adapter_facts(adapter), read_course(adapter.folder))


def adapter_facts(adapter: Adapter) -> AdapterFacts:
    """The adapter's shape and which moment of training it holds."""
    n_trainable = sum(
        value.size
        for layer in adapter.layers.values()
        for name, value in tree_flatten(layer.parameters())
        if name.startswith("lora_") or name == "m"  # "m" is DoRA's magnitude
    )
    training = training_record(adapter.folder)
    return AdapterFacts(
        folder=adapter.folder,
        file=ADAPTER_FILE,
        choice=adapter.moment,
        trained_on=str(training.get("model", "")),
        data=str(training.get("data", "")),
        rank=adapter.rank,
        scale=adapter.scale,
        n_trainable=n_trainable,
        changes_nothing=adapter.is_zero,
    )


def training_record(folder: Path) -> dict[str, Any]:
    """`run.json` of a folder that training wrote; empty for an adapter that came from elsewhere."""
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return {**record["settings"], **record["result"]}
    except (OSError, ValueError, KeyError, TypeError):  # missing, broken, or of another program
        return {}
