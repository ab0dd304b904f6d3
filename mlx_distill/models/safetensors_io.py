"""Safetensors files as bytes: reading headers, and writing one tensor after another.

mlx and safetensors write tensors that are all in memory at once. A dequantised student may not fit.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt

from mlx_distill.errors import InputError
from mlx_distill.formatting import first_line

FloatName = Literal["float32", "float16", "bfloat16"]

WEIGHTS = "model*.safetensors"
"""The weight files that mlx-lm reads."""

_CODES: Mapping[FloatName, tuple[str, int]] = {"float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2)}
"""The name in safetensors and the bytes per value."""


@dataclass(frozen=True)
class Weights:
    """The content of a folder's weight files, from their headers."""

    files: tuple[Path, ...]
    is_mlx: bool
    """Written by mlx: names and shapes fit its model classes."""
    dtype: str
    """The floating type of most values: float32, float16 or bfloat16."""
    n_tensors: int


def read_headers(folder: Path) -> Weights:
    """Read the headers of all weight files of a folder. InputError if there is none or one is broken."""
    files = sorted(folder.glob(WEIGHTS))
    if not files:
        found = sorted(file.name for file in folder.glob("*.gguf"))
        raise InputError(
            f"{folder}: no {WEIGHTS} in it. Weights in other formats, such as pickles (.bin, .pt), are never loaded.",
            f"Name the GGUF file itself: {folder / found[0]}" if found else "Choose a model with safetensors weights.",
        )
    formats, counts, n_tensors = set(), Counter[str](), 0
    for file in files:
        header = _header(file)
        formats.add((header.pop("__metadata__", None) or {}).get("format"))
        n_tensors += len(header)
        for tensor in header.values():
            counts[tensor["dtype"]] += prod(tensor["shape"])
    names = {code: name for name, (code, _) in _CODES.items()}
    dtypes = [names[code] for code, _ in counts.most_common() if code in names]
    dtype = dtypes[0] if dtypes else counts.most_common(1)[0][0]
    return Weights(tuple(files), formats == {"mlx"}, dtype, n_tensors)


def _header(file: Path) -> dict[str, Any]:
    """Read a header and check it against the file's size before it can take memory."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > size:
                raise ValueError("the header is longer than the file")
            header: dict[str, Any] = json.loads(stream.read(length))
        metadata = header.get("__metadata__") or {}  # mlx writes null without metadata
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata is not text")
        tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
        if 8 + length + max(tensor["data_offsets"][1] for tensor in tensors) != size:
            raise ValueError("the file is cut off, or longer than its header says")
        if not all(isinstance(tensor["dtype"], str) and 0 <= prod(tensor["shape"]) <= 8 * size for tensor in tensors):
            raise ValueError("a tensor's type or shape cannot be right")
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        reason = first_line(error)
        raise InputError(f"{file}: not a whole safetensors file ({reason}).", "Download or copy it again.") from error
    return header


def write_tensors(
    path: Path, dtype: FloatName, shapes: Mapping[str, tuple[int, ...]], tensors: Iterable[npt.NDArray[Any]]
) -> None:
    """Write a safetensors file in MLX format from tensors that come one at a time, in the order of `shapes`.

    Each tensor is an array of `dtype`, or the bits of bfloat16 values in uint16.
    """
    code, width = _CODES[dtype]
    header: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + width * prod(shape)
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # values begin at a multiple of 8
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, shape), values in zip(shapes.items(), tensors, strict=True):
            if values.shape != shape or values.itemsize != width:
                raise ValueError(f"{name}: {values.shape} of {values.itemsize} bytes, not {shape} of {width}")
            file.write(values.tobytes())
