"""Reads the embedded sample so that tests can execute the code of its answers."""

import json
import re
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

REPO = Path(__file__).resolve().parents[2]
TEACHER_DATA = REPO / "data" / "sample" / "teacher_data.jsonl"
TEST_ANSWERS = REPO / "data" / "sample" / "test_answers.jsonl"
FENCED_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def answer(prompt_id: str) -> str:
    """The teacher's answer to the prompt with this id."""
    return records(TEACHER_DATA)[prompt_id]["answer"]


def code(prompt_id: str, language: str) -> list[str]:
    """The fenced blocks of one language in an answer, in their order."""
    return blocks(answer(prompt_id), language)


def ids(category: str) -> list[str]:
    """The prompt ids of one category, in the order of the file."""
    return [prompt_id for prompt_id, record in records(TEACHER_DATA).items() if record["category"] == category]


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language in a text, in their order."""
    return [body for tag, body in FENCED_BLOCK.findall(text) if tag == language]


def run_python(source: str) -> ModuleType:
    """Execute Python source as a module of its own and return it."""
    module = ModuleType(__name__)  # the name of a real module, because dataclasses look their module up
    exec(source, module.__dict__)
    return module


@cache
def records(path: Path) -> dict[str, dict[str, Any]]:
    """The records of a JSON Lines file by their prompt id."""
    with path.open(encoding="utf-8") as file:
        return {record["prompt_id"]: record for record in map(json.loads, file)}
