"""The answers that the student learned from, as the data folder records them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from mlx_distill.storage import files


class Collected(msgspec.Struct, frozen=True):
    """The teacher's answers in the data folder."""

    n_prompts: int
    n_answered: int
    teachers: tuple[str, ...]
    models: tuple[str, ...]
    cost_usd: float | None
    """None if no answer has a price."""
    n_priced: int


class _Answer(msgspec.Struct, frozen=True):
    key: str
    teacher: str = ""
    model: str = ""
    cost_usd: float | None = None


class _Index(msgspec.Struct, frozen=True):
    answers: tuple[_Answer, ...] = ()


def read_collected(data: Path) -> Collected | None:
    """Count the answers that the prompt index names, and sum their prices from the journal.

    Returns None without an index. Lines of the journal that are damaged or of another program are ignored.
    """
    try:
        index = msgspec.json.decode((data / files.PROMPT_INDEX).read_bytes(), type=_Index)
    except (OSError, msgspec.DecodeError):
        return None
    keys = {one.key for one in index.answers}
    answers = {one.key: one for one in _answers(data / files.TEACHER_DATA) if one.key in keys}.values()
    prices = [one.cost_usd for one in answers if one.cost_usd is not None]
    teachers, models = {one.teacher for one in answers} - {""}, {one.model for one in answers} - {""}
    cost = math.fsum(prices) if prices else None
    return Collected(len(keys), len(answers), tuple(sorted(teachers)), tuple(sorted(models)), cost, len(prices))


def _answers(journal: Path) -> Iterator[_Answer]:
    with suppress(OSError):
        for line in journal.read_bytes().splitlines():
            with suppress(msgspec.DecodeError):
                yield msgspec.json.decode(line, type=_Answer)
