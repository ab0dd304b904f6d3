"""What a file was: its SHA-256, size and time, so that a later look can tell whether it changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

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
