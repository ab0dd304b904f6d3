"""Teacher records and prepared folders for the dataset tests."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mlx_distill.records import Answer, Prompt, Request, Split, TeacherRecord, build_messages

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
    """A record whose id is the prompt's text unless it is given one."""
    asked = Prompt(prompt, id or prompt, family or id or prompt, category, split)
    request = Request("recorded:test", build_messages(prompt, system), 512)
    return TeacherRecord.of(asked, request, Answer(answer, stop_reason, "teacher", detail=detail))


def some_records() -> list[TeacherRecord]:
    """Ten sound records in ten families of two categories; the last two families are named valid and test."""
    splits: list[Split] = ["train"] * 8 + ["valid", "test"]
    return [
        record(
            f"What does the number {number} stand for?",
            f"It stands for {number}." + " More of it." * number,
            id=f"p{number}",
            category="odd" if number % 2 else "even",
            split=split,
        )
        for number, split in enumerate(splits)
    ]


def write_journal(folder: Path, records: Iterable[TeacherRecord]) -> Path:
    """Write teacher_data.jsonl and a file of one test prompt; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_lines(folder / "teacher_data.jsonl", (item.to_json() for item in records))
    write_lines(folder / "test_prompts.jsonl", [TEST_PROMPT])
    return folder


def write_current(folder: Path, records: Iterable[TeacherRecord]) -> None:
    """Write the collect.json that lists these records' prompts."""
    entries = [
        {
            "key": item.key,
            "id": item.prompt_id,
            "family": item.family,
            "category": item.category,
            "split": item.split,
        }
        for item in records
    ]
    (folder / "collect.json").write_text(json.dumps({"answers": entries}))


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
