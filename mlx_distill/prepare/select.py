"""Select one answer for each current prompt: the newest complete one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from operator import attrgetter
from pathlib import Path

import msgspec
from msgspec import structs

from mlx_distill.errors import InputError
from mlx_distill.records import Record, Split, TeacherRecord, Text, explain
from mlx_distill.storage import files
from mlx_distill.storage.jsonl import read_jsonl, read_text


class Reason(StrEnum):
    """Why an answer does not become a row."""

    NOT_CURRENT = "not among the current prompts"
    NOT_COMPLETE = "not complete"
    NO_ANSWER = "no answer after the reasoning"
    SUPERSEDED = "superseded"
    INVALID_TEXT = "invalid text"
    CONTAMINATION = "contamination"
    BROKEN_CODE = "code does not parse"
    IDENTITY = "identity phrase"
    CONTROL_TOKEN = "control token"
    TOO_LONG = "too long"
    ANSWER_TOO_SHORT = "answer too short"
    ANSWER_TOO_LONG = "answer too long"
    DUPLICATE = "duplicate"
    NEAR_DUPLICATE = "near duplicate"


class Rejection(Record, frozen=True):
    """One line of rejected.jsonl: an answer that does not become a row."""

    id: str
    key: str
    reason: Reason
    detail: str


class CurrentPrompt(Record, frozen=True):
    """One entry of collect.json: a current prompt, answered or not."""

    key: Text
    """Content hash of the request."""
    id: Text
    family: Text
    category: Text
    split: Split | None = None


class _PromptIndex(Record, frozen=True):
    answers: list[CurrentPrompt]


@dataclass(frozen=True)
class Selection:
    """The selected answers, before any check of their text."""

    records: list[TeacherRecord]
    """One for each answered prompt, in the order of the prompts."""
    rejected: list[Rejection]
    prompts: list[CurrentPrompt]
    n_records: int
    """Lines of teacher_data.jsonl."""
    n_unanswered: int
    """Current prompts without an answer."""


def select(data: Path) -> Selection:
    """Select from `data`/teacher_data.jsonl the newest complete answer to each current prompt.

    `data`/collect.json lists the current prompts. Id, family, category and split come from there, because they may have
    changed after the answer arrived. Without that file, every prompt of the records is current, and its newest record
    gives family, category and split. Raises MissingError or InputError for files that cannot be read.
    """
    records = read_jsonl(data / files.TEACHER_DATA, TeacherRecord.from_json, "Create it with `mlx-distill collect`.")
    index = _read_index(data / files.PROMPT_INDEX)
    rejected: list[Rejection] = []
    current: dict[str, CurrentPrompt] = {}  # by the hash of the request; without collect.json, by the prompt's id
    if index is None:
        name_of = attrgetter("prompt_id")
        current = {r.prompt_id: CurrentPrompt(r.key, r.prompt_id, r.family, r.category, r.split) for r in records}
    else:
        name_of = attrgetter("key")
        for prompt in index:
            first = current.setdefault(prompt.key, prompt)
            if first is not prompt:
                rejected.append(Rejection(prompt.id, prompt.key, Reason.DUPLICATE, f"same prompt as {first.id}"))

    answers: dict[str, list[TeacherRecord]] = {name: [] for name in current}  # the oldest first
    for record in records:
        if name_of(record) in answers:
            answers[name_of(record)].append(record)
        elif not record.complete:
            rejected.append(Rejection(record.prompt_id, record.key, Reason.NOT_COMPLETE, _how_it_ended(record)))
        else:
            detail = "collect.json does not list this prompt with these settings"
            rejected.append(Rejection(record.prompt_id, record.key, Reason.NOT_CURRENT, detail))

    selected: list[TeacherRecord] = []
    for name, prompt in current.items():
        newest = next((record for record in reversed(answers[name]) if record.complete), None)
        for record in answers[name]:
            if not record.complete:
                rejected.append(Rejection(prompt.id, record.key, Reason.NOT_COMPLETE, _how_it_ended(record)))
            elif record is not newest:
                detail = "a newer complete answer replaces it"
                rejected.append(Rejection(prompt.id, record.key, Reason.SUPERSEDED, detail))
        if newest:
            fields = {"family": prompt.family, "category": prompt.category, "split": prompt.split}
            selected.append(structs.replace(newest, prompt_id=prompt.id, **fields))
    n_unanswered = sum(not group for group in answers.values())
    return Selection(selected, rejected, list(index or current.values()), len(records), n_unanswered)


def _read_index(path: Path) -> list[CurrentPrompt] | None:
    """Return the current prompts in their order; None if there is no collect.json."""
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(read_text(path), type=_PromptIndex).answers
    except msgspec.MsgspecError as error:
        problem = explain(error) if isinstance(error, msgspec.ValidationError) else str(error)
        raise InputError(
            f"{path}: {problem}.",
            "`mlx-distill collect` writes this file: run it again, or remove the file to use every answer.",
        ) from error


def _how_it_ended(record: TeacherRecord) -> str:
    reason = f"stop reason {record.stop_reason}" + (f" ({record.detail})" if record.detail else "")
    return reason if record.answer.strip() else f"{reason}, empty answer"
