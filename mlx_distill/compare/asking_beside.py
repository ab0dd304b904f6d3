"""Asking the teacher and the judge beside the comparison: it is about the student, so their trouble does not end it."""

from __future__ import annotations

from collections.abc import Sequence

from mlx_distill.compare.config import AnswerConfig
from mlx_distill.errors import DistillError, Interrupted
from mlx_distill.events import Report
from mlx_distill.records import Prompt, Request
from mlx_distill.teachers import open_teacher
from mlx_distill.teachers.ask import AskResult, ask
from mlx_distill.teachers.base import RetryPolicy

CONCURRENCY = 8
"""Requests that are asked at once."""
PATIENCE = RetryPolicy(limit_seconds=60.0)
"""Who is down holds the comparison up for no longer than this."""


def ask_beside(
    teacher: str, asks: Sequence[tuple[Prompt, Request]], config: AnswerConfig, journal: str, job: str, report: Report
) -> AskResult | DistillError:
    """Ask what the journal, a file beside the teacher's data, lacks.

    Returned is also what kept it from asking at all: the teacher's name, its recording or the journal is wrong. Only
    Interrupted is raised, with every answer that arrived in the journal.
    """
    try:
        asked = ask(
            open_teacher(teacher),
            asks,
            config.data / journal,
            concurrency=CONCURRENCY,
            budget=config.budget,
            policy=PATIENCE,
            report=report,
            job=job,
        )
    except Interrupted:
        raise
    except DistillError as error:
        return error
    if isinstance(asked.stopped_by, Interrupted):
        raise asked.stopped_by
    return asked
