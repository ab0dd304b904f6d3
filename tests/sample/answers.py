"""Read the embedded sample, so that tests can run the code of its answers."""

from __future__ import annotations

import json
import re
from functools import cache
from types import ModuleType
from typing import Any

from tests.conftest import REPOSITORY

SAMPLE = REPOSITORY / "data" / "sample"
FENCED_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@cache
def records(file: str = "teacher_data.jsonl") -> dict[str, dict[str, Any]]:
    """The records of a file of the sample, by prompt id."""
    lines = (SAMPLE / file).read_text(encoding="utf-8").splitlines()
    return {record["prompt_id"]: record for record in map(json.loads, lines)}


def ids(category: str) -> list[str]:
    """The prompt ids of one category, in the order of the file."""
    return [prompt_id for prompt_id, record in records().items() if record["category"] == category]


def code(prompt_id: str, language: str, file: str = "teacher_data.jsonl") -> str:
    """The only fenced block of an answer, which is in `language`."""
    [(tag, block)] = FENCED_BLOCK.findall(records(file)[prompt_id]["answer"])
    assert tag == language
    return str(block)


def run_python(source: str) -> ModuleType:
    """Execute Python source as a new module and return it."""
    module = ModuleType(__name__)  # the name of a real module, because dataclasses look up their module
    exec(source, module.__dict__)
    return module
