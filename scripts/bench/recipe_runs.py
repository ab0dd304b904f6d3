"""One training of the recipe sweep: its settings, the line it leaves in the journal, and how it is resumed."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mlx_distill import device
from mlx_distill.events import Event, Note, Progress
from mlx_distill.records import Example, content_hash
from mlx_distill.storage.atomic import jsonl_text, write_texts
from mlx_distill.storage.journal import Journal
from mlx_distill.storage.jsonl import read_jsonl
from mlx_distill.train import TrainConfig


@dataclass(frozen=True)
class Recipe:
    """The settings of a training that the sweep decides. All are written down here, so that a line of the journal
    means the same when the defaults of `train` have moved."""

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
    clip: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Rows:
    """What a run learns from and is watched by."""

    train: tuple[Example, ...]
    valid: tuple[Example, ...]

    @property
    def digest(self) -> str:
        return content_hash([[row.to_json() for row in rows] for rows in (self.train, self.valid)])[:16]


@dataclass(frozen=True)
class Look:
    """Loss and token accuracy over the answer tokens of `valid` after some epochs."""

    epoch: float
    loss: float
    accuracy: float


@dataclass(frozen=True)
class Done:
    """A finished run, as the journal has it."""

    part: str
    recipe: Recipe
    rows: str
    looks: tuple[Look, ...]

    @property
    def best(self) -> Look:
        return min(self.looks, key=lambda look: look.loss)

    @property
    def before(self) -> Look:
        return self.looks[0]

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Done:
        looks = tuple(Look(*look) for look in line["valid"])
        return cls(line["part"], Recipe(**line["recipe"]), line["rows"], looks)


class Bench:
    """The student, the work folder for adapters, and the journal of what was found with one sample of data."""

    def __init__(self, model: Path, work: Path, journal: Path, sample: str) -> None:
        self.model, self.work, self.journal, self.sample = model, work, journal, sample

    def lines(self) -> list[dict[str, Any]]:
        """All that was found so far with this sample and student."""
        every = read_jsonl(self.journal, _as_dict) if self.journal.exists() else []
        return [line for line in every if line["sample"] == self.sample and line["student"] == self.model.name]

    def has(self, line: Mapping[str, Any]) -> bool:
        """True where the journal has a line with all that `line` says."""
        return any(line.items() <= other.items() for other in self.lines())

    def note(self, line: Mapping[str, Any]) -> None:
        """Add a line to the journal, with what it is of, and where, when and with what it was found."""
        of = {"sample": self.sample, "student": self.model.name}
        where = {"processor": device.cpu_name(), "cores": device.cores(), "versions": device.versions()}
        with Journal(self.journal) as journal:
            journal.append({**line, **of, **where, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())})

    def found(self, recipe: Recipe, rows: Rows) -> Done | None:
        """The run of these settings on these rows, where the journal has it; its part is no matter."""
        for line in self.lines():
            if line["kind"] == "run" and Recipe(**line["recipe"]) == recipe and line["rows"] == rows.digest:
                return Done.from_json(line)
        return None

    def adapter(self, recipe: Recipe, rows: Rows) -> Path:
        """Where a run keeps its adapter."""
        return self.work / content_hash([asdict(recipe), rows.digest])[:12] / "adapter"

    def train(self, part: str, recipe: Recipe, rows: Rows, *, need_adapter: bool = False) -> Done:
        """Train, or go on where a killed run stopped, or take the figures from the journal."""
        device.prepare()
        from mlx_distill.train.checkpoint import CHECKPOINT_FILE, METRICS_FILE, RUN_FILE

        adapter = self.adapter(recipe, rows)
        done = self.found(recipe, rows)
        if done and not (need_adapter and not (adapter / RUN_FILE).exists()):
            return replace(done, part=part)
        print(f"{part}: {settings_text(recipe)} on {len(rows.train)} rows", flush=True)
        files = {"train": rows.train, "valid": rows.valid}
        adapter.mkdir(parents=True, exist_ok=True)
        write_texts(
            {adapter.parent / f"{name}.jsonl": jsonl_text(r.to_json() for r in split) for name, split in files.items()}
        )
        if not (adapter / RUN_FILE).exists():
            resume = (adapter / CHECKPOINT_FILE).exists()
            settings = {**asdict(recipe), "resume": resume, "force": not resume}
            from mlx_distill.train.run import run as train

            train(TrainConfig(self.model, adapter.parent, adapter, **settings), _say)
            device.release_memory()
        result = json.loads((adapter / RUN_FILE).read_text(encoding="utf-8"))["result"]
        looks = tuple(
            Look(line["epoch"], line["valid_loss"], line["valid_accuracy"])
            for line in read_jsonl(adapter / METRICS_FILE, _as_dict)
            if "valid_loss" in line
        )
        figures = ("n_trainable", "n_train_rows", "n_valid_rows", "n_valid_tokens", "steps", "seconds", "peak_bytes")
        line = {
            "kind": "run",
            "part": part,
            "recipe": asdict(recipe),
            "rows": rows.digest,
            "valid": [[look.epoch, look.loss, look.accuracy] for look in looks],
            **{name: result[name] for name in figures},
        }
        if not done:
            self.note(line)
        return Done.from_json(line)


def settings_text(recipe: Recipe) -> str:
    """The settings that the sweep moves, in a few words."""
    dropout = f"dropout {recipe.dropout:g}, " if recipe.dropout else ""
    return (
        f"rate {recipe.learning_rate:g}, rank {recipe.rank}, {dropout}{recipe.epochs} "
        f"{'epoch' if recipe.epochs == 1 else 'epochs'}, batch {recipe.batch_size}, seed {recipe.seed}"
    )


def _say(event: Event) -> None:
    """Lines for a log: notes, and a step in ten."""
    if isinstance(event, Note):
        print(f"  {event.text}", flush=True)
    elif isinstance(event, Progress) and event.job == "train" and event.done % 10 == 0:
        print(f"  step {event.done} of {event.total}: {event.note}", flush=True)


def _as_dict(data: object) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ValueError("a line must be an object")
    return data


def read_split(data: Path, split: str) -> tuple[Example, ...]:
    """The rows of a split as `prepare` wrote them."""
    return tuple(read_jsonl(data / f"{split}.jsonl", Example.from_json, "Make it with `mlx-distill prepare`."))


def best_of(runs: Sequence[Done]) -> Done:
    """The run that `valid` likes best; the earlier one where two are equal."""
    return min(runs, key=lambda run: run.best.loss)
