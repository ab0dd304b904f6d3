"""A conversation as a file: Markdown to read, or JSON in the form that rows and other programs have."""

from __future__ import annotations

import json
from pathlib import Path

from mlx_distill.errors import InputError
from mlx_distill.records import Messages
from mlx_distill.sanitize import printable
from mlx_distill.storage.atomic import new_file

_TITLES = {"system": "System", "user": "You", "assistant": "Student"}


def save(messages: Messages, file: Path) -> Path:
    """Write the conversation to a new file and return its path, `~` expanded.

    Raises InputError where there is nothing to save or the file exists, MachineError where it cannot be written.
    """
    if not any(message.role == "assistant" for message in messages):
        raise InputError("There is no answer to save yet.")
    try:
        file = file.expanduser()
    except RuntimeError as error:
        raise InputError(f"{file}: there is no such home folder.") from error
    if file.exists():
        raise InputError(f"{file} exists already; choose another name.")
    text = _json(messages) if file.suffix == ".json" else _markdown(messages)
    with new_file(file) as scratch:
        scratch.write_text(text, encoding="utf-8")
    return file


def _json(messages: Messages) -> str:
    return json.dumps({"messages": [message.to_json() for message in messages]}, ensure_ascii=False, indent=2) + "\n"


def _markdown(messages: Messages) -> str:
    parts = [f"## {_TITLES[message.role]}\n\n{printable(message.content).strip()}\n" for message in messages]
    return "\n".join(parts)
