"""One training run of the recipe sweep: its settings, its line in the journal, and how it resumes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mlx_distill import cpu, device
from mlx_distill.events import Event, Note, Progress
from mlx_distill.records import Example, content_hash
from mlx_distill.storage import files
from mlx_distill.storage.atomic import jsonl_text, write_texts
from mlx_distill.storage.journal import Journal
from mlx_distill.storage.jsonl import read_jsonl
from mlx_distill.train import TrainConfig
from mlx_distill.training_run import TrainingRun


@dataclass(frozen=True)
class Recipe:
    """The settings that the sweep decides. All have a value here, so a line of the journal keeps its meaning if the
    defaults of `train` change."""

    learning_rate: float = 5e-4
    rank: int = 8
    epochs: int = 3
    batch_size: int = 4
    alpha: float = 32.0
    dropout: float = 0.0
    method: str = "lora"
    schedule: str = "cosine"
    warmup: float = 0.1
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Rows:
    """The rows of a run: training and validation."""

    train: tuple[Example, ...]
    valid: tuple[Example, ...]

    @property
    def digest(self) -> str:
        return content_hash([[row.to_json() for row in rows] for rows in (self.train, self.valid)])[:16]


@dataclass(frozen=True)
class Evaluation:
    """Loss and token accuracy over the answer tokens of `valid` after some epochs."""

    epoch: float
    loss: float
    accuracy: float


@dataclass(frozen=True)
class Done:
    """A finished run from the journal."""

    part: str
    recipe: Recipe
    rows: str
    evaluations: tuple[Evaluation, ...]

    @property
    def best(self) -> Evaluation:
        return min(self.evaluations, key=lambda evaluation: evaluation.loss)

    @property
    def before(self) -> Evaluation:
        return self.evaluations[0]

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Done:
        evaluations = tuple(Evaluation(*values) for values in line["valid"])
        return cls(line["part"], Recipe(**line["recipe"]), line["rows"], evaluations)


class Bench:
    """The student, the work folder for adapters, and the journal of results with one sample of data."""

    def __init__(self, model: Path, work: Path, journal: Path, sample: str) -> None:
        self.model, self.work, self.journal, self.sample = model, work, journal, sample

    def lines(self) -> list[dict[str, Any]]:
        """Return all lines of this sample and student."""
        every = read_jsonl(self.journal, _as_dict) if self.journal.exists() else []
        return [line for line in every if line["sample"] == self.sample and line["student"] == self.model.name]

    def has(self, line: Mapping[str, Any]) -> bool:
        """Return True if the journal has a line with all fields of `line`."""
        return any(line.items() <= other.items() for other in self.lines())

    def note(self, line: Mapping[str, Any]) -> None:
        """Add a line to the journal, with sample, student, machine, versions and time."""
        subject = {"sample": self.sample, "student": self.model.name}
        machine = {"processor": device.cpu_name(), "cores": cpu.cores(), "versions": device.versions()}
        with Journal(self.journal) as journal:
            journal.append({**line, **subject, **machine, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())})

    def found(self, recipe: Recipe, rows: Rows) -> Done | None:
        """Return the run of these settings on these rows, of any part of the sweep. None: the journal has none."""
        for line in self.lines():
            if line["kind"] == "run" and Recipe(**line["recipe"]) == recipe and line["rows"] == rows.digest:
                return Done.from_json(line)
        return None

    def adapter(self, recipe: Recipe, rows: Rows) -> Path:
        """Return the adapter folder of a run."""
        return self.work / content_hash([asdict(recipe), rows.digest])[:12] / "adapter"

    def train(self, part: str, recipe: Recipe, rows: Rows, *, need_adapter: bool = False) -> Done:
        """Train, or resume a killed run, or read the figures from the journal."""
        adapter = self.adapter(recipe, rows)
        done = self.found(recipe, rows)
        if done and not (need_adapter and not (adapter / files.TRAINING_RUN).exists()):
            return replace(done, part=part)
        print(f"{part}: {settings_text(recipe)} on {len(rows.train)} rows", flush=True)
        splits = {files.TRAIN: rows.train, files.VALID: rows.valid}
        adapter.mkdir(parents=True, exist_ok=True)
        write_texts(
            {adapter.parent / name: jsonl_text(row.to_json() for row in split) for name, split in splits.items()}
        )
        if not (adapter / files.TRAINING_RUN).exists():
            resume = (adapter / files.CHECKPOINT).exists()
            settings = {**asdict(recipe), "resume": resume, "force": not resume}
            from mlx_distill.train.run import run as train  # imports MLX, which `--table` does not need

            train(TrainConfig(self.model, adapter.parent, adapter, **settings), _say)
            device.release_memory()
        run = TrainingRun.load(adapter)
        assert run
        figures = ("n_trainable", "n_train_rows", "n_valid_rows", "n_valid_tokens", "steps", "seconds", "peak_bytes")
        line = {
            "kind": "run",
            "part": part,
            "recipe": asdict(recipe),
            "rows": rows.digest,
            "valid": [[p.epoch, p.valid_loss, p.valid_accuracy] for p in run.points if p.valid_loss is not None],
            **{name: run.result[name] for name in figures},
        }
        if not done:
            self.note(line)
        return Done.from_json(line)


def settings_text(recipe: Recipe) -> str:
    """Return the settings that the sweep changes, in a few words."""
    dropout = f"dropout {recipe.dropout:g}, " if recipe.dropout else ""
    return (
        f"rate {recipe.learning_rate:g}, rank {recipe.rank}, {dropout}{recipe.epochs} "
        f"{'epoch' if recipe.epochs == 1 else 'epochs'}, batch {recipe.batch_size}, seed {recipe.seed}"
    )


def _say(event: Event) -> None:
    """Print notes, and every tenth step."""
    if isinstance(event, Note):
        print(f"  {event.text}", flush=True)
    elif isinstance(event, Progress) and event.job == "train" and event.done % 10 == 0:
        print(f"  step {event.done} of {event.total}: {event.note}", flush=True)


def _as_dict(data: object) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ValueError("a line must be an object")
    return data


def read_split(data: Path, split: str) -> tuple[Example, ...]:
    """Read the rows of a split."""
    return tuple(read_jsonl(data / f"{split}.jsonl", Example.from_json, "Make it with `mlx-distill prepare`."))


def best_of(runs: Sequence[Done]) -> Done:
    """Return the run with the lowest loss on `valid`; the earlier one of two that are equal."""
    return min(runs, key=lambda run: run.best.loss)
