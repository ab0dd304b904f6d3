"""A project of eight short recorded answers that runs in seconds on a tiny student."""

from __future__ import annotations

import json
from pathlib import Path

SPLITS = ["train"] * 6 + ["valid", "test"]


def write_project(folder: Path, student: Path) -> None:
    """A project of eight short answers that runs in seconds."""
    prompts, answers = [], []
    for number, split in enumerate(SPLITS):
        name, text = f"p{number}", f"Write a Python function that returns the number {number} in words."
        prompts.append({"id": name, "prompt": text, "family": name, "split": split})
        said = f"A constant will do.\n\n```python\ndef words_{number}() -> str:\n    return 'number {number}'\n```"
        answers.append(
            {"prompt_id": name, "family": name, "messages": [{"role": "user", "content": text}], "answer": said}
        )
    folder.mkdir(parents=True, exist_ok=True)
    for file, rows in (("prompts.jsonl", prompts), ("recorded.jsonl", answers)):
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "distill.toml").write_text(
        f'name = "tiny"\nteacher = "recorded:recorded.jsonl"\nstudent = "{student}"\n'
        '[collect]\nprompts = "prompts.jsonl"\n'
        '[train]\nepochs = 1\nbatch_size = 2\n[compare]\nmax_tokens = 8\nteacher = ""\n'
    )
