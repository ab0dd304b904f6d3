"""What everybody is asked: the test prompts, and the questions of some held-out rows."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlx_distill.errors import InputError, raise_problems
from mlx_distill.records import Example, Messages, Prompt, build_messages
from mlx_distill.storage.jsonl import read_jsonl

Origin = Literal["test prompt", "test row"]


@dataclass(frozen=True)
class Question:
    """One question as base, distilled and teacher are asked it."""

    id: str
    """No other question has it."""
    family: str
    category: str
    text: str
    """What the user asks last."""
    messages: Messages
    origin: Origin
    held: str = ""
    """The teacher's answer, where the row holds it."""


def read_prompts(file: Path) -> list[Prompt]:
    """The test prompts; InputError where there are none or two share an id."""
    prompts = read_jsonl(file, Prompt.from_json, 'Name a JSON lines file with a "prompt" in each line.')
    if not prompts:
        raise InputError(f"{file} holds no prompts.", 'Write one JSON object a line, such as {"prompt": "..."}.')
    counts = Counter(prompt.id for prompt in prompts)
    twice = [f"the id {name!r} is used {count} times" for name, count in counts.items() if count > 1]
    raise_problems(file, twice, "Give each prompt an id of its own.")
    return prompts


def questions_of(prompts: Iterable[Prompt], rows: Iterable[Example], system: str) -> list[Question]:
    """The test prompts under the system message, then the rows under their own; ids are made unlike each other."""
    found = [
        Question(one.id, one.family, one.category, one.text, build_messages(one.text, system), origin="test prompt")
        for one in prompts
    ]
    taken = {question.id for question in found}
    for row in rows:
        last = max(number for number, message in enumerate(row.messages) if message.role == "assistant")
        asked = row.messages[:last]
        text = next((message.content for message in reversed(asked) if message.role == "user"), "")
        name, number = row.id, 1
        while name in taken:
            number += 1
            name = f"{row.id} ({number})"
        taken.add(name)
        held = row.messages[last].content
        found.append(Question(name, row.family, row.category, text, asked, origin="test row", held=held))
    return found


def sample_rows(rows: Sequence[Example], count: int, seed: int) -> list[Example]:
    """So many rows, drawn by the seed from as many families as there are, in their order."""
    draw = random.Random(seed)
    families: dict[str, list[int]] = {}
    for number in draw.sample(range(len(rows)), len(rows)):
        families.setdefault(rows[number].family, []).append(number)
    rounds = sorted(
        (turn, place, number) for place, numbers in enumerate(families.values()) for turn, number in enumerate(numbers)
    )
    return [rows[number] for number in sorted(number for _, _, number in rounds[:count])]
