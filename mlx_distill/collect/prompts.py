"""Read prompt files: JSON lines with families and variations, or plain text with one prompt a line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import structs

from mlx_distill.errors import InputError, raise_problems
from mlx_distill.records import Prompt, Split
from mlx_distill.storage.jsonl import each_line, read_jsonl

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
MISSING_ADVICE = "Create a project with `mlx-distill init NAME`, or name a file with --prompts."


def read_prompts(path: Path) -> list[Prompt]:
    """Return the prompts of a file in order. The suffix decides between JSON lines and plain text.

    A JSON line is a prompt (`prompt`, and optionally `id`, `family`, `category`, `split`, `context`). A base prompt may
    have a list `variations`, of texts or of objects with a `prompt` and optionally an `id`, a `category` and a
    `context`: they join its family and split. Their default ids are `<base>-v1`, `<base>-v2`, ...

    Raises InputError with all problems of the file: wrong fields, repeated ids, a family in two splits.
    """
    if path.suffix.lower() in JSON_SUFFIXES:
        reader = _Reader()
        prompts = [prompt for group in read_jsonl(path, reader.read, MISSING_ADVICE) for prompt in group]
        prompts = [structs.replace(prompt, split=reader.splits.get(prompt.family)) for prompt in prompts]
    else:
        prompts = _read_lines(path)
    if not prompts:
        raise InputError(f"{path}: no prompt in this file.", "Write one prompt a line.")
    return prompts


def _read_lines(path: Path) -> list[Prompt]:
    first_seen: dict[str, int] = {}
    prompts: list[Prompt] = []
    problems: list[str] = []
    for line in each_line(path, MISSING_ADVICE):
        if _is_json_object(line.text):
            raise InputError(
                f"{path}:{line.number}: this line is a JSON object, but the file's suffix says plain text.",
                f"If it contains JSON lines, rename it to {path.stem}.jsonl.",
            )
        if line.text in first_seen:
            problems.append(f"{path.name}:{line.number}: repeats line {first_seen[line.text]}")
            continue
        first_seen[line.text] = line.number
        prompts.append(Prompt.from_json({"prompt": line.text}))
    raise_problems(path, problems, "Remove these lines and run the command again.")
    return prompts


def _is_json_object(line: str) -> bool:
    if not line.startswith("{"):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


class _Reader:
    """Reads JSON lines one by one, and compares them with the lines before."""

    def __init__(self) -> None:
        self.splits: dict[str, Split] = {}
        """The split of each family that has one; it is valid for the whole family."""
        self._ids: set[str] = set()

    def read(self, data: object) -> list[Prompt]:
        """Return a base prompt and its variations. ValueError names all problems of the line."""
        base = Prompt.from_json(data)
        problems: list[str] = []
        group = [base]
        assert isinstance(data, Mapping)  # or from_json would have raised
        for number, item in enumerate(_variations(data), start=1):
            try:
                group.append(_variation(base, number, item))
            except ValueError as error:
                problems.append(f"variation {number}: {error}")
        for prompt in group:
            if prompt.id in self._ids:
                problems.append(f"the id {prompt.id!r} is already in use")
            self._ids.add(prompt.id)
        if base.split:
            known = self.splits.setdefault(base.family, base.split)
            if known != base.split:
                problems.append(f"the family {base.family!r} is in {base.split} here and in {known} above")
        if problems:
            raise ValueError("; ".join(problems))
        return group


def _variations(data: Mapping[str, Any]) -> list[Any]:
    items = data.get("variations")
    if items is None:
        return []
    if not isinstance(items, list):
        raise ValueError('"variations" must be a list of texts or objects')
    return items


def _variation(base: Prompt, number: int, item: object) -> Prompt:
    if isinstance(item, str):
        item = {"prompt": item}
    if not isinstance(item, Mapping):
        raise ValueError("it must be text or an object with a prompt")
    for name, inherited in (("family", base.family), ("split", base.split)):
        if item.get(name, inherited) != inherited:
            raise ValueError(f"its {name} is {item[name]!r}, its base's is {inherited!r}")
    defaults = {"id": f"{base.id}-v{number}", "category": base.category, "context": base.context}
    return Prompt.from_json({**defaults, **item, "family": base.family, "split": base.split})
