"""Knowledge distillation: learn the teacher's probabilities of each answer token, not only which token it wrote."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_distill.errors import InputError
from mlx_distill.events import Progress, Report
from mlx_distill.models.context import read_context
from mlx_distill.models.load import Student
from mlx_distill.models.local_teacher import count_shared_ids, open_local_teacher
from mlx_distill.models.score import Batch, make_batches, map_batches, pad
from mlx_distill.models.signal import TeacherSignal, row_key
from mlx_distill.models.tokenize import TokenizedChat
from mlx_distill.models.tokenizer_match import tokenizer_digest
from mlx_distill.records import Example, content_hash
from mlx_distill.storage import files
from mlx_distill.train.checkpoint import Evaluation, model_digest
from mlx_distill.train.config import TrainConfig
from mlx_distill.train.divergences import (
    Divergence,
    Losses,
    Sides,
    TeacherHead,
    TopK,
    sum_divergence,
    token_divergences,
)
from mlx_distill.train.objectives.base import Objective


class Kd(Objective):
    """Minimises a divergence from the teacher's distribution of each answer token, mixed with the cross-entropy."""

    vocabulary: int
    """The ids that teacher and student share. Both distributions are over these."""

    def __init__(self, config: TrainConfig, student: Student) -> None:
        super().__init__(config, student)
        self.divergence = Divergence(config.divergence, config.beta, config.temperature, config.hard_labels)

    @abstractmethod
    def teacher_of(self, batch: Any) -> TopK | TeacherHead:
        """Return the teacher's distributions for a batch of `make_batch`."""

    def loss(self, batch: Batch) -> tuple[mx.array, mx.array, mx.array]:
        """Compute the divergence in chunks."""
        losses = sum_divergence(self.divergence, self._sides(batch))
        return losses.loss, losses.correct, losses.cross_entropy

    def evaluate(self, rows: Sequence[TokenizedChat], step: int, report: Report) -> Evaluation:
        """Measure KL(teacher || student), whatever the divergence of training, besides the cross-entropy."""

        def measure(indices: Sequence[int]) -> Losses:
            batch = self.make_batch([rows[index] for index in indices])
            return token_divergences(Divergence(), self._sides(batch))

        groups = make_batches([len(row.tokens) for row in rows])
        sums, n_done, n_tokens = np.zeros(3), 0, 0
        report(Progress("valid", 0, len(rows), "rows"))
        for indices, losses in zip(groups, map_batches(groups, measure), strict=True):
            sums += [np.array(values, dtype=np.float64).sum() for values in losses]
            n_done, n_tokens = n_done + len(indices), n_tokens + losses.loss.size
            report(Progress("valid", n_done, len(rows), "rows"))
        kl, loss, accuracy = (float(value) for value in sums / n_tokens)
        return Evaluation(step, loss, accuracy, kl)

    def _sides(self, batch: Batch) -> Sides:
        hidden = batch.gather(self.student.hidden(batch.inputs))
        return Sides(self.student.head, hidden, batch.targets, self.teacher_of(batch), self.vocabulary)


@dataclass(frozen=True)
class StoredRow(TokenizedChat):
    """A row with the key of its stored log-probabilities."""

    key: str


@dataclass(frozen=True)
class StoredBatch(Batch):
    """A batch with the teacher's k most probable tokens for each target."""

    ids: mx.array  # (N, k)
    log_probs: mx.array  # (N, k)


class StoredKd(Kd):
    """Learns from the log-probabilities that `mlx-distill logprobs` stored. No teacher is in memory."""

    def __init__(self, config: TrainConfig, student: Student) -> None:
        super().__init__(config, student)
        self.signal = TeacherSignal.open(config.data / files.LOGPROBS)
        self.vocabulary = self.signal.source.vocabulary
        if self.signal.source.tokenizer != tokenizer_digest(student.tokenizer):
            raise InputError(
                f"{self.signal.folder} holds log-probabilities for another tokenizer than that of {student.path}.",
                "Run `mlx-distill logprobs` again for this student.",
            )
        if self.vocabulary > count_shared_ids(student.tokenizer, student.path, student.path):
            raise InputError(
                f"{self.signal.folder} names {self.vocabulary} token ids, more than {student.path} has.",
                "Run `mlx-distill logprobs` again for this student.",
            )

    @property
    def source(self) -> Mapping[str, str]:
        return {"log-probabilities": content_hash(self.signal.manifest.to_json())}

    def tokenize(self, example: Example) -> StoredRow:
        """Find the row's log-probabilities. Raises InputError if there are none."""
        row = super().tokenize(example)
        key = row_key(row, example.context)
        self.signal.check(key, row.n_targets, example.id)
        return StoredRow(row.tokens, row.mask, key)

    def make_batch(self, rows: Sequence[Any], length_multiple: int = 1) -> StoredBatch:
        """Read the log-probabilities of the rows."""
        batch = pad(rows, length_multiple)
        ids, log_probs = zip(*(self.signal.row(row.key) for row in rows), strict=True)
        known = mx.array(np.concatenate(ids)), mx.array(np.concatenate(log_probs))
        return StoredBatch(batch.inputs, batch.positions, batch.targets, batch.tokens_of_row, *known)

    def teacher_of(self, batch: StoredBatch) -> TopK:
        return TopK(batch.ids, batch.log_probs)


@dataclass(frozen=True)
class LiveRow(TokenizedChat):
    """A row, and what the teacher sees of it."""

    view: TokenizedChat


@dataclass(frozen=True)
class LiveBatch(Batch):
    """A batch with the teacher's hidden state for each target."""

    teacher_hidden: mx.array  # (N, E)


class LiveKd(Kd):
    """Learns from the whole distribution of a teacher that stays in memory and reads each row again in each epoch."""

    logits_copies = 1.5

    def __init__(self, config: TrainConfig, student: Student) -> None:
        super().__init__(config, student)
        self.teacher = open_local_teacher(config.teacher, student, read_context(config.teacher_context))
        self.vocabulary = self.teacher.vocabulary

    @property
    def source(self) -> Mapping[str, str]:
        return {
            "weights of the teacher": model_digest(self.teacher.model.path),
            "context of the teacher": self.teacher.context.digest,
        }

    @property
    def teacher_bytes(self) -> int:
        if self.teacher.model is self.student:
            return 0
        return sum(value.nbytes for _, value in tree_flatten(self.teacher.model.model.parameters()))

    def tokenize(self, example: Example) -> LiveRow:
        """Put the teacher's context before the student's tokens."""
        row = super().tokenize(example)
        return LiveRow(row.tokens, row.mask, self.teacher.view(row, example.messages, example.context, example.tools))

    def make_batch(self, rows: Sequence[Any], length_multiple: int = 1) -> LiveBatch:
        """Let the teacher read the rows."""
        batch = pad(rows, length_multiple)
        hidden = self.teacher.hidden([row.view for row in rows])
        return LiveBatch(batch.inputs, batch.positions, batch.targets, batch.tokens_of_row, hidden)

    def teacher_of(self, batch: LiveBatch) -> TeacherHead:
        return TeacherHead(self.teacher.head, batch.teacher_hidden)


def kd(config: TrainConfig, student: Student) -> Kd:
    """Open the objective `kd`: with a teacher in memory if the settings name one, else on stored log-probabilities."""
    return LiveKd(config, student) if config.teacher else StoredKd(config, student)
