"""The prompts that both models and the teacher answer: the test prompts, and the prompts of some held-out rows."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from mlx_distill.errors import InputError, raise_problems
from mlx_distill.records import Example, Messages, Prompt, build_messages
from mlx_distill.storage.jsonl import read_jsonl

Origin = Literal["test prompt", "test row"]


class EvalPrompt(msgspec.Struct, frozen=True):
    """One prompt for both models and the teacher."""

    id: str
    """Unique in a comparison."""
    family: str
    category: str
    text: str
    """The last user message."""
    messages: Messages
    origin: Origin
    teacher_answer: str = ""
    """The answer in the row, for a prompt from a held-out row."""
    context: str = ""
    """A document that only the teacher sees."""
    tools: tuple[dict[str, Any], ...] = ()


def read_prompts(file: Path) -> list[Prompt]:
    """Read the test prompts. Raises InputError if there are none or if two share an id."""
    prompts = read_jsonl(file, Prompt.from_json, 'Name a JSON lines file with a "prompt" in each line.')
    if not prompts:
        raise InputError(f"{file} contains no prompts.", 'Write one JSON object per line, such as {"prompt": "..."}.')
    counts = Counter(prompt.id for prompt in prompts)
    repeated = [f"the id {name!r} is used {count} times" for name, count in counts.items() if count > 1]
    raise_problems(file, repeated, "Give each prompt its own id.")
    return prompts


def build_prompts(prompts: Iterable[Prompt], rows: Iterable[Example], system: str) -> list[EvalPrompt]:
    """Return the test prompts with the system message, then the rows with their own messages."""
    found = [
        EvalPrompt(
            one.id,
            one.family,
            one.category,
            one.text,
            build_messages(one.text, system),
            "test prompt",
            context=one.context,
        )
        for one in prompts
    ]
    taken = {prompt.id for prompt in found}
    for row in rows:
        last = max(number for number, message in enumerate(row.messages) if message.role == "assistant")
        messages = row.messages[:last]
        text = next((message.content for message in reversed(messages) if message.role == "user"), "")
        name, number = row.id, 1
        while name in taken:
            number += 1
            name = f"{row.id} ({number})"
        taken.add(name)
        answer = row.messages[last].content
        found.append(
            EvalPrompt(name, row.family, row.category, text, messages, "test row", answer, row.context, row.tools)
        )
    return found


def sample_rows(rows: Sequence[Example], count: int, seed: int) -> list[Example]:
    """Draw `count` rows from as many families as possible; return them in file order."""
    families: dict[str, list[int]] = {}
    for number in random.Random(seed).sample(range(len(rows)), len(rows)):
        families.setdefault(rows[number].family, []).append(number)
    order = sorted(
        (turn, place, number) for place, numbers in enumerate(families.values()) for turn, number in enumerate(numbers)
    )
    return [rows[number] for number in sorted(number for _, _, number in order[:count])]
