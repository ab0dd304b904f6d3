"""A GGUF file opened with care: whole, little-endian, and its metadata of the kinds that are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_distill.errors import InputError, raise_problems

if TYPE_CHECKING:
    from gguf import GGUFReader

OTHER_FILE = "Use another GGUF file of this model, or its original from the Hub (owner/name)."

_KINDS: Mapping[type, str] = {int: "a whole number", float: "a number", str: "text", list: "a list"}


class GgufFile:
    """Metadata and tensors of one file; tensors are mapped, not read (format: ggml's docs/gguf.md)."""

    def __init__(self, path: Path) -> None:
        """Raises InputError where the file is cut off, broken, big-endian, or one part of several."""
        self.path = path
        try:
            reader = _read(path)
        except (ValueError, IndexError, KeyError, OverflowError, TypeError, OSError) as error:
            raise InputError(
                f"{path}: not a whole GGUF file of version 2 or 3 ({error}).", "Download or copy it again."
            ) from error
        if reader.byte_order == "S":
            raise InputError(f"{path}: the file is big-endian, which is not supported.", OTHER_FILE)
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._fields = reader.fields
        parts = self.get("split.count", 1)
        if parts > 1:
            raise InputError(
                f"{path}: this is one of {parts} parts of a split model.",
                "Join them with llama.cpp's `llama-gguf-split --merge`, or use a file in one part.",
            )

    @property
    def keys(self) -> list[str]:
        """All metadata keys."""
        return [key for key in self._fields if not key.startswith("GGUF.")]

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key: a number, a truth value, text or a list."""
        field = self._fields.get(key)
        if field is None:
            return default
        try:
            return field.contents()
        except UnicodeDecodeError as error:
            raise InputError(f"{self.path}: {key} is not UTF-8 text.", OTHER_FILE) from error

    def require(self, kinds: Mapping[str, type]) -> None:
        """InputError that lists every key which is missing or of another kind."""
        problems = []
        for key, kind in kinds.items():
            value = self.get(key)
            if value is None:
                problems.append(f"{key} is missing")
            elif isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
                problems.append(f"{key} is {str(value)[:60]!r}, not {_KINDS[kind]}")
        raise_problems(self.path, problems, OTHER_FILE)


def _read(path: Path) -> GGUFReader:
    """The `gguf` package's reader over a plain view of the mapped file.

    It cuts a vocabulary into a million slices, and each costs three times as much on a numpy.memmap.
    """
    import numpy as np
    from gguf import GGUFReader

    class PlainReader(GGUFReader):  # type: ignore[misc]
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value.view(np.ndarray) if name == "data" else value)

    return PlainReader(path)
