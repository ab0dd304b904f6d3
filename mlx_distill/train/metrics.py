"""metrics.jsonl: one line for step 0 and one for each update, so that a run can be looked at while it goes on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_distill.errors import MachineError
from mlx_distill.models.score import Score
from mlx_distill.storage.atomic import write_text
from mlx_distill.storage.jsonl import read_jsonl
from mlx_distill.train.checkpoint import METRICS_FILE, State


@dataclass(frozen=True)
class Step:
    """What one update did."""

    loss: float
    accuracy: float
    n_supervised: int
    n_tokens: int
    """Input tokens computed, padding included."""
    padding: float
    """Share of them that is padding."""
    gradient_norm: float
    """Before clipping."""
    learning_rate: float
    seconds: float


class Metrics:
    """The file of one run."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / METRICS_FILE

    def start(self) -> None:
        """Begin an empty file."""
        write_text(self.path, "")

    def go_on_after(self, step: int) -> None:
        """Drop the lines after `step`, and one that a kill cut in two: the resumed run writes them again."""
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        if not text.endswith("\n"):
            write_text(self.path, text[: text.rfind("\n") + 1])
        kept = [line for line in read_jsonl(self.path, _as_dict) if line["step"] <= step]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, state: State, epoch: float, seconds: float, step: Step | None, valid: Score | None) -> None:
        """Add a line: the step's figures (None before the first) and those of a look at valid.jsonl, where one was."""
        line: dict[str, Any] = {"step": state.step, "epoch": round(epoch, 3)}
        if step:
            line |= {
                "learning_rate": step.learning_rate,
                "train_loss": step.loss,
                "train_accuracy": step.accuracy,
                "supervised_tokens": step.n_supervised,
                "tokens": step.n_tokens,
                "supervised_tokens_per_second": step.n_supervised / step.seconds,
                "tokens_per_second": step.n_tokens / step.seconds,
                "padding": step.padding,
                "gradient_norm": step.gradient_norm,
                "step_seconds": step.seconds,
            }
        if valid:
            line |= {"valid_loss": valid.loss, "valid_accuracy": valid.token_accuracy}
        line |= {"peak_bytes": state.peak_bytes, "seconds": round(seconds, 3)}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise MachineError(
                f"{self.path}: cannot write ({error.strerror or error}).",
                "Free disk space, then go on with --resume; the last checkpoint is untouched.",
            ) from error


def _as_dict(data: object) -> dict[str, Any]:
    if not isinstance(data, dict) or "step" not in data:
        raise ValueError("a line of metrics must be an object with a step")
    return data
