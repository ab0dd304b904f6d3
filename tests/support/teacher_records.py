"""Teacher records, and folders with the files that `prepare` reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mlx_distill.records import Answer, Prompt, Request, Split, TeacherRecord, build_messages
from mlx_distill.storage import files

TEST_PROMPT = {"id": "test-tree", "prompt": "Write a Python function to check whether a binary tree is balanced."}


def record(
    prompt: str,
    answer: str = "A short answer.",
    *,
    id: str = "",
    family: str = "",
    category: str = "general",
    split: Split | None = None,
    stop_reason: str = "end_turn",
    system: str = "",
    detail: str = "",
) -> TeacherRecord:
    """Build a record. The id defaults to the prompt's text, and the family to the id."""
    asked = Prompt(prompt, id or prompt, family or id or prompt, category, split)
    request = Request("recorded:test", build_messages(prompt, system), 512)
    return TeacherRecord.of(asked, request, Answer(answer, stop_reason, "teacher", detail=detail))


def good_records() -> list[TeacherRecord]:
    """Build ten records that pass every filter, in ten families: eight train, one valid, one test."""
    return [
        record(
            f"What does the number {number} stand for?",
            f"It stands for {number}." + " More of it." * number,
            id=f"p{number}",
            category="odd" if number % 2 else "even",
            split="test" if number == 9 else "valid" if number == 8 else "train",
        )
        for number in range(10)
    ]


def write_records(folder: Path, records: Iterable[TeacherRecord]) -> Path:
    """Write teacher_data.jsonl and a file of one test prompt; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_lines(folder / files.TEACHER_DATA, (item.to_json() for item in records))
    write_lines(folder / "test_prompts.jsonl", [TEST_PROMPT])
    return folder


def write_index(folder: Path, records: Iterable[TeacherRecord]) -> None:
    """Write the collect.json that lists the prompts of these records."""
    names = ("key", "family", "category", "split")
    entries = [{"id": item.prompt_id, **{name: getattr(item, name) for name in names}} for item in records]
    (folder / files.PROMPT_INDEX).write_text(json.dumps({"answers": entries}))


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
