"""metrics.jsonl: one line for step 0 and one for each step, so that a run can be watched while it goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from mlx_distill.errors import MachineError
from mlx_distill.storage import files
from mlx_distill.storage.atomic import write_text


class StepMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one step, named as in metrics.jsonl."""

    learning_rate: float
    train_loss: float
    train_accuracy: float
    supervised_tokens: int
    tokens: int
    """Computed input tokens, padding included."""
    supervised_tokens_per_second: float
    tokens_per_second: float
    padding: float
    """Fraction of `tokens` that is padding."""
    gradient_norm: float
    """Before clipping."""
    step_seconds: float


class MetricsWriter:
    """Writes the metrics file of one run."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / files.METRICS

    def start(self) -> None:
        """Create an empty file."""
        write_text(self.path, "")

    def drop_after(self, step: int) -> None:
        """Drop the lines after `step` and a line that a kill cut off: the resumed run writes them again."""
        lines = self.path.read_text(encoding="utf-8").split("\n")[:-1] if self.path.exists() else []
        write_text(self.path, "".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= step))

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise MachineError(
                f"{self.path}: cannot write ({error.strerror or error}).",
                "Free disk space, then continue with --resume; the last checkpoint is untouched.",
            ) from error
