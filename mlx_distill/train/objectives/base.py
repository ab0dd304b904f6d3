"""The interface of an objective: what the training loop asks of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import mlx.core as mx

from mlx_distill.events import Report
from mlx_distill.models.load import Student
from mlx_distill.models.score import Batch, pad, score
from mlx_distill.models.tokenize import TokenizedChat, render
from mlx_distill.records import Example
from mlx_distill.train.checkpoint import Evaluation
from mlx_distill.train.config import TrainConfig


class Objective(ABC):
    """One way to learn from rows. `tokenize` and `make_batch` may return subclasses that carry more data.

    The loop divides the loss by the number of supervised tokens in the whole batch, so each token has the same weight
    however rows are batched or accumulated.
    """

    logits_copies = 1.0
    """Memory of the loss, relative to that of the cross-entropy: see `memory_plan`."""
    figures: Mapping[str, float] = {}
    """Figures of the last `rows_for_step`, by their names in metrics.jsonl."""

    def __init__(self, config: TrainConfig, student: Student) -> None:
        """Open what the objective needs besides the student and the rows. Raises InputError if it does not fit."""
        self.config = config
        self.student = student

    @property
    def source(self) -> Mapping[str, str]:
        """Names and hashes of what the objective learns from besides the rows: a run resumes only with the same."""
        return {}

    @property
    def teacher_bytes(self) -> int:
        """Memory of a teacher that is loaded during training."""
        return 0

    def tokenize(self, example: Example) -> TokenizedChat:
        """Turn an example into tokens and answer mask: the assistant turns are supervised. Runs before training."""
        return render(self.student.tokenizer, example)

    def rows_for_step(self, rows: Sequence[TokenizedChat], step: int) -> Sequence[TokenizedChat]:
        """Return the rows to learn from in a step, given those that are due. Runs before they become micro-batches."""
        return rows

    def largest_step(self, rows: Sequence[TokenizedChat]) -> Sequence[TokenizedChat]:
        """Return rows as long as those of any step, given all rows of train.jsonl."""
        return sorted(rows, key=lambda row: len(row.tokens))[-self.config.batch_size :]

    def rollout_bytes(self, rows: Sequence[TokenizedChat]) -> int:
        """Return the memory that `rows_for_step` takes for a step of such rows."""
        return 0

    def make_batch(self, rows: Sequence[TokenizedChat], length_multiple: int = 1) -> Batch:
        """Put rows into one batch. Runs before each forward pass.

        Rows are padded to a multiple of the length given, so that there are few shapes to compile. All arrays but
        `inputs` have one row for each supervised token.
        """
        return pad(rows, length_multiple)

    @abstractmethod
    def loss(self, batch: Batch) -> tuple[mx.array, mx.array, mx.array]:
        """Return the loss (), the number of correct predictions () and the cross-entropy (), as sums over tokens.

        May be compiled, so it uses nothing but the arrays of a batch and the student's weights. A target below 0 is
        padding and does not count.
        """

    def evaluate(self, rows: Sequence[TokenizedChat], step: int, report: Report) -> Evaluation:
        """Measure the student as it is on validation rows."""
        result = score(self.student, rows, report, "valid")
        return Evaluation(step, result.loss, result.token_accuracy)
