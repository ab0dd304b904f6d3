"""Small data sets for tests."""

from __future__ import annotations

import json
import random
from pathlib import Path

from mlx_distill.records import STUDENT_SYSTEM, Example, Message

WORDS = "queue stack text words python function returns number name salary employees first last".split()  # noqa: SIM905


def make_rows(folder: Path, *, train: int = 10, valid: int = 3, test: int = 4, seed: int = 1) -> Path:
    """Write train, valid and test rows of different lengths that a tiny model can learn something from."""
    draw = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("valid", valid), ("test", test)):
        lines = []
        for number in range(count):
            words = draw.choices(WORDS, k=draw.randint(3, 12))
            example = Example(
                id=f"{split}-{number}",
                family=f"{split}-{number // 2}",
                category="python" if number % 2 else "sql",
                messages=(
                    Message("system", STUDENT_SYSTEM),
                    Message("user", f"Write {' '.join(words[:3])}."),
                    Message("assistant", f"def {words[0]}():\n    return {' '.join(words)}\n"),
                ),
            )
            lines.append(json.dumps(example.to_json()) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return folder
