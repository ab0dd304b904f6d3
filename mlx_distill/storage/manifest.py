"""What a finished stage was made from, so that a rerun can tell in milliseconds that nothing has changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_distill.records import content_hash
from mlx_distill.storage.durable import write_json

_HASHED_WHOLE = 4 << 20
"""Files up to this size are hashed at every look; larger ones (weights) only when their size or time changed."""


@dataclass(frozen=True)
class FileState:
    """A file as it was: its content's SHA-256, and the size and time that vouch for it without reading."""

    sha256: str
    size: int
    modified_ns: int


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def states_of(paths: Iterable[Path], known: Mapping[str, FileState] | None = None) -> dict[str, FileState]:
    """The state of each file (folders stand for all files in them, hidden ones left out); missing ones have none.

    `known` holds states from before: a large file of the same size and time keeps its hash without being read.
    """
    known = known or {}
    states: dict[str, FileState] = {}
    for path in paths:
        files = sorted(_visible_files(path)) if path.is_dir() else [path] if path.is_file() else []
        for file in files:
            info = file.stat()
            before = known.get(str(file))
            same = before and before.size == info.st_size and before.modified_ns == info.st_mtime_ns
            if before and same and info.st_size > _HASHED_WHOLE:
                digest = before.sha256
            else:
                digest = file_hash(file)
            states[str(file)] = FileState(digest, info.st_size, info.st_mtime_ns)
    return states


def _visible_files(folder: Path) -> Iterable[Path]:
    for item in folder.iterdir():
        if item.name.startswith("."):
            continue
        if item.is_dir():
            yield from _visible_files(item)
        elif item.is_file():
            yield item


@dataclass(frozen=True)
class Manifest:
    """The record of one finished stage."""

    stage: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, FileState]
    outputs: Mapping[str, FileState]
    versions: Mapping[str, str]
    seconds: float
    finished_at: str
    result: Mapping[str, Any]
    """The figures the stage ended with, for the final table of a run that skips it."""

    def is_current(self, settings: Mapping[str, Any], inputs: Iterable[Path]) -> str:
        """ "" where nothing has changed; otherwise the reason to run the stage again, in a few words."""
        if content_hash(settings) != content_hash(self.settings):
            changed = [name for name in settings if settings[name] != self.settings.get(name)]
            return f"{', '.join(changed) or 'settings'} changed"
        for path, before in self.outputs.items():
            now = states_of([Path(path)], self.outputs).get(path)
            if now is None:
                return f"{Path(path).name} is gone"
            if now.sha256 != before.sha256:
                return f"{Path(path).name} was changed"
        now_inputs = states_of(inputs, self.inputs)
        for path in {*now_inputs, *self.inputs}:
            now, old = now_inputs.get(path), self.inputs.get(path)
            if now is None or old is None or now.sha256 != old.sha256:
                return f"{Path(path).name} changed"
        return ""

    def save(self, path: Path) -> None:
        write_json(path, {name: _plain(value) for name, value in vars(self).items()})

    @classmethod
    def load(cls, path: Path) -> Manifest | None:
        """The manifest at `path`, or None where there is none that can be read: then the stage runs again."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            for name in ("inputs", "outputs"):
                data[name] = {file: FileState(**state) for file, state in data[name].items()}
            return cls(**data)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return vars(value) if isinstance(value, FileState) else value
