"""Inputs of a comparison: a random adapter of the tiny model, held-out rows, test prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlx_distill.compare.config import CompareConfig
from tests.support.adapters import make_adapter

ROWS = [
    ("count", "python", "Count the words of a text.", "def count_words(text):\n    return len(text.split())"),
    (
        "count",
        "python",
        "Count the words of a file.",
        "Read the file, then count.\n\n```python\nlen(text.split())\n```",
    ),
    ("queue", "concepts", "What is a queue?", "A queue hands out what came first."),
    ("stack", "concepts", "What is a stack?", "A stack hands out what came last; so does a pile of plates."),
    ("pay", "sql", "Who earns more than 10?", "SELECT name FROM employees WHERE salary > 10;"),
    ("order", "sql", "List employees by name.", "SELECT name, salary FROM employees ORDER BY name;"),
]
"""family, category, question, answer: six rows in five families."""

SYSTEM = "You are a helpful assistant."
PROMPTS = [("tree", "python", "Is a tree balanced?"), ("pool", "sql", "Write a pool of connections, with SQL.")]


def write_lines(file: Path, rows: list[Any]) -> Path:
    """A JSON lines file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def example(family: str, category: str, question: str, answer: str, *, system: str = SYSTEM) -> dict[str, Any]:
    """One row of test.jsonl."""
    turns = [("system", system), ("user", question), ("assistant", answer)]
    messages = [{"role": role, "content": content} for role, content in turns]
    return {"id": f"{family}: {question}", "family": family, "category": category, "messages": messages}


def make_data(folder: Path) -> Path:
    """A data folder with test.jsonl."""
    write_lines(folder / "test.jsonl", [example(*row) for row in ROWS])
    return folder


def make_prompts(file: Path) -> Path:
    """A file of two test prompts."""
    return write_lines(file, [{"id": name, "category": kind, "prompt": text} for name, kind, text in PROMPTS])


def make_config(student: Path, folder: Path, **settings: Any) -> CompareConfig:
    """Settings of a comparison in a folder; with a random adapter unless the settings name another."""
    if "adapter" not in settings:
        settings["adapter"] = make_adapter(student, folder / "adapter")
    return CompareConfig(
        model=student,
        data=make_data(folder / "data"),
        out=folder / "out",
        test_prompts=make_prompts(folder / "prompts.jsonl"),
        **settings,
    )
