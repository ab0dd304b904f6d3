"""File states: SHA-256, size and time of a file, to detect later whether it changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

_ALWAYS_HASHED_BYTES = 4 << 20
"""Files up to this size are always hashed; larger ones (weights) only if their size or time changed."""


@dataclass(frozen=True)
class FileState:
    """The state of one file."""

    sha256: str
    size: int
    modified_ns: int


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def states_of(paths: Iterable[Path], known: Mapping[str, FileState] | None = None) -> dict[str, FileState]:
    """Return the state of each file that exists. A folder stands for all files in it that are not hidden.

    `known` holds earlier states: a large file with the same size and time keeps its hash and is not read.
    """
    known = known or {}
    states: dict[str, FileState] = {}
    for path in paths:
        files = sorted(_visible_files(path)) if path.is_dir() else [path] if path.is_file() else []
        for file in files:
            info = file.stat()
            before = known.get(str(file))
            is_large = info.st_size > _ALWAYS_HASHED_BYTES
            if before and is_large and (before.size, before.modified_ns) == (info.st_size, info.st_mtime_ns):
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
