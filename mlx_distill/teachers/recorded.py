"""A teacher that replays answers from journals: the embedded sample, or what another teacher said before."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from mlx_distill.errors import InputError
from mlx_distill.records import Answer, Messages, Request, TeacherRecord
from mlx_distill.storage.jsonl import read_jsonl
from mlx_distill.storage.package_data import shipped
from mlx_distill.teachers.protocol import Limit, NoAnswerError

SAMPLE = "sample"


class RecordedTeacher:
    """Answers what its recording holds, matched by the conversation without its system message.

    A recording cannot follow another system prompt than it was made with, so that prompt is no part of the match.
    Nothing is charged: replayed answers carry no usage and no cost.
    """

    terms = ""
    billed_model = ""
    longest_retry = 0  # it would say the same again
    limits: tuple[Limit, ...] = ()

    def __init__(self, source: str) -> None:
        self.name = f"recorded:{source}"
        self._source = source
        self._answers: dict[Messages, Answer] = {}

    async def __aenter__(self) -> Self:
        self._answers = {}
        for file in self._files():
            for record in read_jsonl(file, TeacherRecord.from_json, "Name a journal, a folder of them, or `sample`."):
                self._add(record)
        return self

    async def answer(self, request: Request) -> Answer:
        found = self._answers.get(_asked(request.messages))
        if found is None:
            raise NoAnswerError(f"{self.name} holds no answer to it")
        return found

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._answers = {}

    def _files(self) -> list[Path]:
        """The journals: one file, or every *.jsonl of a folder."""
        path = shipped(SAMPLE) if self._source == SAMPLE else Path(self._source).expanduser()
        if not path.is_dir():
            return [path]
        files = sorted(path.glob("*.jsonl"))
        if not files:
            raise InputError(f"{path}: no *.jsonl file in this folder.", "Name a folder that holds a journal.")
        return files

    def _add(self, record: TeacherRecord) -> None:
        """Keep the record; of two answers to one prompt a complete one wins, then the later one."""
        key = _asked(record.messages)
        known = self._answers.get(key)
        if known is None or record.complete or not known.complete:
            self._answers[key] = Answer(record.answer, record.stop_reason, record.model, detail=record.detail)


def _asked(messages: Messages) -> Messages:
    return tuple(message for message in messages if message.role != "system")
