"""What a step minimises. An objective turns the student and a batch into a sum over supervised tokens.

The loop divides by the number of supervised tokens of the whole update, so that each token weighs the same however
rows are batched or accumulated.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from mlx_distill.scoring import Batch
from mlx_distill.students.loading import Student
from mlx_distill.training.cross_entropy import linear_cross_entropy

Objective = Callable[[Student, Batch], tuple[mx.array, mx.array]]
"""(student, batch) -> loss sum (), number of supervised tokens predicted right ()."""


def sft(student: Student, batch: Batch) -> tuple[mx.array, mx.array]:
    """Supervised fine-tuning on the teacher's text: -log p of each answer token, end token included."""
    return linear_cross_entropy(student.head, batch.gather(student.hidden(batch.inputs)), batch.targets)


OBJECTIVES: dict[str, Objective] = {"sft": sft}
