"""Which answers of the journal count: those to the current prompts, one for each, the newest that is complete."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import structs

from mlx_distill.errors import InputError, raise_problems
from mlx_distill.records import COMPLETE_STOP_REASONS, Record, Split, TeacherRecord, Text
from mlx_distill.storage.jsonl import read_jsonl, read_text

JOURNAL = "teacher_data.jsonl"
CURRENT = "collect.json"


@dataclass(frozen=True)
class Rejection:
    """An answer that becomes no row, and why."""

    id: str
    key: str
    reason: str
    """One of a few fixed phrases, so that they can be counted."""
    detail: str

    def to_json(self) -> dict[str, str]:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Member:
    """A current prompt's place: its family, and the split it names, whether or not an answer to it is kept."""

    id: str
    family: str
    split: Split | None


@dataclass(frozen=True)
class Selection:
    """The answers that count, before any look at what they say."""

    records: tuple[TeacherRecord, ...]
    """One for each answered prompt, in the order of the prompts."""
    rejected: tuple[Rejection, ...]
    members: tuple[Member, ...]
    n_records: int
    """Lines of the journal."""
    n_unanswered: int
    """Current prompts that the journal holds no answer to."""


def select(data: Path, stop_reasons: Collection[str] = COMPLETE_STOP_REASONS) -> Selection:
    """Choose among the answers of `data`/teacher_data.jsonl that ended for one of these reasons.

    Where `data`/collect.json lists the current prompts, only answers to those count, and id, family, category and
    split are taken from it: they may have changed since the answer was bought. Without it, every prompt counts.
    Raises MissingError or InputError where a file cannot be read.
    """
    records = read_jsonl(data / JOURNAL, TeacherRecord.from_json, "Make it with `mlx-distill collect`.")
    listed = _read_current(data / CURRENT)
    if listed is None:
        groups: dict[str, list[TeacherRecord]] = {}
        for record in records:
            groups.setdefault(record.prompt_id, []).append(record)
        chosen, rejected = _newest_complete(groups, stop_reasons)
        members = [Member(r[-1].prompt_id, r[-1].family, r[-1].split) for r in groups.values()]
        return Selection(tuple(chosen), tuple(rejected), tuple(members), len(records), 0)

    by_key: dict[str, _Listed] = {}
    rejected = []
    for entry in listed:
        first = by_key.setdefault(entry.key, entry)
        if first is not entry:
            rejected.append(Rejection(entry.id, entry.key, "duplicate", f"asks the same as {first.id}"))
    groups = {key: [] for key in by_key}
    for record in records:
        if record.key in by_key:
            groups[record.key].append(by_key[record.key].applied_to(record))
        else:
            detail = "collect.json lists no such prompt with these settings"
            rejected.append(Rejection(record.prompt_id, record.key, "not among the current prompts", detail))
    chosen, more = _newest_complete(groups, stop_reasons)
    members = [Member(entry.id, entry.family, entry.split) for entry in listed]
    n_unanswered = sum(not group for group in groups.values())
    return Selection(tuple(chosen), (*rejected, *more), tuple(members), len(records), n_unanswered)


def _newest_complete(
    groups: Mapping[str, Sequence[TeacherRecord]], stop_reasons: Collection[str]
) -> tuple[list[TeacherRecord], list[Rejection]]:
    """Of each prompt's answers, in journal order, the last complete one; the rest with their reasons."""
    chosen: list[TeacherRecord] = []
    rejected: list[Rejection] = []
    for group in groups.values():
        complete = [each for each in group if each.stop_reason in stop_reasons and each.answer.strip()]
        chosen.extend(complete[-1:])
        for record in group:
            if record not in complete:
                rejected.append(Rejection(record.prompt_id, record.key, "not complete", _how_it_ended(record)))
            elif record is not complete[-1]:
                rejected.append(Rejection(record.prompt_id, record.key, "superseded", "a newer complete answer counts"))
    return chosen, rejected


def _how_it_ended(answer: TeacherRecord) -> str:
    reason = f"stop reason {answer.stop_reason}" + (f" ({answer.detail})" if answer.detail else "")
    return reason if answer.answer.strip() else f"{reason}, empty answer"


class _Listed(Record, frozen=True):
    """One entry of collect.json."""

    key: Text
    id: Text
    family: Text
    category: Text
    split: Split | None = None

    def applied_to(self, record: TeacherRecord) -> TeacherRecord:
        return structs.replace(record, prompt_id=self.id, family=self.family, category=self.category, split=self.split)


def _read_current(path: Path) -> list[_Listed] | None:
    """The current prompts that collect.json lists, in their order, or None where there is no such file."""
    if not path.exists():
        return None
    next_step = "It is written by `mlx-distill collect`: run that again, or remove the file to use every answer."
    try:
        data: Any = json.loads(read_text(path))
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}).", next_step) from error
    answers = data.get("answers") if isinstance(data, dict) else None
    if not isinstance(answers, list):
        raise InputError(f'{path}: "answers" is not a list.', next_step)
    listed: list[_Listed] = []
    problems: list[str] = []
    for number, item in enumerate(answers, start=1):
        try:
            listed.append(_Listed.from_json(item))
        except ValueError as error:
            problems.append(f"answers[{number}]: {error}")
    raise_problems(path, problems, next_step)
    return listed
