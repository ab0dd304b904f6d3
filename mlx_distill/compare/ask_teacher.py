"""Ask a teacher during a comparison: the only module here that knows how teachers are asked.

The comparison is about the student, so trouble with a teacher does not end it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from mlx_distill.compare.config import AnswerConfig
from mlx_distill.errors import DistillError, Interrupted
from mlx_distill.events import Report
from mlx_distill.records import Prompt, Request, TeacherRecord
from mlx_distill.teachers import PROVIDERS, open_teacher
from mlx_distill.teachers import ask as asking
from mlx_distill.teachers.registry import teacher_name
from mlx_distill.teachers.retry import RetryPolicy

__all__ = ["PROVIDERS", "Replies", "ask", "teacher_name"]

CONCURRENCY = 8
RETRY_POLICY = RetryPolicy(limit_seconds=60.0)
"""A teacher that is down delays the comparison by at most this long."""


class Replies(msgspec.Struct, frozen=True):
    """The replies of a teacher."""

    records: dict[str, TeacherRecord]
    """Records by the key of the request."""
    missing: tuple[str, ...] = ()
    """`prompt id: reason` for each prompt that it did not answer."""
    error: DistillError | None = None
    """The error that stopped it; None if every request was settled."""


def ask(
    teacher: str, asks: Sequence[tuple[Prompt, Request]], config: AnswerConfig, journal: str, report: Report
) -> Replies:
    """Ask what the journal in the data folder does not hold yet. Raises only Interrupted, with all answers saved."""
    try:
        asked = asking.ask(
            open_teacher(teacher, config.model),
            asks,
            config.data / journal,
            concurrency=CONCURRENCY,
            budget=config.budget,
            policy=RETRY_POLICY,
            report=report,
            job=f"ask {teacher}",
        )
    except Interrupted:
        raise
    except DistillError as error:
        return Replies({}, error=error)
    if isinstance(asked.stopped_by, Interrupted):
        raise asked.stopped_by
    missing = tuple(dict.fromkeys(f"{one.prompt_id}: {one.reason}" for one in asked.failed))
    records = {request.key: record for (_, request), record in zip(asks, asked.records(), strict=True) if record}
    return Replies(records, missing, asked.stopped_by)
