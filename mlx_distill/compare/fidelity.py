"""The teacher of the fidelity metric: a model on this machine that reads the held-out rows in its own context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mlx_distill import device
from mlx_distill.compare.config import AnswerConfig
from mlx_distill.compare.models import ModelSpec
from mlx_distill.errors import DistillError
from mlx_distill.events import Report, ignore
from mlx_distill.models.config import SELF, is_local
from mlx_distill.models.context import read_context
from mlx_distill.models.fidelity import RowFidelity, measure_fidelity
from mlx_distill.models.load import Student, weight_bytes
from mlx_distill.models.local_teacher import (
    LocalTeacher,
    check_memory,
    count_shared_ids,
    open_local_teacher,
    teacher_folder,
)
from mlx_distill.models.tokenize import TokenizedChat
from mlx_distill.records import Example


@dataclass(frozen=True)
class Reference:
    """The teacher, and the held-out rows as it sees them."""

    teacher: LocalTeacher
    views: Sequence[TokenizedChat]

    def measure(
        self, student: Student, rendered: Sequence[TokenizedChat], name: str, report: Report = ignore
    ) -> tuple[RowFidelity, ...]:
        """Compare a model as it is now (adapter on or off) with the teacher, row by row."""
        return measure_fidelity(student, self.teacher, rendered, self.views, report, f"fidelity {name}")


def open_reference(
    config: AnswerConfig,
    specs: Sequence[ModelSpec],
    student: Student,
    rows: Sequence[Example],
    rendered: Sequence[TokenizedChat],
    report: Report = ignore,
) -> tuple[Reference | None, list[str]]:
    """Load the teacher if it is a model on this machine. Otherwise there is no reference, and nothing to say.

    `student` is the first model: `self` shares its weights. Trouble with the teacher is a warning, which is returned.
    """
    if not is_local(config.teacher):
        return None, []
    base = config.model or specs[0].model
    try:
        context = read_context(config.teacher_context)
        folder = teacher_folder(config.teacher, base, report)
        shares = config.teacher == SELF and student.path.resolve() == base.resolve()
        if not shares:
            check_memory(folder, weight_bytes(student.path, device.prepare().dtype.size))
        teacher = open_local_teacher(config.teacher, student if shares else base, context, report)
        ids = [count_shared_ids(teacher.model.tokenizer, folder, spec.model) for spec in specs]
        teacher = replace(teacher, vocabulary=min(ids))
        views = [
            teacher.view(chat, row.messages, row.context, row.tools) for chat, row in zip(rendered, rows, strict=True)
        ]
    except DistillError as error:
        return None, [f"Fidelity to the teacher {config.teacher} is not measured: {error.message}"]
    return Reference(teacher, views), []
