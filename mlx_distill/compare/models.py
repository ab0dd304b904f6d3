"""The two models of a comparison, `a` and `b`: which they are, how they are loaded, and what is known about them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from mlx.utils import tree_flatten

from mlx_distill import device
from mlx_distill.compare.config import AnswerConfig, CompareConfig, PairConfig
from mlx_distill.compare.judge import JudgeInfo
from mlx_distill.compare.report import AdapterInfo, AnsweredPrompt, CheckedAnswer, ModelInfo
from mlx_distill.errors import InputError, MissingError
from mlx_distill.models.adapter import Adapter, load_adapter, read_adapter_config
from mlx_distill.models.fidelity import RowFidelity
from mlx_distill.models.load import Student, load_student
from mlx_distill.models.provenance import Provenance
from mlx_distill.models.score import RowScore
from mlx_distill.records import Example
from mlx_distill.storage import files
from mlx_distill.training_run import TrainingRun


class ModelSpec(msgspec.Struct, frozen=True):
    """A model to compare."""

    name: str
    model: Path
    adapter: Path | None
    seed: int
    """Seed of its sampling."""


class ModelRun(msgspec.Struct, frozen=True):
    """One model with its scores, and what it takes to generate all its answers at the same time."""

    info: ModelInfo
    scores: tuple[RowScore, ...]
    """One for each held-out row."""
    tokens_per_second: float
    peak_bytes: int
    """Peak memory of MLX arrays, weights included."""
    fidelity: tuple[RowFidelity, ...] | None = None
    """Comparison with the teacher on each held-out row. None without a teacher on this machine."""

    @property
    def name(self) -> str:
        return self.info.name


class Comparison(msgspec.Struct, frozen=True):
    """The data of a comparison: the input of every metric."""

    a: ModelRun
    b: ModelRun
    rows: Sequence[Example]
    """The held-out rows, in the order of the scores."""
    train_rows: Sequence[Example]
    answers: Sequence[AnsweredPrompt]
    judge: JudgeInfo | None = None
    seed: int = 0
    teacher: str = ""

    @property
    def rows_by_category(self) -> dict[str, list[int]]:
        """The indices of the held-out rows of each category."""
        categories: dict[str, list[int]] = {}
        for index, row in enumerate(self.rows):
            categories.setdefault(row.category, []).append(index)
        return categories

    @property
    def answers_by_name(self) -> tuple[tuple[str, list[CheckedAnswer]], ...]:
        """Everyone who answered, by name, with their answers: a, b, and the teacher if it answered."""
        found = ((self.a.name, [one.a for one in self.answers]), (self.b.name, [one.b for one in self.answers]))
        by_teacher = [one.teacher for one in self.answers if one.teacher]
        return (*found, ("teacher", by_teacher)) if by_teacher else found

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.answers_by_name)


def model_specs(config: AnswerConfig) -> tuple[ModelSpec, ModelSpec]:
    """Return `a` and `b`. Raises MissingError or InputError if a folder is neither an adapter nor a model."""
    if isinstance(config, CompareConfig):
        base = ModelSpec("base", config.model, None, config.seed)
        return base, ModelSpec("distilled", config.model, config.adapter, config.seed)
    assert isinstance(config, PairConfig)
    a, b = _model_and_adapter(config.a, config), _model_and_adapter(config.b, config)
    names = _names(config.a, config.b)
    # A model compared with itself shows what sampling alone does, so it must sample with another seed.
    return ModelSpec(names[0], *a, config.seed), ModelSpec(names[1], *b, config.seed + (a == b))


def _model_and_adapter(folder: Path, config: PairConfig) -> tuple[Path, Path | None]:
    if not (folder / files.ADAPTER_CONFIG).exists():
        if not (folder / files.MODEL_CONFIG).exists():
            raise MissingError(
                f"{folder} contains neither an adapter ({files.ADAPTER_CONFIG}) nor a model ({files.MODEL_CONFIG}).",
                "Name two folders of adapters or models, such as adapters/demo and models/demo.",
            )
        return folder, None
    model = config.model or read_adapter_config(folder).get("model")
    if not model:
        raise InputError(f"{folder / files.ADAPTER_CONFIG} does not name its base model.", "Name it with --model.")
    return Path(str(model)), folder


def _names(a: Path, b: Path) -> tuple[str, str]:
    """Return the last parts of both paths, as many as it takes to tell them apart."""
    a, b = a.resolve(), b.resolve()
    if a == b:
        return a.name, f"{a.name} again"
    n_parts = next(n for n in range(1, max(len(a.parts), len(b.parts)) + 1) if a.parts[-n:] != b.parts[-n:])
    return "/".join(a.parts[-n_parts:]), "/".join(b.parts[-n_parts:])


class ModelLoader:
    """Keeps one model in memory at a time. Specs of the same model share its weights; their adapters are switched."""

    def __init__(self) -> None:
        self._student: Student | None = None
        self._adapter: Adapter | None = None

    def load(self, spec: ModelSpec) -> tuple[Student, Adapter | None]:
        """Return the student, ready to use, and its adapter."""
        if self._adapter and spec.adapter and self._adapter.folder != spec.adapter:
            self._adapter.enabled = False
            self._adapter = None
        if self._student is None or self._student.path.resolve() != spec.model.resolve():
            self._student = self._adapter = None  # two models at once may not fit into memory
            device.release_memory()
            self._student = load_student(spec.model)
        if spec.adapter and not self._adapter:
            self._adapter = load_adapter(self._student, spec.adapter)
            self._adapter.cast()
        if self._adapter:
            self._adapter.enabled = spec.adapter is not None
        return self._student, self._adapter if spec.adapter else None


def model_info(spec: ModelSpec, student: Student, adapter: Adapter | None) -> ModelInfo:
    """Describe a loaded model and its adapter."""
    origin = Provenance.load(spec.model)
    info = ModelInfo(
        name=spec.name,
        path=spec.model,
        model_type=student.config["model_type"],
        n_parameters=student.n_parameters,
        source=origin.source if origin else "",
        revision=origin.revision if origin else "",
    )
    if not adapter:
        return info
    weights = (item for layer in adapter.layers.values() for item in tree_flatten(layer.parameters()))
    found = AdapterInfo(
        folder=adapter.folder,
        checkpoint=adapter.checkpoint,
        rank=adapter.rank,
        scale=adapter.scale,
        n_trainable=sum(value.size for name, value in weights if name.startswith("lora_") or name == "m"),  # m: DoRA
        changes_nothing=adapter.is_zero,
    )
    return msgspec.structs.replace(info, adapter=found, training=TrainingRun.load(adapter.folder))
