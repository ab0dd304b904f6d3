"""A teacher that replays recorded answers: the embedded sample, or the answers of another teacher."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from mlx_distill.errors import InputError
from mlx_distill.records import Answer, Messages, Request, TeacherRecord, content_hash
from mlx_distill.storage.jsonl import read_jsonl
from mlx_distill.storage.package_data import package_data_path
from mlx_distill.teachers.base import DEFAULT_CONCURRENCY, PromptError, Reply

SAMPLE = "sample"


class RecordedTeacher:
    """Replays answers from a file or a folder of journals. They have no usage and no cost.

    The system message is not part of the match: a recording cannot follow another one than it was made with.
    """

    terms = ""
    billed_model = ""
    default_concurrency = DEFAULT_CONCURRENCY
    max_retry_tokens = 0  # it would repeat the same answer

    def __init__(self, source: str) -> None:
        self.name = f"recorded:{source}"
        self._source = source
        self._answers: dict[str, Answer] = {}

    async def __aenter__(self) -> Self:
        self._answers = {}
        for file in self._files():
            for record in read_jsonl(file, TeacherRecord.from_json, "Name a journal, a folder of them, or `sample`."):
                self._add(record)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._answers = {}

    async def complete(self, request: Request) -> Reply:
        """Return the recorded answer; PromptError if there is none."""
        answer = self._answers.get(_key(request.messages))
        if answer is None:
            raise PromptError(f"{self.name} has no answer to it")
        return Reply(answer)

    def _files(self) -> list[Path]:
        path = _path(self._source)
        if not path.is_dir():
            return [path]
        files = sorted(path.glob("*.jsonl"))
        if not files:
            raise InputError(f"{path}: no *.jsonl file in this folder.", "Name a folder that holds a journal.")
        return files

    def _add(self, record: TeacherRecord) -> None:
        """Keep the record. Of two answers to one prompt a complete one wins, then the later one."""
        key = _key(record.messages)
        known = self._answers.get(key)
        if known is None or record.complete or not known.complete:
            self._answers[key] = Answer(record.answer, record.stop_reason, record.model, detail=record.detail)


def recording_files(teacher: str) -> list[Path]:
    """Return the file or folder that a `recorded:` teacher replays, if it exists; none for other teachers."""
    provider, _, source = teacher.partition(":")
    if provider != "recorded":
        return []
    return [_path(source)] if _path(source).exists() else []


def _path(source: str) -> Path:
    return package_data_path(SAMPLE) if source == SAMPLE else Path(source).expanduser()


def _key(messages: Messages) -> str:
    return content_hash([message.to_json() for message in messages if message.role != "system"])
